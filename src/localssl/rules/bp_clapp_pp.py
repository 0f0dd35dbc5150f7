"""End-to-end reference: the CLAPP++ loss of the last layer, backpropagated through the whole encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from localssl.references import Own, Reference
from localssl.rules.base import ScoreRule


@dataclass(frozen=True, kw_only=True)
class BpClappPP(ScoreRule):
    """L = mean_i f(z_pos^L.B c) + f(-z_neg^L.B c),  c = sg(z^L), gradient through all blocks (paper section 4).

    z^L: (2n, channels), averaged over all positions; the paper saw no effect of spatial dependence here.

    Args:
        spatial: keep the learner's patches in the last layer's readout.
    """

    name: ClassVar[str] = "bp-clapp++"
    credit: ClassVar[str] = "backprop"
    references: ClassVar[dict[str, Reference]] = {"lateral": Own()}
    spatial: bool = False

    @override
    def patches(self, patches: list[int | None]) -> list[int | None]:
        return patches if self.spatial else [None] * len(patches)
