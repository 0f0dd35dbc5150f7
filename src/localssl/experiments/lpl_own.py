"""LPL in its own published setting: Halvagal & Zenke's (2023) network, schedule and probe, on CIFAR-10 and STL-10.

CIFAR-10: trained on 40,000 images; the probe is fitted on the labels of the other 10,000 and tested on the test set.
STL-10: trained on 95,000 of the unlabelled images, at 96 pixels (their code can also shrink them to 32; which of the
two gave the published number is not stated); the probe is fitted on 4,500 of the 5,000 labelled ones. The recipe
differs from ``localssl train`` in so much (L2 in Adam, none of it on biases, a rate per epoch, a probe of its own) that
it has its own few lines here; the updates are the learner's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from localssl import evaluate, rules
from localssl.data import order
from localssl.data.sources import Images, drawn, open_images, stratified_holdout
from localssl.data.specs import SPECS, Augmentation
from localssl.data.views import Views
from localssl.encoders import Encoder, vgg11
from localssl.errors import RunError, UsageError
from localssl.experiments import left, published
from localssl.experiments.cells import Part, Settings, run_cells
from localssl.learner import Learner
from localssl.probe.activity import frozen
from localssl.report.tables import show
from localssl.runs import checkpoint
from localssl.runs.run import train_split
from localssl.system import devices
from localssl.system.files import write_atomic
from localssl.training.progress import Progress

PUBLISHED = published.PEERS["lpl"]
RATE, LAST_RATE, WEIGHT_DECAY = 1e-3, 1e-6, 1.5e-6
PROBE_BATCH = 512
AUGMENTATION = Augmentation(crop_scale=(0.08, 1.0))


@dataclass(frozen=True)
class Scale:
    """Sizes, and what differs between the data sets. The paper's on CIFAR-10 are the defaults.

    Args:
        published: the data set whose number they are held against.
        data: data set of colour images.
        image_size: side they are brought to.
        mean, std: of the normalisation.
        images: so many of those trained on, drawn at random; None: all.
        width: factor on the channels.
        batch_size: images in a batch.
        epochs: of training; the rate rises over the first ``warm_up`` of them, from 0 in the first.
        warm_up: see ``rate``.
        held_out: images with labels that fit the probe; they are not trained on.
        left_out: images without labels that are not trained on either (their validation part).
        probe_epochs: of the probe.
        save_every: epochs from one checkpoint to the next.
    """

    published: str = "cifar10"
    data: str = "cifar10"
    image_size: int = 32
    mean: tuple[float, ...] = SPECS["cifar10"].mean or ()
    std: tuple[float, ...] = SPECS["cifar10"].std or ()
    images: int | None = None
    width: float = 1.0
    batch_size: int = 1024
    epochs: int = 800
    warm_up: int = 10
    held_out: int = 10_000
    left_out: int = 5_000
    probe_epochs: int = 20
    save_every: int = 10


_STL10 = Scale("stl10", "stl10", 96, (0.43, 0.42, 0.39), (0.27, 0.26, 0.27), held_out=4_500)
_CPU: dict[str, Any] = {"width": 0.25, "batch_size": 256, "epochs": 8, "warm_up": 2, "save_every": 1}
SCALES = {
    "paper": Scale(),
    "cpu": Scale(**_CPU),
    "stl10-paper": _STL10,
    "stl10-cpu": replace(_STL10, images=5_000, **_CPU),
}


def cifar10(settings: Settings) -> None:
    """LPL on CIFAR-10 in its published setting (CPU: width 0.25, 8 epochs, half an hour; --scale paper: a GPU)."""
    _run(settings, settings.scale)


def stl10(settings: Settings) -> None:
    """LPL on STL-10 in its published setting (CPU: width 0.25, 5,000 images, 8 epochs; --scale paper: a GPU)."""
    _run(settings, f"stl10-{settings.scale}")


def _run(settings: Settings, which: str) -> None:
    scale = SCALES[which]
    records = run_cells(
        [
            Part(f"{settings.scale}-{name}-s{seed}", work, (which, seed))
            for seed in range(settings.seeds or 1)
            for name, work in (("untrained", _untrained), ("lpl", _trained))
        ],
        settings,
    )
    rows: list[list[object]] = [
        [r["name"], r["seed"], r["accuracy"], r["features"], r["labels"], r["epochs"], r["loss"]] for r in records
    ]
    header = ["encoder", "seed", "accuracy", "features", "labels", "epochs", "loss"]
    found = [float(r["accuracy"]) for r in records if r["name"] == "lpl"]
    said = f"published: {PUBLISHED[scale.published]} %; {verdict(found, scale)}. {records[0]['protocol']}"
    path = settings.out / f"lpl-{scale.published}-{settings.scale}.csv"
    evaluate.to_csv(path, header, rows, said)
    show(f"LPL on {scale.published}, its own probe of the last layer, test accuracy in %", header, rows, said)
    print(f"written: {path}")


def verdict(found: Sequence[float], scale: Scale) -> str:
    """How accuracies (%) of some seeds stand to the published number, which has no interval."""
    full = SCALES["stl10-paper" if scale.published == "stl10" else "paper"]
    smaller = [
        f"{name.replace('_', ' ')} {getattr(scale, name):g} instead of {getattr(full, name):g}"
        for name in ("width", "batch_size", "epochs")
        if getattr(scale, name) != getattr(full, name)
    ]
    if scale.images:
        smaller.append(f"{scale.images:,} images")
    if smaller:
        return f"not comparable: scale ({', '.join(smaller)})"
    return published.in_own_setting(PUBLISHED[scale.published], found)


def rate(epoch: int, scale: Scale) -> float:
    """Learning rate of an epoch, counted from 0: up from 0, then a cosine down to 1e-6.

    As lightning-bolts' LinearWarmupCosineAnnealingLR, which the authors' code uses: the rise has warm_up - 1 steps, so
    the full rate is there in the last epoch of the warm-up and in the one after it.
    """
    if epoch < scale.warm_up:
        return RATE * epoch / max(1, scale.warm_up - 1)
    done = (epoch - scale.warm_up) / max(1, scale.epochs - scale.warm_up)
    return LAST_RATE + (RATE - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * done))


def parameter_groups(learner: Learner) -> list[dict[str, Any]]:
    """Weights decay, biases do not."""
    everything = list(learner.parameters())
    return [
        {"params": [p for p in everything if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in everything if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _untrained(settings: Settings, scale: str, seed: int) -> dict[str, Any]:
    return _cell(settings, SCALES[scale], seed, "untrained")


def _trained(settings: Settings, scale: str, seed: int) -> dict[str, Any]:
    return _cell(settings, SCALES[scale], seed, "lpl")


def _cell(settings: Settings, scale: Scale, seed: int, name: str) -> dict[str, Any]:
    device = devices.choose("auto")
    train, labelled, test = _parts(settings, scale)
    torch.manual_seed(seed)
    learner = Learner(vgg11(scale.width), rules.get("lpl"), train.shape).to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    views = _views(scale).to(device)
    loss: float | None = None
    if name == "lpl":
        state = settings.out / "runs" / f"{settings.scale}-{name}-s{seed}.pt"
        loss = _train(learner, views, train, scale, seed, state, device)
        left.leave(
            settings,
            state.stem,
            f"lpl-{scale.published}",
            learner,
            train,
            seed,
            rule_options={},
            mean=scale.mean,
            std=scale.std,
            augmentation=AUGMENTATION,
            batch_size=scale.batch_size,
            epochs=scale.epochs,
            lr=RATE,
            weight_decay=WEIGHT_DECAY,
            optimizer="adam-l2",
        )
    accuracy, features = _probe(learner.encoder, views, labelled, test, scale, seed, device)
    return {
        "name": name,
        "seed": seed,
        "accuracy": round(accuracy, 2),
        "features": features,
        "labels": len(labelled),
        "epochs": scale.epochs if name == "lpl" else 0,
        "loss": "" if loss is None else round(loss, 4),
        "protocol": evaluate.with_facts(_protocol(scale, train, labelled, test), train, test),
    }


def _protocol(scale: Scale, train: Images, labelled: Images, test: Images) -> str:
    return (
        f"VGG-11 convolutions at width {scale.width:g}; trained on {len(train):,} images without labels, "
        f"{scale.epochs} epochs, batches of {scale.batch_size}, Adam {RATE:g} (first epoch 0, warm-up "
        f"{scale.warm_up}, cosine), L2 {WEIGHT_DECAY:g}. Probe: last layer averaged over space, of images resized to "
        f"1.1 times and cropped in the centre; linear, on {len(labelled):,} other training images (stratified, seed "
        f"0), Adam 1e-3, batches of {PROBE_BATCH} in their order, summed cross-entropy, {scale.probe_epochs} epochs; "
        f"tested once, at the end, on {len(test):,} test images"
    )


def _parts(settings: Settings, scale: Scale) -> tuple[Images, Images, Images]:
    """Images to train on, images to fit the probe on, test images."""

    def opened(split: str) -> Images:
        return open_images(scale.data, split, root=settings.data_root, channels=3, image_size=scale.image_size)

    labelled, test = opened("train"), opened("test")
    if labelled.labels is None or test.labels is None or len(labelled) <= scale.held_out + 1:
        raise UsageError(f"{scale.data} needs labels, and more than {scale.held_out:,} training images")
    fit, rest = _halves(labelled, labelled.labels.numpy().astype(np.int64), scale.held_out)
    if train_split(scale.data) != "train":
        _, rest = _halves(opened(train_split(scale.data)), None, scale.left_out)
    if scale.images:
        rest = rest.subset(torch.as_tensor(drawn(len(rest), scale.images)))
    return rest, fit, test


def _halves(images: Images, labels: NDArray[np.int64] | None, held_out: int) -> tuple[Images, Images]:
    """So many images, drawn with seed 0, of each class alike; and the others."""
    held = torch.as_tensor(stratified_holdout(labels, len(images), held_out))
    return images.subset(held.nonzero()[:, 0]), images.subset((~held).nonzero()[:, 0])


def _views(scale: Scale) -> Views:
    return Views(AUGMENTATION, scale.mean, scale.std, 3, scale.image_size)


def _train(
    learner: Learner, views: Views, images: Images, scale: Scale, seed: int, file: Path, device: torch.device
) -> float:
    """Train to the end, or go on from ``file``; returns the mean loss of the last epoch, summed over layers."""
    optimiser = torch.optim.Adam(parameter_groups(learner), lr=RATE)
    checkpoint.seed_rng(seed + 1)
    first, loss = 0, math.nan
    if file.is_file():
        first, loss = _restore(file, learner, optimiser)
    steps = len(images) // scale.batch_size
    if steps == 0:
        raise UsageError(f"{len(images):,} images are fewer than a batch of {scale.batch_size}")
    with Progress(first * steps, scale.epochs * steps, scale.batch_size) as progress:
        for epoch in range(first, scale.epochs):
            for group in optimiser.param_groups:
                group["lr"] = rate(epoch, scale)
            total = torch.zeros((), device=device)
            for step, index in enumerate(order.batches(seed, epoch, len(images), scale.batch_size), start=1):
                for losses in learner.updates(*views(images.batch(index).to(device))):
                    optimiser.step()
                    optimiser.zero_grad()
                    total += losses.sum()
                progress.advance(epoch * steps + step)
            loss = float(total) / steps
            progress.line([f"epoch {epoch + 1}, loss {loss:.3g}"])
            if not math.isfinite(loss):
                raise RunError(f"the loss became NaN or infinite in epoch {epoch + 1}")
            if (epoch + 1) % scale.save_every == 0 or epoch + 1 == scale.epochs:
                _save(file, learner, optimiser, epoch + 1, loss)
    return loss


def _save(file: Path, learner: Learner, optimiser: torch.optim.Optimizer, epoch: int, loss: float) -> None:
    state = {
        "epoch": epoch,
        "loss": loss,
        "learner": learner.state_dict(),
        "optimizer": optimiser.state_dict(),
        "rng": checkpoint.rng_state(),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, lambda temporary: torch.save(state, temporary))


def _restore(file: Path, learner: Learner, optimiser: torch.optim.Optimizer) -> tuple[int, float]:
    """The number of epochs that are done, and the last one's loss."""
    state: Mapping[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    checkpoint.load_weights(learner, state["learner"], str(file))
    optimiser.load_state_dict(state["optimizer"])
    checkpoint.set_rng_state(state["rng"])
    return int(state["epoch"]), float(state["loss"])


@torch.no_grad()
def _features(encoder: Encoder, views: Views, images: Images, device: torch.device) -> Tensor:
    """The last block's output averaged over space, (N, d), of images resized to 1.1 times and cropped in the centre."""
    found: list[Tensor] = []
    size = images.shape[-1]
    larger = int(1.1 * size)
    edge = round((larger - size) / 2)
    with frozen(encoder):
        for index in torch.arange(len(images)).split(PROBE_BATCH):
            x = images.batch(index).to(device).float() / 255
            x = F.interpolate(x, (larger, larger), mode="bilinear", antialias=True)
            x = views.normalise(x[:, :, edge : edge + size, edge : edge + size])
            found.append(encoder.emitted(x)[-1].flatten(2).mean(2))
    return torch.cat(found)


def _probe(
    encoder: Encoder, views: Views, labelled: Images, test: Images, scale: Scale, seed: int, device: torch.device
) -> tuple[float, int]:
    """Test accuracy (%) of the published probe, and the number of features."""
    assert labelled.labels is not None
    assert test.labels is not None
    x, y = _features(encoder, views, labelled, device), labelled.labels.to(device)
    torch.manual_seed(seed)
    classifier = nn.Linear(x.shape[1], len(labelled.classes)).to(device)
    optimiser = torch.optim.Adam(classifier.parameters(), lr=1e-3)
    for _ in range(scale.probe_epochs):
        for start in range(0, len(x), PROBE_BATCH):
            part = slice(start, start + PROBE_BATCH)
            loss = F.cross_entropy(classifier(x[part]), y[part], reduction="sum")
            optimiser.zero_grad()
            loss.backward()  # pyright: ignore[reportUnknownMemberType]
            optimiser.step()
    with torch.no_grad():
        right = classifier(_features(encoder, views, test, device)).argmax(1) == test.labels.to(device)
    return 100 * float(right.float().mean()), x.shape[1]
