"""Norms and activations that PyTorch does not have."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class LengthNorm(nn.Module):
    """x / (rms(x) + 1e-8) per sample: only the direction goes on (Hinton 2022).

    A sample of zeros stays one and has slope zero, where the formula's own is 1e8: nothing is learnt from it.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Of the shape of ``x`` (N, ...)."""
        square = x.flatten(1).square().mean(1)
        alive = square > 0  # the root's slope at 0 is infinite, and 0 times it no number
        rms = torch.where(alive, square, 1.0).sqrt() + 1e-8
        return x / torch.where(alive, rms, math.inf).view(-1, *[1] * (x.ndim - 1))


class Standardise(nn.Module):
    """(x - mean) / (std + 1e-10) per sample, over all of its numbers, the std with n - 1 (Chen 2025).

    A sample of equal numbers becomes one of zeros and has slope zero, as ``LengthNorm``'s.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Of the shape of ``x`` (N, ...)."""
        flat = x.flatten(1)
        std = flat.std(1, keepdim=True)  # PyTorch takes its slope at 0 for 0
        flat = (flat - flat.mean(1, keepdim=True)) / torch.where(std > 0, std + 1e-10, math.inf)
        return flat.view_as(x)


def standardised_pair(left: Tensor, right: Tensor, pad: int) -> Tensor:
    """The mean of two images (N, C, H, W) after their pair is padded by reflection and standardised (Chen 2025).

    Mean and standard deviation (n - 1) are those of the numbers of both halves together, padded by ``pad``. What is
    returned is not padded yet: padding by reflection and a shift and scale of all numbers may change places.
    """
    both = torch.cat([nn.functional.pad(half, (pad,) * 4, mode="reflect").flatten(1) for half in (left, right)], 1)
    std = both.std(1)
    middle = (left + right) / 2 - both.mean(1).view(-1, 1, 1, 1)
    return middle / torch.where(std > 0, std + 1e-10, math.inf).view(-1, 1, 1, 1)


class PairStandardise(nn.Module):
    """Images (N, C, H, W) standardised by themselves, then as a pair of each with itself, see ``standardised_pair``."""

    def __init__(self, pad: int):
        super().__init__()
        self.pad = pad

    def forward(self, x: Tensor) -> Tensor:
        """Of the shape of ``x``, not padded."""
        x = Standardise()(x)
        return standardised_pair(x, x, self.pad)


class ImageNorm(nn.Module):
    """A norm of images (N, C, H, W) by themselves, one of vectors too: what it gives has the images' shape."""

    def __init__(self, norm: nn.Module, flat: bool):
        super().__init__()
        self.norm, self.flat = norm, flat

    def forward(self, x: Tensor) -> Tensor:
        """Of the shape of ``x``."""
        return self.norm(x.flatten(1) if self.flat else x).view_as(x)


class Triangle(nn.Module):
    """relu(a - mean of a over the channels at its position), to a power."""

    def __init__(self, power: float = 1.0):
        super().__init__()
        self.power = power

    def forward(self, a: Tensor) -> Tensor:
        """Of the shape of ``a`` (N, C, ...)."""
        out = torch.relu(a - a.mean(1, keepdim=True))
        if self.power == 1:
            return out
        alive = out > 0  # below power 1 the slope at 0 is infinite, and 0 times it no number
        return torch.where(alive, torch.where(alive, out, 1.0).pow(self.power), 0.0)


class StraightThrough(nn.Module):
    """relu(a) with the gradient of the identity: units that are off learn as if they were on."""

    def forward(self, a: Tensor) -> Tensor:
        """Of the shape of ``a``."""
        return torch.relu(a).detach() + (a - a.detach())  # the bracket is exactly 0


NORMS: dict[str, type[nn.Module]] = {"length": LengthNorm, "standardise": Standardise}
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu-ste": StraightThrough,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "triangle": Triangle,
}
