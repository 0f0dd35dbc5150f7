"""Descent by powers of two as operations of a program: ``optimizer.ShiftSGD``, and ``synapses.Writes`` of b bits.

Beside its weights a tensor has two states, the exponents of u and s; in floats the powers of two themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from localssl.engine.synapses import FRACTION
from localssl.errors import UsageError
from localssl.optimizer import ShiftSGD
from localssl.rulefile.ops import Op, Operand
from localssl.rulefile.program import Program, Stage
from localssl.rulefile.whole import Whole
from localssl.rulefile.writing import Array, Exponent

PLACES = FRACTION.bit_length() - 1  # bits below a weight's step
CLIP = int(ShiftSGD.CLIP).bit_length() - 1
RATE = "learning rate"


@dataclass(frozen=True)
class Store:
    """Tensors of weights on one grid.

    Args:
        grid: the state that is their exponent.
        bits: of a weight.
        layer: from 1.
        weights: by name, with the random words of 24 bits of this step.
        doubled: by name, the random bits of this step; drawn where the grid was doubled, else zeros.
    """

    grid: str
    bits: int
    layer: int
    weights: dict[str, Tensor]
    doubled: dict[str, Tensor]


def write(whole: Whole, stores: Sequence[Store], rate: int, shifted: bool, layers: int) -> dict[str, str]:
    """Add the stages that write the weights; returns the arrays that states become, by state.

    Args:
        whole: the update's program.
        stores: of every layer.
        rate: exponent of the learning rate.
        shifted: False: plain descent.
        layers: how many there are: all have run.
    """
    found: dict[str, str] = {}
    for layer in sorted({store.layer for store in stores}):
        whole.begin(Stage("write", layer, (), layers))
        for store in (s for s in stores if s.layer == layer):
            found |= _written(whole, store, rate, shifted)
    return found


def _written(whole: Whole, store: Store, rate: int, shifted: bool) -> dict[str, str]:
    found: dict[str, str] = {}
    top, clipped, over, count = 2 ** (store.bits - 1) - 1, dict[str, str](), list[str](), 0
    for name, words in store.weights.items():
        g = whole.of(whole.program.updates[name])
        due = _due(whole, g, name, store.grid, rate, shifted)
        if shifted:
            found[f"{name} s"] = _followed(whole, g, name)
        w = whole.values[name]
        fine = whole.emit("shift", (name, PLACES), w * FRACTION)
        whole.values[random(name)] = words
        moved = whole.emit("add", (fine, due), w * FRACTION + whole.values[due])
        drawn = whole.emit("add", (moved, random(name)), whole.values[moved] + words)
        new = whole.emit("shift", (drawn, -PLACES), whole.values[drawn] >> PLACES)
        size = whole.size(Array(new))
        over.append(whole.emit("less", (top, size), whole.values[size] > top))
        clipped[name] = _clipped(whole, new, top, top, store.bits)
        count += w.numel()
    most = count // 2**store.bits
    after = int(sum(int(whole.values[o].sum()) for o in over) > most)
    found[store.grid] = whole.wider(store.grid, over, count, store.bits, after)
    grown = whole.grown
    back = whole.emit("multiply", (grown, -1), torch.tensor(-after))
    for name, new in clipped.items():
        whole.values[bit(name)] = store.doubled[name]
        up = whole.emit("multiply", (bit(name), grown), store.doubled[name] * after)
        rounded = whole.emit("add", (new, up), whole.values[new] + whole.values[up])
        found[name] = whole.emit("shift", (rounded, back), whole.values[rounded] >> after, store.bits)
    return found


def random(name: str) -> str:
    """The input that rounds a tensor's update: words of 24 bits."""
    return f"{name} random"


def bit(name: str) -> str:
    """The input that rounds a tensor where its grid is doubled: one bit a weight."""
    return f"{name} random bit"


