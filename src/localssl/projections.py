"""Projections B: from the reference c (d_c) to the layer's space (d_z); g = c Bᵀ is the dendritic prediction B c."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

KINDS = ("dense", "low-rank", "low-rank-frozen")


class Dense(nn.Linear):
    """A full matrix B. ``weight`` has shape (d_z, d_c); no bias; PyTorch's default Linear initialisation."""

    def __init__(self, d_z: int, d_c: int):
        super().__init__(d_c, d_z, bias=False)  # pyright: ignore[reportUnknownMemberType]


class LowRank(nn.Module):
    """B = outer · inner, of rank r: outer (d_z, r), inner (r, d_c), random at first, with variance 1/r.

    A frozen inner factor stays as it was drawn, and outer learns by the rule of a dense B, from z and the r numbers
    inner · c. A trained one learns through outerᵀ, other synapses' weights: that is not local.

    With this scale inner keeps the length of c on average, B starts with the variance of a dense one, and a step of
    Adam on outer moves an entry of B by as much as it moves a dense one's.
    """

    def __init__(self, d_z: int, d_c: int, rank: int, frozen: bool):
        super().__init__()
        inner = torch.randn(rank, d_c) / math.sqrt(rank)
        self.outer = nn.Parameter(torch.empty(d_z, rank).uniform_(-1, 1) / math.sqrt(d_c))
        if frozen:
            self.register_buffer("inner", inner)
        else:
            self.inner = nn.Parameter(inner)

    @property
    def weight(self) -> Tensor:
        """B, (d_z, d_c)."""
        return self.outer @ self.inner

    @override
    def forward(self, c: Tensor) -> Tensor:
        """g, (N, d_z), of references c (N, d_c)."""
        return F.linear(F.linear(c, self.inner), self.outer)


def make(kind: str, d_z: int, d_c: int, rank: int) -> nn.Module:
    """A projection of one of the ``KINDS``; dense where the rank would not be lower than a dense matrix's."""
    if kind == "dense" or rank >= min(d_z, d_c):
        return Dense(d_z, d_c)
    return LowRank(d_z, d_c, rank, frozen=kind == "low-rank-frozen")
