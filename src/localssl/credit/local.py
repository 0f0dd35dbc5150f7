"""Local credit: the graph is cut in front of every block, so a block's loss reaches its own weights and no others."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import override

from localssl.credit.base import Credit
from localssl.encoders import Encoder, run_block


class Local(Credit):
    """Every loss goes to its own block."""

    crosses = False

    @override
    def activities(self, encoder: Encoder, x: Tensor) -> list[Tensor]:
        outputs: list[Tensor] = []
        for number, block in enumerate(encoder.blocks, start=1):
            x = run_block(block, x.detach(), number)
            outputs.append(x)
        return outputs


CREDITS = {"local": Local()}
