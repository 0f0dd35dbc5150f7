"""Local credit: the graph is cut in front of every block, so a block's loss reaches its own weights and no others."""

from __future__ import annotations

from torch import Tensor

from localssl.encoders import Encoder, run_block


def activities(encoder: Encoder, x: Tensor) -> list[Tensor]:
    """Every block's output for inputs x (2n, ...), each with a graph of its own block only."""
    outputs: list[Tensor] = []
    for number, block in enumerate(encoder.blocks, start=1):
        x = run_block(block, x.detach(), number)
        outputs.append(x)
    return outputs
