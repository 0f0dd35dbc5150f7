"""The peers' own published settings as data: net, passes of training, images, probe. ``own_settings`` runs them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from localssl.experiments.greedy import Pass
from localssl.experiments.own_probe import OwnProbe


@dataclass(frozen=True)
class Recipe:
    """A published setting.

    Args:
        rule, data: whose, on what.
        options: of the rule.
        encoder: its net.
        passes, batch: its training.
        probe: its probe.
        channels, image_size: of the images; 1: grey.
        crop: side of the part of each image that is shown: anywhere in training, the middle in testing; None: all.
        mean, std: of the normalisation of pixels in [0, 1]; mean None: both measured on the training images.
        pad: images are padded by this much and cropped at random, and flipped; 0: flipped alone; None: neither.
        reflect: whether the padding reflects (else black).
        whiten: ZCA instead of the normalisation, before images are cropped and flipped; the normalisation comes after.
        blocks: those that the probe reads, from 1; none: all.
        standardise: features of every block per image.
        by_train: its one pass is ``train``'s: all layers together, a constant rate, every view by itself.
        lacks: what differs from the publication at any scale; "": nothing that is known of.
    """

    rule: str
    data: str
    encoder: str
    passes: tuple[Pass, ...]
    batch: int
    probe: OwnProbe
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    channels: int = 3
    image_size: int | None = None
    crop: int | None = None
    mean: tuple[float, ...] | None = (0.0,)
    std: tuple[float, ...] = (1.0,)
    pad: int | None = None
    reflect: bool = False
    whiten: bool = False
    blocks: tuple[int, ...] = ()
    standardise: bool = False
    by_train: bool = False
    lacks: str = ""


_MEAN, _STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
_SCFF = Recipe(
    "scff",
    "cifar10",
    "scff3",
    (
        Pass(1, 0.01, 1e-4, 0.7, 1000, 6),
        Pass(2, 0.002, 1e-4, 0.8, 100, 4),
        Pass(3, 2e-4, 3e-4, epochs=21, repaired=True),
    ),
    100,
    OwnProbe(dropout=0.2),
    options={"pad": 2},
    mean=_MEAN,
    std=_STD,
    pad=0,
    standardise=True,
)
RECIPES = {
    "scff-cifar10": _SCFF,
    "scff-stl10": replace(
        _SCFF,
        data="stl10",
        encoder="scff4",
        options={
            "theta1": (0.0, 5.0, 6.0, 5.0),
            "theta2": (2.0, 8.0, 8.0, 10.0),
            "penalty": (0.0, 0.0015, 0.005, 0.008),
            "pad": 2,
        },
        passes=(
            Pass(1, 0.026, 1e-3, 0.99, 1000, 4),
            Pass(2, 0.003, 3e-4, 0.8, 200, 5),
            Pass(3, 0.001, epochs=12),
            Pass(4, 8e-5, 1e-3, epochs=12, repaired=True),
        ),
        probe=OwnProbe(dropout=0.6, epochs=100),
        std=(0.2471, 0.2435, 0.2616),
        pad=4,
        blocks=(3, 4),
        lacks="the last block is read through 3 x 3 means (there maxima)",
    ),
    "softhebb-cifar10": Recipe(
        "softhebb",
        "cifar10",
        "softhebb3",
        (Pass(None, 0.01, optimiser="plain-sgd"),),
        10,
        OwnProbe(dropout=0.5),
        blocks=(3,),
        by_train=True,
        lacks="layers learn together (as the code; greedily in the article)",
    ),
    "stochastic-ff-cifar10": Recipe(
        "stochastic-ff",
        "cifar10",
        "stochastic-ff3",
        tuple(
            Pass(layer, 1e-3 * (1 + math.cos(math.pi * epoch / 3)) / 2, 0.01)
            for epoch in range(3)
            for layer in (1, 2, 3)
        ),
        128,
        OwnProbe(lr=2.5e-4, epochs=60, batch=128, dropout=0.5, schedule="cosine", decoupled=True, squared=True),
        options={"copies": 20},
        pad=4,
        reflect=True,
        whiten=True,
        blocks=(3,),
        lacks="the probe's batch is not stated, 128 here; the best epoch is judged on test images there and shown "
        "beside the last here",
    ),
    "clapp-illing-stl10": Recipe(
        "clapp-illing",
        "stl10",
        "vgg6",
        (Pass(None, 2e-4, epochs=600, optimiser="adam"),),
        32,
        OwnProbe(epochs=300, batch=32, schedule="constant"),
        channels=1,
        crop=64,
        mean=(0.4120,),
        std=(0.2570,),
        pad=0,
        blocks=(6,),
        lacks="batches of 32 images in all (there on each of up to 4 GPUs)",
    ),
}
RECIPES["clapp-illing-cifar10"] = replace(
    RECIPES["clapp-illing-stl10"],
    data="cifar10",
    image_size=32,
    crop=None,
    mean=None,
    lacks="published on STL-10 alone: 3 x 3 patches here, 7 x 7 there",
)