def _due(whole: Whole, g: Array, name: str, grid: str, rate: int, shifted: bool) -> str:
    """What is due to a tensor, in 2^-24 of its step, the rest thrown away."""
    assert isinstance(g.name, str)
    assert g.exponent is not None
    down = whole.emit("multiply", (g.name, -1), -whole.values[g.name])
    unit = whole.scalar("subtract", PLACES + rate, grid)
    if not shifted:
        return whole.moved(down, whole.scalar("add", g.exponent, unit))
    unit = whole.scalar("add", unit, f"{name} u")
    by = whole.scalar("subtract", whole.scalar("add", g.exponent, unit), f"{name} s")
    fine = whole.moved(down, by)
    edge = whole.scalar("shift", 1, whole.scalar("add", unit, CLIP))
    if whole.number(edge) < 1:
        raise UsageError("export --rule: at this rate even a clipped update is less than 2^-24 of a weight's step")
    return _clipped(whole, fine, edge, whole.number(edge), None)


def _clipped(whole: Whole, x: str, edge: Exponent, number: int, bits: int | None) -> str:
    """Between -edge and edge."""
    low = -edge if isinstance(edge, int) else whole.scalar("subtract", 0, edge)
    below = whole.emit("minimum", (x, edge), whole.values[x].clamp(max=number))
    return whole.emit("maximum", (below, low), whole.values[x].clamp(-number, number), bits)


def _followed(whole: Whole, g: Array, name: str) -> str:
    """The next exponent of s: one more or less where the mean of |g| is more than twice or less than half of s."""
    sizes = whole.size(g)
    value = whole.values[sizes].sum()
    axes = list(range(whole.values[sizes].ndim))
    total = whole.emit("sum", (sizes,), value, axes=axes, keep=False)
    count = whole.values[sizes].numel()
    state = f"{name} s"
    (size, whole_s), _ = whole.together([Array(total, g.exponent), Array(count, state)])
    a, b = whole.number(size), whole.number(whole_s)
    up = whole.emit("less", (whole.scalar("shift", whole_s, 1), size), torch.tensor(a > 2 * b))
    twice = whole.emit("shift", (size, 1), torch.tensor(2 * a))
    down = whole.emit("less", (twice, whole_s), torch.tensor(2 * a < b))
    some = whole.emit("less", (0, size), torch.tensor(a > 0))
    raised = whole.emit("add", (state, up), torch.tensor(whole.at[state] + (a > 2 * b)))
    lowered = whole.emit("multiply", (down, some), torch.tensor(0 < 2 * a < b))
    lower = whole.emit("cast", (lowered,), torch.tensor(int(0 < 2 * a < b)), type="int")
    return whole.emit("subtract", (raised, lower), whole.values[raised] - whole.values[lower])


def in_floats(program: Program, layers: Mapping[str, int], rate: float) -> Program:
    """A program of floats that writes its weights, too; ``layers``: of every trained parameter, from 1."""
    stages: list[Stage] = []
    buffers = dict(program.buffers)
    count = len(program.ops)

    for layer in sorted(set(layers.values())):
        ops: list[Op] = []

        def emit(op: str, *operands: Operand, ops: list[Op] = ops, **how: object) -> str:
            nonlocal count
            count += 1
            ops.append(Op(f"v{count}", op, operands, dict(how)))
            return ops[-1].out

        for name in (n for n, at in layers.items() if at == layer):
            g, shape = program.updates[name], program.values[program.updates[name]].shape
            u, s = f"{name} u", f"{name} s"
            within = emit("maximum", emit("minimum", emit("divide", g, s), ShiftSGD.CLIP), -ShiftSGD.CLIP)
            step = emit("multiply", within, emit("multiply", u, RATE))
            buffers[name] = emit("subtract", name, step)
            total = emit("sum", emit("maximum", g, emit("multiply", g, -1)), axes=list(range(len(shape))), keep=False)
            mean = emit("divide", total, shape.numel())
            up = emit("where", emit("less", emit("multiply", s, 2), mean), 2, 1)
            down = emit("where", emit("less", mean, emit("multiply", s, 0.5)), 0.5, 1)
            moved = emit("multiply", s, emit("multiply", up, down))
            buffers[s] = emit("where", emit("less", 0, total), moved, s)
        stages.append(Stage("write", layer, tuple(ops), max(stage.block for stage in program.stages)))
    values = program.values | {RATE: torch.tensor(rate, dtype=torch.float64)}
    everything = (*program.stages, *stages)
    return replace(program, stages=everything, draws=(*program.draws, RATE), buffers=buffers, values=values)
