"""Projections B: from the reference c (d_c) to the layer's space (d_z); g = c Bᵀ is the dendritic prediction B c."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from localssl.optimizer import be_rows
from localssl.parallel import Processes


class Kind(NamedTuple):
    """What a rule's choice of B comes to, as ``make`` names it, for the layer's ``own`` readout and another's."""

    own: str
    other: str


KINDS = {
    "dense": Kind("dense", "dense"),
    "low-rank": Kind("low-rank", "low-rank"),
    "low-rank-frozen": Kind("low-rank-frozen", "low-rank-frozen"),
    "patch-local": Kind("patch-local", "low-rank"),
    "patch-local-frozen": Kind("patch-local", "low-rank-frozen"),
    "patch-shared": Kind("patch-shared", "low-rank"),
    "patch-shared-frozen": Kind("patch-shared", "low-rank-frozen"),
}


class Dense(nn.Linear):
    """A full matrix B. ``weight`` has shape (d_z, d_c); no bias; PyTorch's default Linear initialisation."""

    def __init__(self, d_z: int, d_c: int):
        super().__init__(d_c, d_z, bias=False)  # pyright: ignore[reportUnknownMemberType]


class Sharded(nn.Module):
    """Some rows of a dense B; other processes have the others. ``weight`` has shape (rows, d_c).

    Each process makes the columns of g = c Bᵀ that its rows give. A score is a sum over columns, and dL/dB of those
    rows follows from the same columns of dL/dg: neither B nor its change ever travels, and g only where it is asked for
    as a whole.

    This is tensor parallelism by columns, PyTorch's ``ColwiseParallel``, with a plain parameter in place of a DTensor:
    one fused step of the optimiser, or one norm, takes no list in which some are DTensors and some are not. FSDP2's
    ``fully_shard`` would gather B for every product, and ``ZeroRedundancyOptimizer`` shards nothing but moments.

    Args:
        dense: the whole B, the same in every process; its other rows are not kept.
        processes: among which its rows are dealt out.

    Attributes:
        d_z: rows of the whole B.
        rows: which of them are here.
    """

    def __init__(self, dense: Dense, processes: Processes):
        super().__init__()
        self.processes, self.d_z = processes, len(dense.weight)
        self.rows = processes.share(self.d_z)
        here = dense.weight.detach()[self.rows].clone()
        self.weight = nn.Parameter(here, requires_grad=dense.weight.requires_grad)
        be_rows(self.weight, self.d_z, processes.sum)

    @override
    def forward(self, c: Tensor) -> Tensor:
        """g, (N, d_z), of references c (N, d_c), which must be the same in all processes."""
        return self.processes.beside(F.linear(c, self.weight), self.d_z)

    def total(self, *sums: Tensor) -> list[Tensor]:
        """Sums over the columns that are here, (N,) each, as sums over all columns."""
        return list(self.processes.sum(torch.stack(sums)))


class LowRank(nn.Module):
    """B = outer · inner, of rank r: outer (d_z, r), inner (r, d_c), random at first.

    A frozen inner factor stays as it was drawn, and outer learns by the rule of a dense B, from z and the r numbers
    inner · c. A trained one learns through outerᵀ, other synapses' weights: that is not local.

    Scale: inner has variance d_c / r², so that the r numbers inner · c sum to about what those of c do, in absolute
    value, and a step of Adam on outer moves g = Bc as far as its step moves that of a dense B (up to √2 times as far
    where half of c is zero). outer makes up for it: g begins with the variance that a dense B gives. With an inner
    factor that keeps the length of c, of variance 1 / r, a step moves g √(d_c / r) times less. A step on a trained
    inner factor moves g by r^1.5 / (2 d_c) of that at first: where d_c is large it learns slowly.
    """

    def __init__(self, d_z: int, d_c: int, rank: int, frozen: bool):
        super().__init__()
        inner = torch.randn(rank, d_c) * (math.sqrt(d_c) / rank)
        self.outer = nn.Parameter(torch.empty(d_z, rank).uniform_(-1, 1) * (math.sqrt(rank) / d_c))
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


class PatchLocal(nn.Module):
    """A lateral B that joins every patch with itself alone, each by a matrix of its own: (patches, channels, channels).

    As a matrix it is block-diagonal in space. It learns by the rule of a dense B, patch by patch, and starts as g does
    under one: PyTorch's default Linear initialisation of ``channels`` inputs.
    """

    def __init__(self, channels: int, patches: int):
        super().__init__()
        self.blocks = nn.Parameter(torch.empty(patches, channels, channels).uniform_(-1, 1) / math.sqrt(channels))

    @property
    def weight(self) -> Tensor:
        """B, (d, d) with d = channels * patches, channels first."""
        return _of_blocks(self.blocks)

    @override
    def forward(self, c: Tensor) -> Tensor:
        """g, (N, d), of references c (N, d)."""
        by_patch = c.reshape(len(c), -1, len(self.blocks)).permute(2, 0, 1)
        return (by_patch @ self.blocks.mT).permute(1, 2, 0).flatten(1)


class PatchShared(nn.Module):
    """A lateral B that joins every patch with itself alone, all by the same matrix (channels, channels).

    A 1 × 1 convolution over the patches: its synapses have copies in every patch that learn together, as the encoder's
    convolutions have.
    """

    def __init__(self, channels: int, patches: int):
        super().__init__()
        self.patches = patches
        self.shared = nn.Parameter(torch.empty(channels, channels).uniform_(-1, 1) / math.sqrt(channels))

    @property
    def weight(self) -> Tensor:
        """B, (d, d) with d = channels * patches, channels first."""
        return _of_blocks(self.shared.expand(self.patches, -1, -1))

    @override
    def forward(self, c: Tensor) -> Tensor:
        """g, (N, d), of references c (N, d)."""
        return F.linear(c.reshape(len(c), -1, self.patches).mT, self.shared).mT.flatten(1)


def _of_blocks(blocks: Tensor) -> Tensor:
    """The matrix (C·P, C·P), channels first, of one (C, C) a patch: blocks (P, C, C)."""
    return torch.diag_embed(blocks.permute(1, 2, 0)).transpose(1, 2).flatten(2).flatten(0, 1)


def make(kind: str, d_z: int, d_c: int, rank: int, channels: int) -> nn.Module:
    """A projection; dense where a cheaper one would not be smaller than a dense matrix.

    Args:
        kind: one of those in a ``Kind``; a "patch-" one only where both sides are the same readout.
        d_z: length of the prediction g, that is of the readout.
        d_c: length of the reference c.
        rank: of a low-rank one.
        channels: of the layer.
    """
    if kind.startswith("patch-"):
        patches = d_z // channels
        if patches == 1:
            return Dense(d_z, d_c)
        return PatchLocal(channels, patches) if kind == "patch-local" else PatchShared(channels, patches)
    if kind == "dense" or rank >= min(d_z, d_c):
        return Dense(d_z, d_c)
    return LowRank(d_z, d_c, rank, frozen=kind == "low-rank-frozen")
