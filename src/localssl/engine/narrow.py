"""Sums of products of whole numbers in float32 where its 24 bits hold them: bit for bit those of float64, and sooner.

The numbers are whole multiples of powers of two, of which float32 holds every sum below 2^24 units, in any order.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from localssl.engine import passes, weights
from localssl.engine.blocks import Block, Pool

HELD = 2**24


@contextmanager
def off() -> Generator[None]:
    """Within, every sum is made in float64, and none is looked at: for those who write down what is computed."""
    global HELD
    before, HELD = HELD, 0
    try:
        yield
    finally:
        HELD = before


def run(block: Block, x: Tensor, factor: float, step: float, x_step: float) -> passes.Passed:
    """As ``passes.run``.

    Args:
        block: without its head.
        x: (N, ...), float64, multiples of ``x_step``; what is kept and the output are float64, too.
        factor: most that a weight may be, in steps; so is x.
        step: of weights and bias.
        x_step: 0 where it is not known.
    """
    if not x_step or not HELD:
        return passes.run(block, x)
    layer = block.layer
    bias: Tensor | None = layer.bias  # pyright: ignore[reportAssignmentType]
    shift = 0.0 if bias is None else float(bias.detach().abs().max())
    most = layer.weight[0].numel() * factor**2 * step * x_step + shift
    pool = block.pool
    averages = isinstance(pool, nn.AvgPool1d | nn.AvgPool2d)  # a mean begins as a sum
    shared = math.prod(passes.windows(pool)[0]) if averages else 1
    if most * shared > HELD * step * min(1.0, x_step):
        return passes.run(block, x)
    passed = passes.run(block, x.float())
    return passed._replace(x=x, z=passed.z.double())


def windows_of_a_unit(pool: Pool | None) -> int:
    """How many of a pool's windows a unit of the map may lie in."""
    if pool is None:
        return 1
    kernel, stride = passes.windows(pool)[:2]
    return math.prod(math.ceil(k / s) for k, s in zip(kernel, stride, strict=True))


def change_of(
    layer: nn.Module, x: Tensor, at_a: Tensor, mask: Sequence[bool], largest: float
) -> tuple[Tensor | None, Tensor | None]:
    """As ``weights.change_of``, part by part of the samples.

    Args:
        layer, x, at_a, mask: see there; float64, multiples of one step each.
        largest: most that the product of an x and an at_a may be, in both steps.
    """
    count = int(HELD // (largest * math.prod(at_a.shape[2:] if isinstance(layer, nn.Conv2d) else at_a.shape[1:-1])))
    if not count:
        return weights.change_of(layer, x, at_a, mask)
    found: list[Tensor | None] = [None, None]
    for first in range(0, len(x), count):
        part = slice(first, first + count)
        for i, change in enumerate(weights.change_of(layer, x[part].float(), at_a[part].float(), mask)):
            if change is not None:
                before = found[i]
                found[i] = change.double() if before is None else before.add_(change)
    return found[0], found[1]
