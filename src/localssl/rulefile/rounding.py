"""Learning in integers, recorded: what a layer rounds to a grid is one operation, and so is the grid's next step."""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes  # pyright: ignore[reportPrivateUsage]
from typing_extensions import override

from localssl.encoders.layers import LengthNorm
from localssl.engine import narrow
from localssl.engine.synapses import Numbers
from localssl.grids import Grid
from localssl.learner import Learner
from localssl.rulefile.notes import Notes

COUNTERS = ("clipped", "seen", "count", "seed")  # of ``Numbers``, of which no update depends
ROUND, WIDEN = "round", "widen"  # of a recording: an array on a grid; the grid's step afterwards
LENGTH, TABLE = "length-norm", "sigmoid-table"  # samples over their root mean squares; a sigmoid in b bits


def kept(learner: Learner) -> dict[str, Tensor]:
    """Every state of a learner by name: parameters and buffers, but for what only counts."""
    found = {**dict(learner.named_parameters()), **dict(learner.named_buffers())}
    mine = tuple(f"{name}." for name, m in learner.named_modules() if isinstance(m, Numbers))
    return {n: v for n, v in found.items() if not (n.startswith(mine) and n.rpartition(".")[2] in COUNTERS)}


def steps_of(learner: Learner) -> dict[str, Tensor]:
    """The step of every grid, by the name of its state."""
    return {f"{name}.step": m.step for name, m in learner.named_modules() if isinstance(m, Grid)}


@contextmanager
def watched(learner: Learner, notes: Notes) -> Generator[None]:
    """Within, what integers round is written down as it is asked for, and all sums are made in float64."""
    layers = [m for m in learner.modules() if isinstance(m, Numbers)]
    norms = [m for m in learner.modules() if isinstance(m, LengthNorm)] if layers else []
    for own in layers:
        own.fit = partial(_fit, notes, own)  # of this object alone
        own.sigmoid = partial(_sigmoid, notes, own)
    for norm in norms:
        norm.forward = partial(_length, notes, norm)
    try:
        with narrow.off():
            yield
    finally:
        for own in layers:
            del own.fit, own.sigmoid
        for norm in norms:
            del norm.forward


def _fit(notes: Notes, own: Numbers, grid: Grid | str, x: Tensor) -> Tensor:
    grid = own.of(grid) if isinstance(grid, str) else grid
    with _disable_current_modes():
        operands = notes.read(x), notes.read(grid.step)
        out = Numbers.fit(own, grid, x)
        notes.call(out, notes.emit(ROUND, operands, out, bits=grid.bits))
        step = notes.emit(WIDEN, operands, grid.step, bits=grid.bits, count=x.numel())
        notes.call(grid.step, step, overwritten=True)
    return out


def _sigmoid(notes: Notes, own: Numbers, x: Tensor) -> Tensor:
    with _disable_current_modes():
        out = Numbers.sigmoid(own, x)
        notes.call(out, notes.emit(TABLE, (notes.read(x),), out, bits=own.of("signal").bits))
    return out


def _length(notes: Notes, norm: LengthNorm, x: Tensor) -> Tensor:
    with _disable_current_modes():
        out = LengthNorm.forward(norm, x)
        notes.call(out, notes.emit(LENGTH, (notes.read(x),), out))
    return out


class Draws(TorchDispatchMode):
    """Within, random whole numbers are kept in the order in which they are drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Tensor] = []

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in func.tags:
            with _disable_current_modes():
                self.found.append(result.clone())
        return result


def exponent(step: Tensor | float) -> int:
    """Of a power of two."""
    mantissa, power = math.frexp(float(step))
    assert mantissa == 0.5, step
    return power - 1


def unrounded(module: nn.Module) -> nn.Module:
    """The same layers without grids, under the same names."""
    if type(module) is not nn.Sequential:
        return module
    parts = [unrounded(part) for part in module if type(part) is not Grid or part is not module[-1]]
    return nn.Sequential(*(nn.Identity() if type(part) is Grid else part for part in parts))
