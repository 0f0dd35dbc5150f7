"""Norms and activations that blocks are made of, besides PyTorch's own."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LengthNorm(nn.Module):
    """x / (rms(x) + 1e-8) per sample: only the direction goes on (Hinton 2022)."""

    def forward(self, x: Tensor) -> Tensor:
        """Of the shape of ``x`` (N, ...)."""
        rms = x.flatten(1).square().mean(1).sqrt() + 1e-8
        return x / rms.view(-1, *[1] * (x.ndim - 1))


class Standardise(nn.Module):
    """(x - mean) / (std + 1e-10) per sample, over all of its numbers, the std with n - 1 (Chen 2025)."""

    def forward(self, x: Tensor) -> Tensor:
        """Of the shape of ``x`` (N, ...)."""
        flat = x.flatten(1)
        flat = (flat - flat.mean(1, keepdim=True)) / (flat.std(1, keepdim=True) + 1e-10)
        return flat.view_as(x)


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
