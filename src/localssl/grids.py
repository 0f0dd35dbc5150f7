"""Grids: numbers of b bits with one step, a power of two, for a whole tensor. What an integer network is made of."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from typing_extensions import override

from localssl.errors import UsageError

BITS = range(2, 17)
FINER = 6  # how far below the step that covers everything a better one is looked for
LOOKED_AT = 2**16  # numbers, at most, by which a step is chosen


class Grid(nn.Module):
    """Rounds to k · step with whole k in ±(2^(bits-1) - 1), halves upwards; what lies outside is clipped.

    The gradient goes straight through. Where numbers are k · step with a power of two for a step, sums and products of
    such numbers in float64 are those of integers, as long as they fit 53 bits.

    Args:
        bits: 2 to 16, the sign included.

    Attributes:
        step: a power of two; 0 until ``calibrate``: nothing is rounded then.

    Raises:
        UsageError: another number of bits.
    """

    step: Tensor

    def __init__(self, bits: int):
        super().__init__()
        if type(bits) is not int or bits not in BITS:
            raise UsageError(f"bits {bits!r}: use a whole number from {BITS[0]} to {BITS[-1]}")
        self.bits, self.top = bits, 2 ** (bits - 1) - 1
        self.register_buffer("step", torch.zeros(()))

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Of the shape of ``x``."""
        if torch.compiler.is_compiling():  # an export, of an encoder that has learnt
            return torch.floor(x / self.step + 0.5).clamp(-self.top, self.top) * self.step
        step = 0.0 if self.step.is_meta else float(self.step)  # where only shapes are wanted, nothing is rounded
        if step == 0:
            return x
        return self._rounded(x.detach(), step) + (x - x.detach())  # the bracket is exactly 0

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """Choose the power of two that rounds these numbers with the least squared error; zeros alone choose none."""
        largest = float(x.abs().max())
        if largest == 0:
            return
        seen = x.flatten()[:: max(1, x.numel() // LOOKED_AT)].double()
        covering = math.ceil(math.log2(largest / self.top))
        steps = [2.0 ** (covering - finer) for finer in range(FINER + 1)]
        errors = [float((self._rounded(seen, step) - seen).square().sum()) for step in steps]
        self.step.fill_(steps[errors.index(min(errors))])  # of equal ones the coarsest

    @torch.no_grad()
    def saturated(self, x: Tensor) -> int:
        """How many of these numbers are clipped."""
        return int((x.abs() >= (self.top + 0.5) * float(self.step)).sum()) if float(self.step) else 0

    def widen(self, over: int, count: int) -> bool:
        """Double the step where more than one in 2^bits of ``count`` numbers was clipped; whether it was."""
        if over <= count * 2.0**-self.bits:
            return False
        self.step.mul_(2)
        return True

    def _rounded(self, x: Tensor, step: float) -> Tensor:
        return torch.floor(x / step + 0.5).clamp(-self.top, self.top) * step
