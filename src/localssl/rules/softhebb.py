"""SoftHebb: soft winner-take-all and a Hebbian rule that keeps weights at length one; no loss, no labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from localssl.inputs import Inputs, Single
from localssl.rules.base import Batch, Form, Projections, Rule
from localssl.rules.per_layer import PerLayer, check_per_layer, of_layer


@dataclass(frozen=True, kw_only=True)
class HebbianRule(Rule):
    """A rule of credit "hebbian": ΔW = r · Σ y (x - u w) / max|·|, with what y and the rate r are left to it."""

    credit: ClassVar[str] = "hebbian"

    def activity(self, u: Tensor, layer: int) -> Tensor:
        """y of the weighted inputs u (N, channels, ...), of the same shape."""
        raise NotImplementedError

    def rate(self, length: Tensor, layer: int) -> Tensor:
        """The step of every neuron, for the length of its weights (channels,)."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class SoftHebb(HebbianRule):
    """ΔW = r Σ y (x - u w) / max|·| over samples and positions,  y = ± softmax over channels of t u   (Journé 2023).

    u = W * x, no bias; + for the channel with the largest u, - for all others; max|·|: the largest entry of the layer's
    sum. r_k = rate^l · | |w_k| - 1 |^½ per neuron k. The optimiser's rate multiplies it; .grad holds -ΔW, as the step
    goes up. Biases stay as they are (0 at the start): the rule has none. Momentum would go on with steps whose size
    the rule has already fixed by dividing by the largest entry, ten times as far at 0.9; the source has none, so
    the optimiser is plain SGD.

    The loss that is shown is none that the rule descends: it is the mean entropy, in nats, of softmax(t u) over the
    channels, log(channels) where all win alike, 0 where one does. Alignment with backpropagation is measured
    against another reference than "own" alone; ``compare`` shows none.

    As published (article and code): the update, batch normalisation without trained part before every layer,
    N(0, 1) · 25/sqrt(fan-in) at the start, t and rates of CIFAR-10's three layers (rate × lr: .08, .005, .01; batches
    of 10, one epoch). What differs in the common setting: the encoder (zero padding, max-pooling), triangle without a
    power (published .7, 1.4, 1), larger batches, standardised images and view a's augmentation instead of raw pixels;
    layers beyond the third take its t and rate (nothing is published for them).

    Args:
        t: inverse temperature; one number, or one a layer (layers beyond the list take its last).
        rates: rate^l, times the optimiser's; likewise.
    """

    name: ClassVar[str] = "softhebb"
    form: ClassVar[Form | None] = Form("no loss")
    optimizer: ClassVar[str | None] = "plain-sgd"
    lr: ClassVar[float | None] = 0.01
    weight_decay: ClassVar[float | None] = 0.0
    encoder_options: ClassVar[Mapping[str, Any]] = {
        "norm": "batch",
        "activation": "triangle",
        "late": True,
        "init": 25.0,
    }
    t: PerLayer = (1.0, 0.65, 0.25)
    rates: PerLayer = (8.0, 0.5, 1.0)

    def __post_init__(self) -> None:
        check_per_layer("t", self.t, 0.0)
        check_per_layer("rates", self.rates, 0.0)

    @override
    def inputs(self) -> Inputs:
        return Single()

    @override
    def activity(self, u: Tensor, layer: int) -> Tensor:
        y = torch.softmax(of_layer(self.t, layer) * u, 1)
        winner = u.argmax(1, keepdim=True)
        return (-y).scatter(1, winner, y.gather(1, winner))

    @override
    def rate(self, length: Tensor, layer: int) -> Tensor:
        return of_layer(self.rates, layer) * (length - 1).abs().sqrt()

    @override
    def layer_loss(self, batch: Batch, layer: int, projections: Projections) -> Tensor:
        log_p = torch.log_softmax(of_layer(self.t, layer) * batch.maps[layer], 1)
        return -(log_p.exp() * log_p).sum(1).mean()
