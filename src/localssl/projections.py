"""Projections B: from the reference c (d_c) to the layer's space (d_z); g = c Bᵀ is the dendritic prediction B c."""

from __future__ import annotations

from torch import nn


class Dense(nn.Linear):
    """A full matrix B. ``weight`` has shape (d_z, d_c); no bias; PyTorch's default Linear initialisation."""

    def __init__(self, d_z: int, d_c: int):
        super().__init__(d_c, d_z, bias=False)  # pyright: ignore[reportUnknownMemberType]
