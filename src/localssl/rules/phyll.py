"""PhyLL: the cosine with one fixed random direction a layer is larger for the image than for its corruption."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from localssl.errors import UsageError
from localssl.inputs import Hybrids, LabelInImage
from localssl.losses import at_least_float32
from localssl.rules.base import Batch, Form, Projections, Rule

EPS = 1e-6  # the least length that an activity counts as


class Direction(nn.Module):
    """Cosine with ξ, a vector of independent N(0, 1), scaled to length one and never trained: a buffer."""

    weight: Tensor

    def __init__(self, d: int):
        super().__init__()
        self.register_buffer("weight", F.normalize(torch.randn(d), dim=0))

    def forward(self, z: Tensor) -> Tensor:
        """(N,) for activities z (N, d)."""
        return F.cosine_similarity(at_least_float32(z), self.weight[None], dim=1, eps=EPS)


@dataclass(frozen=True, kw_only=True)
class PhyLL(Rule):
    """L^l = mean_i log(1 + exp(-θ (cos(z_pos,i, ξ^l) - cos(z_neg,i, ξ^l))))  (Momeni et al. 2023).

    z^l: the readout; ξ^l: fixed, drawn once a layer. The cosine normalises: raw activities go on to the next block.
    Positives: both views; negative i: a hybrid of positive i and another image (``inputs.Hybrids``). Unverified: this
    unsupervised form is in the article but not in the authors' code; it is given from memory. With ``labelled`` it is
    the form of that code: the label written into positive i, a wrong one into negative i (``inputs.LabelInImage``); its
    example has GELU units (--encoder-options activation=gelu).

    Args:
        theta: θ; published: 4, and 5 for optics.
        views: 2, or 1 for view a alone.
        blurs: of the hybrids' mask.
        labelled: labels in the images in place of hybrids.
        classes: of the labels.
    """

    name: ClassVar[str] = "phyll"
    form: ClassVar[Form | None] = Form("softplus(−θx)", 1, "ξ, fixed and random", "I", ("ξ", "ξ"), "z of length one")
    theta: float = 4.0
    views: int = 2
    blurs: int = 8
    labelled: bool = False
    classes: int = 10

    def __post_init__(self) -> None:
        if type(self.labelled) is not bool:
            raise UsageError(f"labelled must be true or false, got {self.labelled!r}")
        if type(self.theta) not in (int, float) or not 0 < self.theta < math.inf:
            raise UsageError(f"theta must be a number above 0, got {self.theta!r}")
        self.inputs()  # refuses what it does not take

    @property
    def uses_labels(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the inputs show labels."""
        return self.labelled

    @override
    def inputs(self) -> Hybrids | LabelInImage:
        return LabelInImage(self.views, self.classes, tall=True) if self.labelled else Hybrids(self.views, self.blurs)

    @override
    def build(self, dims: Sequence[int]) -> dict[str, list[nn.Module]]:
        return {"direction": [Direction(d) for d in dims]}

    @override
    def layer_loss(self, batch: Batch, layer: int, projections: Projections) -> Tensor:
        cosine = projections["direction"][layer](batch.z[layer])
        m = len(cosine) // 2
        return F.softplus(self.theta * (cosine[m:] - cosine[:m]), threshold=40).mean()
