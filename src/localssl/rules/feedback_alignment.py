"""The last layer's CLAPP++ loss, sent to the blocks by fixed random or sign-concordant feedback."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from localssl.errors import unknown
from localssl.rules.bp_clapp_pp import BpClappPP


@dataclass(frozen=True, kw_only=True)
class DFA(BpClappPP):
    """L of bp-clapp++; ΔW^l ∝ (F^l δ^L ∘ ρ'(a^l)) z^(l-1), δ^L = dL/dz^L, F^l fixed random (Nøkland 2016; Table 2).

    In the paper's words a positive of modulator γ^L gives dW_ji^l = γ^L (F^l B^L c^L)_j ρ'(a_j^l) z_i^(l-1), a z_neg
    the negative of it; B^L is trained by L. F^l ~ N(0, 1/d_L), part "direct". δ^L is that of the averaged
    readout, summed over a sample's roles; max-pooling hands δ^l to its winners. The scale of F and its form over
    positions are ours: the paper (52.30 on STL-10, "naive") gives neither, nor code; unverified.

    Args:
        spatial: keep the learner's patches in the last layer's readout.
        per_position: F^l has rows of its own for every position, (channels * positions, d_L); otherwise (channels, d_L)
            and every position gets the same, 1/positions of F^l δ^L.
    """

    name: ClassVar[str] = "dfa"
    credit: ClassVar[str] = "direct-feedback-alignment"
    per_position: bool = False

    @override
    def patches(self, patches: list[int | None]) -> list[int | None]:
        return [1 if self.per_position else None] * (len(patches) - 1) + super().patches(patches)[-1:]


@dataclass(frozen=True, kw_only=True)
class FA(BpClappPP):
    """L of bp-clapp++; δ^(l-1) = (W_fb^l)ᵀ (ρ'(a^l) ∘ δ^l), ΔW^l ∝ (ρ'(a^l) ∘ δ^l) z^(l-1) (Lillicrap et al. 2016).

    W_fb^l: fixed, of the shape of W^l, drawn as PyTorch draws a layer's weights; part "backward". That scale is ours.

    Args:
        spatial: keep the learner's patches in the last layer's readout.
    """

    name: ClassVar[str] = "fa"
    credit: ClassVar[str] = "feedback-alignment"


@dataclass(frozen=True, kw_only=True)
class SignSymmetric(BpClappPP):
    """L of bp-clapp++; as ``fa``, through sign(W^l) ∘ |W_fb^l|, the sign taken anew every step (Liao et al. 2016).

    Args:
        spatial: keep the learner's patches in the last layer's readout.
        magnitudes: "fixed", |W_fb^l| entry by entry (their frSF); "uniform", its mean over the layer (their uSF, which
            has 1, but for the scale).
    """

    name: ClassVar[str] = "sign-symmetric"
    credit: ClassVar[str] = "sign-symmetric"
    magnitudes: str = "fixed"

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        if self.magnitudes not in ("fixed", "uniform"):
            raise unknown("choice of magnitudes", str(self.magnitudes), ("fixed", "uniform"))
