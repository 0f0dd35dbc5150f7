"""CLAPP++: projections that depend on the position in both maps, from the own layer, the last one, or both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from localssl.references import Last, Own, Reference
from localssl.rules.base import ScoreRule


@dataclass(frozen=True, kw_only=True)
class ClappPP(ScoreRule):
    """L^l = mean_i f(z_pos^l.B^l c^l) + f(-z_neg^l.B^l c^l),  c^l = sg(z^l)  (paper sections 3 and 3.4; Table 2).

    z^l: (2n, channels * patches), averaged over p x p positions; B^l: dense over that vector.
    """

    name: ClassVar[str] = "clapp++"
    references: ClassVar[dict[str, Reference]] = {"lateral": Own()}


@dataclass(frozen=True, kw_only=True)
class ClappPPDfb(ScoreRule):
    """L_fb^l = mean_i f(z_pos^l.B^l c^L) + f(-z_neg^l.B^l c^L),  c^L = sg(z^L)  (direct feedback, paper equation 3).

    Every layer's reference is the last layer's readout, the last layer's own loss included.
    """

    name: ClassVar[str] = "clapp++dfb"
    references: ClassVar[dict[str, Reference]] = {"feedback": Last()}


@dataclass(frozen=True, kw_only=True)
class ClappPPBoth(ScoreRule):
    """L^l + L_fb^l: the sum of the lateral and the direct-feedback loss, each with its own B (paper section 4)."""

    name: ClassVar[str] = "clapp++both"
    references: ClassVar[dict[str, Reference]] = {"lateral": Own(), "feedback": Last()}
