"""The program of one update: what is needed of a recording, in stages, with what every update reads and when."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from localssl import readout
from localssl.certificate.cuts import layer_of
from localssl.errors import UsageError
from localssl.learner import Learner
from localssl.rulefile.notes import Notes
from localssl.rulefile.ops import Op, Operand
from localssl.rulefile.recorder import Recorder
from localssl.rulefile.rounding import kept, steps_of, watched

NEAR = 1e-9  # of the largest number: how close an array is to a signal whose name it gets


@dataclass(frozen=True)
class Stage:
    """A part of a program.

    Args:
        kind: "run" (a block's activity), "learn" (its updates) or "write" (its new weights, see ``descent``).
        block: from 1.
        ops: in order.
        after: blocks that must have run before.
    """

    kind: str
    block: int
    ops: tuple[Op, ...]
    after: int


@dataclass(frozen=True)
class Program:
    """One update.

    Args:
        stages: in order.
        constants: arrays that depend on nothing, by name.
        draws: names of inputs beside "x": arrays that are drawn at random, and the learning rate where it is one.
        updates: by parameter, the name of its update (what the optimiser descends).
        buffers: by buffer that changes, the name of its new value.
        signals: names of drives "u^l", activities "z^l" and readouts "r^l", where the program has them.
        modulators: by parameter, names of the numbers that are one a sample and enter its update.
        values: every array of this step, for shapes and golden vectors.
        exponents: by array of whole numbers, the power of two that they are multiples of: a number or an array's name.
        bits: by array, where all its numbers are of so many.
    """

    stages: tuple[Stage, ...]
    constants: dict[str, Tensor]
    draws: tuple[str, ...]
    updates: dict[str, str]
    buffers: dict[str, str]
    signals: dict[str, str]
    modulators: dict[str, list[str]]
    values: dict[str, Tensor]
    exponents: dict[str, int | str] = field(default_factory=dict)
    bits: dict[str, int] = field(default_factory=dict)

    @property
    def ops(self) -> list[Op]:
        """All operations, in order."""
        return [op for stage in self.stages for op in stage.ops]

    def cone(self, parameter: str) -> set[str]:
        """Names of all arrays that the update of a parameter rests on."""
        return _ancestors([self.updates[parameter]], self.ops)


def record(learner: Learner, x: Tensor, labels: Tensor | None, seed: int) -> Program:
    """The program of one real update of a learner, whose ``.grad`` holds the update afterwards.

    Args:
        learner: in training mode, on the CPU.
        x: what enters the first block, from ``learner.enter``.
        labels: (n,).
        seed: of whatever the rule draws.

    Raises:
        UsageError: the update needs an operation that a manifest does not have.
    """
    signals = _signals(learner, x)
    notes = Notes({"x": x, **kept(learner)})
    learner.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    with watched(learner, notes), Recorder(notes, steps_of(learner)):
        for _ in learner.credit.updates(learner.step_of(x, None, labels)):
            pass
    updates = {n: notes.read(p.grad) for n, p in learner.named_parameters() if p.grad is not None}
    buffers = {n: notes.read(b) for n, b in kept(learner).items() if not isinstance(b, nn.Parameter)}
    buffers = {name: value for name, value in buffers.items() if value != name}
    ops = _folded([op for op in notes.ops if op.out not in notes.constants])
    live = _ancestors([*updates.values(), *buffers.values()], ops)
    if lost := sorted({notes.lost[name] for name in live & notes.lost.keys()}):
        raise UsageError(f"export --rule: a rule manifest has no operation for {lost[0]}, which the update needs")
    ops = [op for op in ops if op.out in live]
    named = _found(signals, ops, notes.values)
    stages = _stages(learner, ops, updates | buffers, named)
    return _renamed(notes, stages, updates, buffers, named, live, len(x))


@dataclass(frozen=True)
class _Signal:
    """What leaves a layer with weights or a block, or is read out; ``tail``: the block goes on after its weights."""

    value: Tensor
    tail: bool = False


def _signals(learner: Learner, x: Tensor) -> dict[str, _Signal]:
    """Drives, activities and readouts of all blocks, by a pass of their own."""
    drives: dict[int, Tensor] = {}
    handles = [
        module.register_forward_hook(lambda *call, number=number: drives.update({number: call[2]}))
        for number, block in enumerate(learner.encoder.blocks, start=1)
        for module in block.modules()
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear)
    ]
    buffers = {name: b.clone() for name, b in learner.named_buffers()}
    found: dict[str, _Signal] = {}
    with torch.no_grad():
        for number, z in enumerate(learner.encoder(x), start=1):
            if number in drives:
                found[f"u^{number}"] = _Signal(drives[number])
            found[f"z^{number}"] = _Signal(z, tail=z is not drives.get(number))
            found[f"r^{number}"] = _Signal(readout.readout(z, learner.patches[number - 1]))
        for name, b in learner.named_buffers():
            b.copy_(buffers[name])
    for handle in handles:
        handle.remove()
    return found


def _found(signals: Mapping[str, _Signal], ops: Sequence[Op], values: Mapping[str, Tensor]) -> dict[str, str]:
    """The first array that is equal to each signal; behind a bias of zeros, or of a block's end a ReLU, that happens
    to change nothing."""
    found: dict[str, str] = {}
    for name, signal in signals.items():
        wanted, at = signal.value, None
        for op in ops:
            value = values[op.out]
            if value.shape != wanted.shape or value.dtype != wanted.dtype:
                continue
            if not torch.allclose(value, wanted, rtol=0, atol=NEAR * float(wanted.abs().max())):
                continue
            still = op.op == "maximum" and op.operands == (at, 0) if signal.tail else op.op == "add" and at in op.reads
            if at is None or still:
                at = op.out
        if at is not None:
            found[name] = at
    return found


def _ancestors(names: Iterable[str], ops: Sequence[Op]) -> set[str]:
    found = set(names)
    for op in reversed(ops):
        if op.out in found:
            found |= set(op.reads)
    return found


def _folded(ops: Sequence[Op]) -> list[Op]:
    """A reshape of a reshape as one."""
    source: dict[str, str] = {}
    for op in ops:
        if op.op == "reshape":
            before = str(op.operands[0])
            source[op.out] = source.get(before, before)
    return [replace(op, operands=(source[op.out],)) if op.op == "reshape" else op for op in ops]


def _stages(learner: Learner, ops: Sequence[Op], roots: Mapping[str, str], signals: Mapping[str, str]) -> list[Stage]:
    count = len(learner.encoder.blocks)
    stages: list[Stage] = []
    ran: dict[str, int] = {}
    placed: set[str] = set()
    for block in range(1, count + 1):
        wanted = _ancestors([signals[s] for s in (f"u^{block}", f"z^{block}") if s in signals], ops)
        own = tuple(op for op in ops if op.out in wanted - placed)
        placed |= {op.out for op in own}
        ran |= {op.out: block for op in own}
        stages.append(Stage("run", block, own, block - 1))
    for block in range(1, count + 1):
        wanted = _ancestors([v for name, v in roots.items() if layer_of(name, learner) == block], ops)
        own = tuple(op for op in ops if op.out in wanted - placed)
        placed |= {op.out for op in own}
        stages.append(Stage("learn", block, own, max((ran.get(name, 0) for name in wanted), default=0)))
    return stages


def _renamed(
    notes: Notes,
    stages: Sequence[Stage],
    updates: Mapping[str, str],
    buffers: Mapping[str, str],
    signals: Mapping[str, str],
    live: Collection[str],
    samples: int,
) -> Program:
    """The program with names in the order of its stages: v1, … for arrays, c1, … for constants, draw1, … for draws."""
    fixed = [name for name in notes.constants if name in live]
    fixed.sort(key=list(notes.values).index)
    numbers = {n: notes.values[n].item() for n in fixed if notes.values[n].ndim == 0}
    arrays = [name for name in fixed if name not in numbers]
    drawn = [name for name in notes.drawn if name in live]
    new = {name: f"c{i}" for i, name in enumerate(arrays, start=1)}
    new |= {name: f"draw{i}" for i, name in enumerate(drawn, start=1)}
    order = [op.out for stage in stages for op in stage.ops]
    new |= {name: f"v{i}" for i, name in enumerate(order, start=1)}

    def operand(o: Operand) -> Operand:
        return numbers.get(o, new.get(o, o)) if isinstance(o, str) else o

    def renamed(op: Op) -> Op:
        return replace(op, out=new[op.out], operands=tuple(map(operand, op.operands)))

    known = [name for name in notes.values if name in new or name in notes.named]
    values = {new.get(name, name): notes.values[name] for name in known}
    found = [replace(stage, ops=tuple(map(renamed, stage.ops))) for stage in stages]
    program = Program(
        tuple(found),
        {new[name]: notes.values[name] for name in arrays},
        tuple(new[name] for name in drawn),
        {parameter: new.get(name, name) for parameter, name in updates.items()},
        {buffer: new.get(name, name) for buffer, name in buffers.items()},
        {signal: new[name] for signal, name in signals.items()},
        {},
        values,
    )
    return replace(program, modulators={p: _modulators(program, p, samples) for p in program.updates})


def _modulators(program: Program, parameter: str, samples: int) -> list[str]:
    """Numbers that are one a sample where an update first reads them together with something else."""
    cone = program.cone(parameter)
    single = {n for n, v in program.values.items() if v.shape in ((samples,), (samples, 1)) and v.is_floating_point()}
    learning = [op for stage in program.stages if stage.kind == "learn" for op in stage.ops if op.out in cone]
    read = [name for op in learning if op.out not in single for name in op.reads if name in single]
    return list(dict.fromkeys(read))
