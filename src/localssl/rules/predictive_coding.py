"""Predictive coding and incremental predictive coding of a last-layer objective (paper Appendix C, Table A3)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from typing_extensions import override

from localssl.errors import UsageError, unknown
from localssl.rules.base import Batch, Form, Projections, Rule
from localssl.rules.bp import Bp
from localssl.rules.bp_clapp_pp import BpClappPP
from localssl.rules.lpl import BpLpl

OBJECTIVES = ("clapp", "lpl", "ce")


@dataclass(frozen=True, kw_only=True)
class PredictiveCoding(Rule):
    """F = Σ_{l<L} ½|h^l − μ^l|² + N · loss(μ^L),  ε^l = h^l − μ^l;  h ← argmin F, then ΔW^l ∝ ε^l ∂μ^l/∂W^l.

    Δh^l = η_h [−ε^l + (∂μ^(l+1)/∂h^l)ᵀ ε^(l+1)], ε^L = −N dloss/dμ^L, for ``steps`` steps with momentum from h = μ;
    weights as ``localssl.credit.predictive_coding`` has it. N: samples of the batch (two views of n images).

    States stand after activation and pooling, μ^l = block_l(h^(l−1)), as in pcx (Pinchetti et al. 2025). The paper's
    Appendix C has them before, μ^l = W^l ρ(h^(l−1)): ``--encoder-options late=true`` gives that, except that the loss
    is then of μ^L and not, as there, of ρ(μ^L). Which of the two, network, augmentation and probe Table A3 had is not
    stated, and no code is public: unverified. ``eta_h`` and ipc's ``steps`` are of Table A4's grid, pc's are not.

    Args:
        objective: "clapp", bp-clapp++'s loss with the hinge; "lpl", pull + push + 10 decorrelation; "ce", cross-entropy
            of a linear head (supervised). All of the last layer averaged over positions.
        steps: T.
        eta_h: rate of the states.
        momentum: of the states' gradient descent.
        learnt_feedback: errors descend through backward weights that learn beside the forward ones, the head's among
            them; no weight is transported.
        classes: of the labels, for "ce".
    """

    name: ClassVar[str] = "pc"
    form: ClassVar[Form | None] = Form("hinge (objective=clapp)", 2, "own layer, the last", "trained")
    credit: ClassVar[str] = "predictive-coding"
    objective: str = "clapp"
    steps: int = 8
    eta_h: float = 0.1
    momentum: float = 0.5
    learnt_feedback: bool = False
    classes: int = 10

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise unknown("objective", str(self.objective), OBJECTIVES)
        whole = {type(self.steps), type(self.classes)} == {int} and self.steps >= 1 and self.classes >= 1
        numbers = {type(self.eta_h), type(self.momentum)} <= {int, float}
        if not whole or not numbers or not 0 < self.eta_h < math.inf or not 0 <= self.momentum < 1:
            raise UsageError(
                f"{self.name} needs whole steps >= 1 and classes >= 1, a finite eta_h > 0 and 0 <= momentum < 1, got "
                f"{self.steps!r}, {self.classes!r}, {self.eta_h!r} and {self.momentum!r}"
            )

    @property
    def end_to_end(self) -> Rule:
        """The rule that backpropagates the same loss."""
        if self.objective == "ce":
            return Bp(classes=self.classes)
        return BpLpl() if self.objective == "lpl" else BpClappPP()

    @property
    def uses_labels(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the objective is supervised."""
        return self.end_to_end.uses_labels

    @property
    def uses_negatives(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the objective draws negatives."""
        return self.end_to_end.uses_negatives

    @property
    def exceptions(self) -> Mapping[str, str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The decorrelation of "lpl" is of the fourth order: under large activities the states leave for infinity."""
        diverges = self.objective == "lpl" and self.steps > 2
        return {"extremes": "lpl's slope grows with the cube of the activity: the states diverge"} if diverges else {}

    @override
    def patches(self, patches: list[int | None]) -> list[int | None]:
        return [None] * len(patches)

    @override
    def build(self, dims: Sequence[int]) -> dict[str, list[nn.Module]]:
        return self.end_to_end.build(dims)

    @override
    def losses(self, batch: Batch, projections: Projections) -> Tensor:
        return self.end_to_end.losses(batch, projections)


@dataclass(frozen=True, kw_only=True)
class IncrementalPredictiveCoding(PredictiveCoding):
    """As ``pc``, but every step moves h and W together, each down its gradient of F at the same point (iPC).

    Salvatori et al. 2024; the paper's choice. With T steps only the last T blocks learn: T >= L. The weights' optimiser
    steps T times a batch.
    """

    name: ClassVar[str] = "ipc"
    credit: ClassVar[str] = "incremental-predictive-coding"
    steps: int = 9
