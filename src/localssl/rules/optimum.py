"""A yardstick, not a local rule: direct feedback whose B is trained to give backpropagation's error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from localssl.references import Last, Reference
from localssl.rules.base import ScoreRule


@dataclass(frozen=True, kw_only=True)
class Optimum(ScoreRule):
    """Δ∘ = dL_fb^l/dW^l at B∘ = argmin E |dL_fb^l/dz^l(B) − dL/dz^l|²  (paper Definition 3.4), B∘ by gradient steps.

    The losses are those of ``clapp++dfb``; the last layer's B learns from its own loss. Give the last layer a patch as
    large as its map, and L is ``bp-clapp++``'s.
    """

    name: ClassVar[str] = "optimum"
    credit: ClassVar[str] = "optimum"
    exceptions: ClassVar[Mapping[str, str]] = {"locality": "a yardstick: B learns from the backpropagated error"}
    references: ClassVar[dict[str, Reference]] = {"feedback": Last()}
