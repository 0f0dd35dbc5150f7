"""Self-contrastive forward-forward: goodness up for an image beside itself, down for an image beside another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from typing_extensions import override

from localssl.errors import UsageError, unknown
from localssl.inputs import Inputs, Pairs
from localssl.losses import at_least_float32, decreasing
from localssl.rules.base import Batch, Form, Projections, Rule
from localssl.rules.per_layer import PerLayer, check_per_layer, of_layer


@dataclass(frozen=True, kw_only=True)
class SCFF(Rule):
    """L^l = mean over positions and samples of softplus(θ1 - G+) + softplus(G- - θ2), + λ mean over samples |G+|.

    Chen et al. 2025 and their code. G = mean over channels of ReLU(a)², at each position of the drive a (before
    activation and pooling); |G+|: the L2 norm over positions. θ1, θ2 and λ may differ from layer to layer; θ1 < θ2 is
    meant. Samples: n positive pairs, then n negative ones, as ``inputs.Pairs`` lays them out. A pair enters as the mean
    of its halves, so that block 1 has half of the source's drive: a = 2 × its output, G is 4 times the mean square.

    As published: pairs, goodness, thresholds, norm before every block, triangle activation in the first layers. What
    differs in the common setting: the encoder (zero padding; the source pads by reflection before it standardises) and
    its activation (triangle everywhere; the source ends with ReLU); layers are trained together, not one after the
    other; and only the input is paired: both streams run on, as the source does while it trains layer 2. Its last layer
    it trains with every layer paired anew (``experiments.greedy`` does), and so it evaluates, which only doubles the
    drive of images by themselves. The defaults are the source's for CIFAR-10's three layers; for more layers nothing is
    published, they take the third's.

    Args:
        theta1: θ1 of the positive pairs; one number, or one a layer (layers beyond the list take its last).
        theta2: θ2 of the negative pairs; likewise.
        penalty: λ; likewise.
        halves: "same", both halves of a pair from view a; "views", one from each view. See ``inputs.Pairs``.
        pad: width of the reflecting padding in front of the first block (2 in scff3 and scff4), over which the source
            standardises a pair once more; 0: none. See ``inputs.Pairs``.
    """

    name: ClassVar[str] = "scff"
    form: ClassVar[Form | None] = Form(
        "softplus(θ1 − x), −θ2 for negatives", 2, "itself, with gradient", "I / width", ("z_pos", "z_neg")
    )
    encoder_options: ClassVar[Mapping[str, Any]] = {
        "norm": "standardise",
        "activation": "triangle",
        "late": True,
        "paired": True,
    }
    theta1: PerLayer = (0.0, 5.0, 6.0)
    theta2: PerLayer = (1.0, 9.0, 10.0)
    penalty: PerLayer = (0.0012, 0.0007, 0.0005)
    halves: str = "same"
    pad: int = 0

    def __post_init__(self) -> None:
        check_per_layer("theta1", self.theta1)
        check_per_layer("theta2", self.theta2)
        check_per_layer("penalty", self.penalty, 0.0)
        if self.halves not in ("same", "views"):
            raise unknown("choice of halves", str(self.halves), ("same", "views"))
        if type(self.pad) is not int or self.pad < 0:
            raise UsageError(f"pad must be a whole number of 0 or more, got {self.pad!r}")

    @override
    def inputs(self) -> Inputs:
        return Pairs(self.halves, self.pad)

    @override
    def layer_loss(self, batch: Batch, layer: int, projections: Projections) -> Tensor:
        a = batch.maps[layer].flatten(2) if batch.maps[layer].ndim > 2 else batch.maps[layer][..., None]
        drive = at_least_float32(a)
        goodness = (4.0 if layer == 0 else 1.0) * torch.relu(drive).square().mean(1)  # (2n, positions)
        pos, neg = goodness.chunk(2)
        up = decreasing("softplus", pos, of_layer(self.theta1, layer)).mean()
        down = decreasing("softplus", -neg, -of_layer(self.theta2, layer)).mean()
        length = cast(Tensor, torch.linalg.vector_norm(pos, dim=1))  # pyright: ignore[reportUnknownMemberType]
        return up + down + of_layer(self.penalty, layer) * length.mean()
