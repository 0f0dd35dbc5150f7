"""``rule.json``: a run's learning rule as data, with golden vectors of a small twin of its network."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import localssl
from localssl import certificate
from localssl.certificate import Certificate
from localssl.certificate.cuts import layer_of
from localssl.config import RunConfig
from localssl.errors import UsageError
from localssl.files import write_text
from localssl.learner import Learner
from localssl.optimizer import FactoredAdamW
from localssl.prepared import optimizer_of, rate
from localssl.rulefile.ops import OPS, Op
from localssl.rulefile.program import Program, record
from localssl.rulefile.reading import held, reads
from localssl.rulefile.twin import BATCHES, IMAGES, enter, twin
from localssl.run import Run

FORMAT, VERSION = "localssl rule", 1
RATE = 1e-3  # of golden vectors, at most: larger ones make Adam's rounding noise larger
BITS = {"32-true": 32, "64-true": 64, "bf16-mixed": 16}


@dataclass(frozen=True)
class Written:
    """What a rule.json holds, for those who have just written it: operations of a step, steps, and size in bytes."""

    operations: int
    steps: int
    size: int


def write(run: Run, path: Path) -> Written:
    """Write a run's learning rule as data.

    Raises:
        UsageError: the rule is not local on this network (with the certificate's reasons), its update needs something
            that a manifest does not have, or the network has no small twin.
    """
    with torch.random.fork_rng(), torch.enable_grad():
        found = manifest(run.config, run.learner())
    text = json.dumps(found, ensure_ascii=False, separators=(",", ":")) + "\n"
    write_text(path, text)
    program = found["vectors"][0]["programs"][0]
    return Written(sum(len(stage["ops"]) for stage in program["stages"]), BATCHES, len(text.encode()))


def manifest(config: RunConfig, learner: Learner) -> dict[str, Any]:
    """The content of rule.json for a run of this configuration and its learner."""
    if config.bits is not None:
        raise UsageError(
            "export --rule: a manifest rounds nothing, --bits does; export a run of the same rule in floats, or see "
            "examples/integer_update.py"
        )
    if config.optimizer == "shift-sgd":
        raise UsageError("export --rule: a manifest has adam, sgd and their kin as optimisers, not shift-sgd")

    def stepper(trial: Learner) -> Callable[[int], object]:
        optimizer = optimizer_of(config, trial)
        return lambda step: _step(config, optimizer, step)

    rule = config.make_rule()
    small = twin(learner.encoder, rule, config.input_shape, config.patches, config.engine, stepper)
    found = certificate.certify(small)
    if found.verdict != "local":
        raise UsageError(
            f"export --rule: {found.rule} is {found.verdict} ({'; '.join(found.reasons)}); a manifest says what a chip "
            f"does in place, localssl certify --rule {config.rule} says more"
        )
    cost, layer_costs = certificate.count(learner)
    vectors, program = _vectors(config, small)
    bits = BITS[config.precision]
    return {
        "format": FORMAT,
        "version": VERSION,
        "made by": f"localssl {localssl.__version__}",
        "rule": {
            "name": config.rule,
            "options": _plain(dataclasses.asdict(learner.rule)),
            "credit": learner.rule.credit,
            "engine": learner.engine,
            "samples": {"kind": type(small.inputs).__name__, "layout": _first(type(small.inputs).__doc__)},
        },
        "locality": {"verdict": found.verdict, "layers": found.distance, "updates": reads(found, program)},
        "network": _network(learner),
        "state": _state(learner, config),
        "held": held(program, bits),
        "schedule": _schedule(program, config),
        "optimiser": _optimiser(config, learner),
        "counts": _counts(found, cost, layer_costs),
        "operations": OPS,
        "vectors": [vectors],
    }


def _network(learner: Learner) -> dict[str, Any]:
    blocks = [
        {
            "layers": [str(m) for m in block.modules() if not list(m.children())],
            "output": list(shape),
            "patch of the readout": patch,
        }
        for block, shape, patch in zip(learner.encoder.blocks, learner.output_shapes, learner.patches, strict=True)
    ]
    return {"image": list(learner.input_shape), "sample": list(_sample(learner)), "blocks": blocks}


def _sample(learner: Learner) -> tuple[int, ...]:
    return tuple(learner.inputs.shape(learner.input_shape))


def _state(learner: Learner, config: RunConfig) -> list[dict[str, Any]]:
    """The memory map of the run's own network: every synapse's words, one after the other, moments behind weights."""
    width = 64 if config.precision == "64-true" else 32
    trained = {name for name, p in learner.named_parameters() if p.requires_grad}
    kept = {**dict(learner.named_parameters()), **dict(learner.named_buffers())}
    found: list[dict[str, Any]] = []
    address = 0

    def add(name: str, of: str, layer: int, shape: Sequence[int], bits: int) -> None:
        nonlocal address
        words = int(torch.Size(shape).numel())
        entry = {"name": name, "of": of, "layer": layer, "shape": list(shape), "bits": bits, "address": address}
        found.append(entry)
        address += words

    moments = _moments(config, learner)
    for name, value in kept.items():
        of = "synapse" if name in trained else "fixed"
        bits = width if value.is_floating_point() else 64
        add(name, of, layer_of(name, learner), value.shape, bits)
        for moment, shape in moments.get(name, {}).items():
            add(f"{name} {moment}", "optimiser", layer_of(name, learner), shape, width)
    return found


def _moments(config: RunConfig, learner: Learner) -> dict[str, dict[str, tuple[int, ...]]]:
    """What the optimiser keeps of every parameter, with its shape."""
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    factored = _factored(config, learner)
    for name, p in learner.named_parameters():
        shape = tuple(p.shape)
        if not p.requires_grad:
            continue
        if config.optimizer in ("sgd", "plain-sgd"):
            found[name] = {"momentum": shape} if config.optimizer == "sgd" else {}
        elif name in factored:
            found[name] = {"first moment": shape, "row moment": shape[:1], "column moment": shape[1:]}
        else:
            found[name] = {"first moment": shape, "second moment": shape}
    return found


def _factored(config: RunConfig, learner: Learner) -> list[str]:
    apart: set[int] = set()
    optimizer = optimizer_of(config, learner)
    for group in optimizer.param_groups if isinstance(optimizer, FactoredAdamW) else ():
        apart |= {id(p) for p in group["params"]} if group.get("factored_moment") else set()
    return [name for name, p in learner.named_parameters() if id(p) in apart]


def _optimiser(config: RunConfig, learner: Learner) -> dict[str, Any]:
    """How a weight follows its update; moments start from 0."""
    decay = {"weight decay": config.weight_decay, "decay": "decoupled" if config.optimizer in _DECOUPLED else "update"}
    if config.optimizer in ("sgd", "plain-sgd"):
        return {"op": "sgd", "momentum": 0.9 if config.optimizer == "sgd" else 0.0, **decay}
    adam = {"op": "adam", "betas": [0.9, 0.999], "epsilon": 1e-8}
    return {**adam, **decay, "factored": _factored(config, learner)}


_DECOUPLED = ("adam", "adam-factored")


def _schedule(program: Program, config: RunConfig) -> dict[str, Any]:
    """When what may run: an update of a block needs the activity of all blocks up to ``after``, of all samples."""
    learning = [s for s in program.stages if s.kind == "learn"]
    return {
        "images in a batch": config.batch_size,
        "learning rate": config.lr,
        "rates over the run": config.schedule,
        "order": [{"run": s.block} for s in program.stages if s.kind == "run"]
        + [{"learn": s.block, "after": s.after} for s in learning]
        + [{"step": "optimiser"}],
    }


def _counts(found: Certificate, cost: certificate.Cost, layer_costs: Sequence[certificate.Cost]) -> dict[str, Any]:
    """Of one update and one sample, forward passes left out; as in the certificate."""

    def plain(c: certificate.Cost) -> dict[str, float]:
        return {"multiply-accumulates": c.operations, "bytes": c.bytes}

    layers = [{"layer": layer, **plain(c)} for layer, c in enumerate(layer_costs, start=1)]
    return {"all": plain(cost), "layers": layers, "twin": plain(found.cost)}


def _vectors(config: RunConfig, learner: Learner) -> tuple[dict[str, Any], Program]:
    """Golden vectors of a few steps in float64, and the first step's program."""
    optimizer = optimizer_of(config, learner)
    first = _states(config, learner, optimizer)
    programs: list[dict[str, Any]] = []
    recorded: list[Program] = []
    steps: list[dict[str, Any]] = []
    for step in range(BATCHES):
        x, labels = enter(learner, step)
        program = record(learner, x, labels, step)
        found = _program(program)
        if found not in programs:
            programs.append(found)
        recorded.append(program)
        updates = {n: _array(p.grad) for n, p in learner.named_parameters() if p.grad is not None}
        lr = _step(config, optimizer, step)
        inputs = {name: _array(program.values[name]) for name in ("x", *program.draws)}
        after = _states(config, learner, optimizer)
        entry = {"program": programs.index(found), "learning rate": lr, "inputs": inputs, "updates": updates}
        steps.append({**entry, "state": after})
    network = {**_network(learner), "images": IMAGES}
    return (
        {"arithmetic": "float64", "network": network, "state": first, "programs": programs, "steps": steps},
        recorded[0],
    )


def _step(config: RunConfig, optimizer: torch.optim.Optimizer, step: int) -> float:
    """One step of the optimiser, at the rate that it returns."""
    lr = min(rate(config, step, BATCHES), RATE)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    return lr


def _states(config: RunConfig, learner: Learner, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Every state by name, moments too."""
    found = {n: _array(v) for n, v in (*learner.named_parameters(), *learner.named_buffers())}
    moments = _moments(config, learner)
    for name, p in learner.named_parameters():
        state = optimizer.state.get(p, {})
        for moment, shape in moments.get(name, {}).items():
            kept = state.get(_KEPT[moment])
            value = torch.zeros(shape, dtype=torch.float64) if kept is None else kept
            found[f"{name} {moment}"] = _array(value)
    return found


_KEPT = {
    "momentum": "momentum_buffer",
    "first moment": "exp_avg",
    "second moment": "exp_avg_sq",
    "row moment": "row",
    "column moment": "column",
}


def _program(program: Program) -> dict[str, Any]:
    return {
        "constants": {name: _array(value) for name, value in program.constants.items()},
        "stages": [
            {"stage": s.kind, "block": s.block, "after": s.after, "ops": [_op(op) for op in s.ops]}
            for s in program.stages
        ],
        "signals": program.signals,
        "updates": program.updates,
        "buffers": program.buffers,
    }


def _op(op: Op) -> dict[str, Any]:
    made = {"out": op.out, "op": op.op, "in": list(op.operands)}
    return made | ({"with": op.attributes} if op.attributes else {})


def _array(value: Tensor | None) -> dict[str, Any]:
    assert value is not None
    kind = "bool" if value.dtype == torch.bool else "float64" if value.is_floating_point() else "int64"
    numbers = value.detach().contiguous().flatten().tolist()
    if len(numbers) > 1 and numbers.count(numbers[0]) == len(numbers):
        return {"type": kind, "shape": list(value.shape), "fill": numbers[0]}
    return {"type": kind, "shape": list(value.shape), "values": numbers}


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(options))


def _first(text: str | None) -> str:
    return (text or "").strip().splitlines()[0] if text else ""
