"""Backpropagation: one graph through all blocks (the end-to-end references)."""

from __future__ import annotations

from torch import Tensor

from localssl.encoders import Encoder


def activities(encoder: Encoder, x: Tensor) -> list[Tensor]:
    """Every block's output for inputs x (2n, ...), in one graph."""
    return encoder(x)
