"""Forward-Forward: the squared activity of a block is high for real inputs and low for wrong ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from localssl.errors import UsageError
from localssl.inputs import Hybrids, LabelInImage
from localssl.losses import at_least_float32
from localssl.rules.base import Batch, Form, Projections, Rule


class PeerMean(nn.Module):
    """How far the units' mean activities lie apart: mean over units of (mean of m - m)², m a running mean of each.

    m <- 0.9 m + 0.1 (mean over the batch), from 0.5; the gradient runs through the new part only. As the statistics of
    batch normalisation, m moves in training mode only.
    """

    weight: Tensor

    def __init__(self, units: int):
        super().__init__()
        self.register_buffer("weight", torch.full((units,), 0.5))

    def forward(self, z: Tensor) -> Tensor:
        """The penalty for activities z (n, units), a scalar."""
        m = 0.9 * self.weight + 0.1 * z.mean(0)
        if self.training:
            self.weight.copy_(m.detach())
        return (m.mean() - m).square().mean()


@dataclass(frozen=True, kw_only=True)
class Goodness(Rule):
    """The loss of both forms; inputs are positives above as many negatives. See ``ForwardForward``."""

    encoder_options: ClassVar[Mapping[str, Any]] = {"norm": "length"}
    form: ClassVar[Form | None] = Form(
        "softplus(θD − x), −θD for negatives", 2, "itself, with gradient", "I", ("z_pos", "z_neg")
    )
    threshold: float = 1.0
    peer: float = 0.0
    views: int = 2

    def __post_init__(self) -> None:
        for name, least in (("threshold", "above 0"), ("peer", "0 or more")):
            value = getattr(self, name)
            fine = type(value) in (int, float) and math.isfinite(value)
            if not fine or value < 0 or (name == "threshold" and value == 0):
                raise UsageError(f"{name} must be a number {least}, got {value!r}")
        self.inputs()  # refuses what it does not take

    @override
    def build(self, dims: Sequence[int]) -> dict[str, list[nn.Module]]:
        return {"peer": [PeerMean(d) for d in dims]} if self.peer else {}

    @override
    def layer_loss(self, batch: Batch, layer: int, projections: Projections) -> Tensor:
        z = at_least_float32(batch.maps[layer].flatten(1))  # a sum of thousands of squares
        above = z.square().sum(1) - self.threshold * z.shape[1]
        m = len(above) // 2
        loss = F.softplus(torch.cat((-above[:m], above[m:])), threshold=40).mean()  # 40: as losses.decreasing
        return loss + self.peer * projections["peer"][layer](batch.z[layer][:m]) if self.peer else loss


@dataclass(frozen=True, kw_only=True)
class ForwardForward(Goodness):
    """L^l = mean over all samples of softplus(θD - G) for a positive, softplus(G - θD) for a negative (Hinton 2022).

    The goodness G = Σ z² runs over all D numbers of the block's output: D units of a linear block; channels ×
    positions, after the pooling, of a convolutional one (ours; Hinton has none). Positives go up. Every block's input,
    the image too, is divided by its root mean square, or the next block could read off the goodness.

    Positives: both views. Negatives: hybrids of two images (``inputs.Hybrids``). Unverified: the mask's details and the
    recipe around it are from memory and third-party descriptions of the article.

    Args:
        threshold: θ, for each of the D numbers; published: 1.
        peer: weight of ``PeerMean`` of the positives' readout; 0: none. The public supervised code has 0.03.
        views: 2, or 1 for view a alone.
        blurs: of the hybrids' mask.
    """

    name: ClassVar[str] = "ff"
    blurs: int = 8

    @override
    def inputs(self) -> Hybrids:
        return Hybrids(self.views, self.blurs)


@dataclass(frozen=True, kw_only=True)
class ForwardForwardSupervised(Goodness):
    """The loss of ``ff`` for images with a label written in: the right one for positives, a wrong one for negatives.

    See ``inputs.LabelInImage``. Hinton 2022, in the conventions of the public code loeweX/Forward-Forward.

    Args:
        threshold, peer, views: as those of ``ff``.
        classes: number of labels.
    """

    name: ClassVar[str] = "ff-supervised"
    uses_labels: ClassVar[bool] = True
    classes: int = 10

    @override
    def inputs(self) -> LabelInImage:
        return LabelInImage(self.views, self.classes)
