"""SCFF on MNIST under its published recipe: 784-2000-2000, greedy, its own probe on 4,000 features (98.7 %)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from localssl import encoders, evaluate, rules
from localssl.data.sources import Images, open_images
from localssl.data.specs import Augmentation
from localssl.encoders import Encoder
from localssl.encoders.layers import Standardise
from localssl.experiments import greedy, left, own_probe, published
from localssl.experiments.cells import Part, Settings, run_cells
from localssl.experiments.greedy import Pass
from localssl.experiments.own_probe import OwnProbe
from localssl.learner import Learner
from localssl.system.files import write_atomic

PUBLISHED = published.PEERS["scff"]["mnist"]  # Chen et al. 2025, table and repository
DATA, PIXELS, WIDTH, BATCH, SHIFT = "mnist", 28 * 28, 2000, 100, 2
RULE: dict[str, Any] = {"theta1": (4.0, 1.0), "theta2": (6.0, 1.0), "penalty": (1e-4, 0.0), "halves": "views"}
WEIGHT_DECAY = 1e-4
LAYERS = ((0.003, 0.9, 1000, 20), (0.002, 0.6, 1500, 9))  # rate, its factor, batches between two, epochs
PROBE = OwnProbe(dropout=0.2)


def run(settings: Settings) -> None:
    """SCFF on MNIST by its published recipe and probe, beside the untrained net (about an hour on one core)."""
    seeds = range(settings.seeds or 1)
    parts = [
        part
        for seed in seeds
        for part in (
            *(Part(f"layer{layer}-s{seed}", train, (layer, seed)) for layer in range(1, len(LAYERS) + 1)),
            Part(f"probe-s{seed}", probe, (len(LAYERS), seed)),
            Part(f"untrained-s{seed}", probe, (0, seed)),
        )
    ]
    if settings.jobs > 1:  # a layer needs the one below
        settings = Settings(settings.out, settings.data_root, settings.seeds, 1, settings.threads, settings.scale)
    found = [r for r in run_cells(parts, settings) if "accuracy" in r]
    mark = published.in_own_setting(PUBLISHED, [r["accuracy"] for r in found if r["config"][0] > 0])
    rows: list[list[object]] = []
    for r in found:
        name, verdict = ("scff", mark) if r["config"][0] > 0 else ("untrained", "control")
        rows.append([name, r["config"][1], r["accuracy"], PUBLISHED.accuracy, verdict])
    caption = (
        f"{found[0]['data']}: MLP of two layers of {WIDTH} units, batches of {BATCH}, "
        f"{' + '.join(str(epochs) for *_, epochs in LAYERS)} epochs, greedy; linear classifier on both layers' "
        f"activities, standardised per image and layer, dropout {PROBE.dropout:g}, Adam {PROBE.lr:g}, {PROBE.epochs} "
        f"epochs; accuracy (%) on the test images after the last; published: table and repository of Chen et al. 2025"
    )
    evaluate.to_csv(settings.out / "scff-mnist.csv", ["net", "seed", "accuracy", "published", "verdict"], rows, caption)
    for row in rows:
        print(" ".join(map(str, row)))
    print(f"written: {settings.out / 'scff-mnist.csv'}")


def train(settings: Settings, layer: int, seed: int) -> dict[str, Any]:
    """Train one layer (1 or 2) on the frozen ones below, into ``weights/``; after the last to ``runs/``, too."""
    images = _images(settings, "train")
    learner = Learner(_encoder(settings, layer, layer - 1, seed), rules.get("scff", **RULE), (PIXELS,))
    rate, factor, period, epochs = LAYERS[layer - 1]
    torch.manual_seed(1000 * layer + seed)
    how = Pass(layer, rate, WEIGHT_DECAY, factor, period, epochs)
    losses = greedy.train(learner, images, lambda x: (shifted(x), shifted(x)), how, BATCH)
    block = learner.encoder.blocks[-1]
    path = _weights(settings, layer, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach() for name, value in block.state_dict().items()}
    write_atomic(path, functools.partial(torch.save, state))
    if layer == len(LAYERS):
        left.leave(
            settings,
            f"s{seed}",
            "scff-mnist",
            learner,
            images,
            seed,
            rule_options=RULE,
            augmentation=Augmentation(kind="crops", pad=SHIFT),
            batch_size=BATCH,
            epochs=sum(epochs for *_, epochs in LAYERS),
            lr=rate,
            weight_decay=WEIGHT_DECAY,
        )
    return {"data": images.name, "losses": losses}


def probe(settings: Settings, trained: int, seed: int) -> dict[str, Any]:
    """The source's probe of the net whose first ``trained`` layers are trained."""
    parts = [_images(settings, split) for split in ("train", "test")]
    encoder = _encoder(settings, len(LAYERS), trained, seed).eval()
    x, x_test = (_features(encoder, images) for images in parts)
    y, y_test = (images.labels for images in parts)
    assert y is not None
    assert y_test is not None
    last, _ = own_probe.accuracy(lambda i: x[i], y, lambda i: x_test[i], y_test, PROBE, seed)
    return {"data": parts[0].name, "accuracy": last, "features": x.shape[1]}


def shifted(images: Tensor) -> Tensor:
    """Every uint8 image (n, 1, H, W) moved by whole pixels, round(U(-2, 2)) each way, zeros behind it; (n, H * W)."""
    n, _, height, width = images.shape
    padded = F.pad(images[:, 0].float() / 255, (SHIFT,) * 4)
    moved = torch.empty(2, n, 1).uniform_(-SHIFT, SHIFT).round().long() + SHIFT
    rows, columns = moved[0] + torch.arange(height), moved[1] + torch.arange(width)
    image = torch.arange(n)[:, None, None]
    return padded[image, rows[:, :, None], columns[:, None, :]].flatten(1)


def _images(settings: Settings, split: str) -> Images:
    return open_images(DATA, split, root=settings.data_root, image_size=28)


def _weights(settings: Settings, layer: int, seed: int) -> Path:
    return settings.out / "weights" / f"layer{layer}-s{seed}.pt"


def _encoder(settings: Settings, layers: int, trained: int, seed: int) -> Encoder:
    """The net's first layers, drawn from the seed, with the trained weights of the first ``trained``."""
    torch.manual_seed(seed)
    encoder = encoders.mlp(PIXELS, (WIDTH,) * layers, **rules.get("scff").encoder_options)
    for layer in range(1, trained + 1):
        state: dict[str, Tensor] = torch.load(_weights(settings, layer, seed), weights_only=True)
        encoder.blocks[layer - 1].load_state_dict(state)
    return encoder


@torch.no_grad()
def _features(encoder: Encoder, images: Images) -> Tensor:
    """Both layers' activities, each standardised per image: (N, 4000)."""
    standardise: Callable[[Tensor], Tensor] = Standardise()
    out = torch.empty(len(images), WIDTH * len(encoder.blocks))
    for index in torch.arange(len(images)).split(1000):
        x = images.batch(index).flatten(1).float() / 255
        out[index] = torch.cat([standardise(z) for z in encoder.emitted(x)], 1)
    return out
