"""What Forward-Forward needs beside sums and shifts, in whole numbers: a root and a division a sample, a table."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from localssl.errors import UsageError
from localssl.rulefile.writing import Array, Writer

WIDE = 61  # bits of a number whose root is taken
INPUT_BITS = 16  # of what enters the first block
POINT = 40  # bits behind the point of the table's numbers


class Length:
    """A sample over its root mean square, on a grid: floor(k · 2^-e / rms + 1/2) of its whole numbers k.

    With q = floor(2^p · rms) + 1 it is (2^(1 + p - e) · k + q) / (2 q), rounded down, p as large as fits; what lies
    half-way goes towards 0, as behind the 1e-8 of ``LengthNorm``.

    Args:
        whole: where it is written.
        x: the samples, whose own exponent does not matter.
        grid: the state that is the grid's exponent.
    """

    def __init__(self, whole: Writer, x: Array, grid: str) -> None:
        assert isinstance(x.name, str)
        self.whole, k = whole, whole.values[x.name]
        count, axes = k[0].numel(), list(range(1, k.ndim))
        places = (WIDE - math.ceil(math.log2(count)) - 2 * (whole.bits.get(x.name, INPUT_BITS) - 1)) // 2
        square = whole.emit("multiply", (x.name, x.name), k * k)
        total = whole.emit("sum", (square,), (k * k).sum(axes, keepdim=True), axes=axes, keep=True)
        fine = whole.moved(total, 2 * places)
        mean = whole.emit("floor-divide", (fine, count), whole.values[fine] // count)
        roots = whole.values[mean].clone().apply_(math.isqrt)
        root = whole.emit("root", (mean,), roots)
        self.below = whole.emit("add", (root, 1), roots + 1)
        self.above = whole.moved(x.name, whole.scalar("subtract", places + 1, grid))

    def rounded(self, value: Tensor, bits: int) -> str:
        """On a grid of b bits; ``value``: what the engine has there.

        Raises:
            UsageError: it has another number, so near to half a step that this division does not tell.
        """
        whole, top = self.whole, 2 ** (bits - 1) - 1
        above, below = whole.values[self.above], whole.values[self.below]
        up = whole.emit("add", (self.above, self.below), above + below)
        twice = whole.emit("shift", (self.below, 1), 2 * below)
        found = (above + below) // (2 * below)
        ratio = whole.emit("floor-divide", (up, twice), found)
        low = whole.emit("minimum", (ratio, top), found.clamp(max=top))
        if not torch.equal(found.clamp(-top, top), value):
            raise UsageError("export --rule: a sample over its length needs more than 64 bits here; use fewer --bits")
        return whole.emit("maximum", (low, -top), value, bits)

    def outside(self, bits: int) -> str:
        """Where ``rounded`` clips."""
        edges = 2**bits - 1
        most = self.whole.emit("multiply", (self.below, edges), self.whole.values[self.below] * edges)
        size = self.whole.size(Array(self.above))
        return self.whole.emit("less-equal", (most, size), self.whole.values[most] <= self.whole.values[size])


def sigmoid(whole: Writer, x: Array, value: Tensor, bits: int) -> Array:
    """A sigmoid in b bits: how many numbers of a table, one for every step, lie below."""
    assert isinstance(x.name, str)
    assert x.exponent is not None
    fine = whole.moved(x.name, whole.scalar("add", x.exponent, POINT))
    parts = 2 ** (bits - 1)
    shares = [(j - 0.5) / parts for j in range(1, parts + 1)]
    steps = [math.ceil(math.log(p / (1 - p)) * 2**POINT) - 1 for p in shares]
    whole.constants["sigmoid"] = whole.values["sigmoid"] = torch.tensor(steps)
    found = torch.searchsorted(whole.values["sigmoid"], whole.values[fine])
    if not torch.equal(found, (value * parts).long()):
        raise UsageError("export --rule: a sigmoid lies half-way between two numbers of b bits; use other --bits")
    return Array(whole.emit("below", ("sigmoid", fine), found, bits), 1 - bits)
