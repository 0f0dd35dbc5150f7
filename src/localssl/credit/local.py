"""Local credit: the graph is cut in front of every block, so a block's loss reaches its own weights and no others."""

from __future__ import annotations

from torch import Tensor

from localssl.encoders import Encoder


def activities(encoder: Encoder, x: Tensor) -> list[Tensor]:
    """Every block's output for inputs x (2n, ...), each with a graph of its own block only."""
    outputs: list[Tensor] = []
    for block in encoder.blocks:
        x = block(x.detach())
        outputs.append(x)
    return outputs
