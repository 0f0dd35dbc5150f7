"""CLAPP with SimCLR views: one projection per layer, the same for all positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from localssl.references import Own, Reference
from localssl.rules.base import ScoreRule


@dataclass(frozen=True, kw_only=True)
class Clapp(ScoreRule):
    """L^l = mean_i max(0, 1 - z_pos.B^l c) + max(0, 1 + z_neg.B^l c),  c = sg(mean over positions of z^l).

    z, c: (2n, channels). The row "CLAPP++ (no 2D spatial dependence)" of paper Table 2: SimCLR views, but activities
    averaged over all positions whatever patches the learner was given. Not Illing et al.'s (2021) recipe.
    """

    name: ClassVar[str] = "clapp"
    references: ClassVar[dict[str, Reference]] = {"lateral": Own()}

    @override
    def patches(self, patches: list[int | None]) -> list[int | None]:
        return [None] * len(patches)
