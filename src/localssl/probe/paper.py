"""The paper's protocol: linear classifiers trained by Adam on features recomputed on augmented images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import kornia.augmentation as K
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from localssl.data.sources import Images
from localssl.data.specs import Augmentation
from localssl.data.views import transform
from localssl.encoders import Encoder
from localssl.errors import UsageError
from localssl.probe import budgets as bg
from localssl.probe.activity import diverged, frozen, of_batch, patch_sizes
from localssl.probe.result import ProbeResult, row
from localssl.readout import Patches

STL10_SIZE = 96
ENLARGED = int(1.1 * STL10_SIZE)
Report: TypeAlias = Callable[[int, int, float], None]


def paper_probe(
    encoder: Encoder,
    train: Images,
    test: Images,
    *,
    patches: Patches,
    normalise: nn.Module,
    augmentation: Augmentation,
    epochs: int = 300,
    batch_size: int = 32,
    lr: float = 1e-3,
    weight_decay: float = 0.0,
    device: torch.device | str = "cpu",
    seed: int = 0,
    report: Report | None = None,
) -> ProbeResult:
    """The paper's probe: a linear classifier trained by Adam on features recomputed on augmented images every epoch.

    One classifier on all layers' features together, as in the paper, and one on each layer's alone: they share
    the pass through the encoder and nothing else. The accuracy is the last epoch's. The encoder and ``normalise`` are
    moved to ``device``; the encoder's weights and modes stay as they are.

    Args:
        encoder: frozen, in evaluation mode.
        train, test: labelled images.
        patches: one patch size per block, paper Table A2; None: the mean over all positions.
        normalise: maps a batch of images to what the encoder was trained on.
        augmentation: of the pre-training; "affine" and "crops" data are augmented alike, other data by a
            RandomResizedCrop of 8 to 100 % of the area and a flip.
        epochs: passes over the training images.
        batch_size: training images at a time.
        lr: Adam's rate.
        weight_decay: decoupled; the paper: 0 on CIFAR-10 and STL-10, 1e-5 on Tiny ImageNet.
        device: where everything runs.
        seed: of the classifiers' start, the order of the images and the augmentation; torch's global generators
            are left as they were.
        report: called after every epoch with its number (from 1), ``epochs`` and the mean loss of "all".

    Raises:
        UsageError: labels missing, images that the encoder does not accept, features that are not finite.
    """
    y = bg.check_labels(train.labels, test.labels, train.classes, train.name)
    if epochs < 1 or batch_size < 1:
        raise UsageError(f"epochs is {epochs} and batch_size {batch_size}; both must be one or more")
    if train.shape != test.shape:
        raise UsageError(f"training images are {train.shape}, test images {test.shape}; give both the same size")
    encoder.to(device)
    normalise.to(device)
    size = train.shape[-1]
    cuda = [device] if torch.device(device).type == "cuda" else []
    with frozen(encoder), torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        sizes, dims = patch_sizes(encoder, train.shape, patches)
        dims = [*dims, sum(dims)]
        heads = nn.ModuleList(nn.Linear(d, len(y.names)) for d in dims).to(device)
        optimiser = torch.optim.AdamW(heads.parameters(), lr=lr, weight_decay=weight_decay)
        augment = _augmentation(augmentation, train.shape[0], size)

        def logits(x: Tensor) -> list[Tensor]:
            with torch.no_grad():
                parts = of_batch(encoder, normalise(x), sizes)
            for i, part in enumerate(parts):
                if not part.isfinite().all():
                    raise diverged(i + 1)
            return [head(part) for head, part in zip(heads, [*parts, torch.cat(parts, 1)], strict=True)]

        for epoch in range(epochs):
            total = 0.0
            for index in torch.randperm(len(train)).split(batch_size):
                target = y.train[index].to(device)
                with torch.no_grad():
                    x = augment(train.batch(index).to(device).float() / 255)
                losses = torch.stack([F.cross_entropy(out, target) for out in logits(x)])
                optimiser.zero_grad()
                losses.sum().backward()  # pyright: ignore[reportUnknownMemberType]
                optimiser.step()
                total += float(losses[-1].detach()) * len(index)
            if report is not None:
                report(epoch + 1, epochs, total / len(train))

        correct = [0] * len(heads)
        with torch.no_grad():
            for index in torch.arange(len(test)).split(256):
                x = _test_view(test.batch(index).to(device).float() / 255)
                target = y.test[index].to(device)
                correct = [n + int((out.argmax(1) == target).sum()) for n, out in zip(correct, logits(x), strict=True)]
    names = [*(str(i + 1) for i in range(len(dims) - 1)), "all"]
    rows = [row(n, "linear", "all", [100 * c / len(test)], d) for n, c, d in zip(names, correct, dims, strict=True)]
    how = (
        "the pre-training's random affine map"
        if augmentation.kind == "affine"
        else "random resized crop of 8 to 100 % of the area, flip"
    )
    shown = f", resized to {ENLARGED / size:.3g} times the size and centre-cropped" if size == STL10_SIZE else ""
    protocol = (
        f"Paper protocol: all {len(train):,} training labels; frozen encoder as given (its last weights, no epoch "
        f"chosen), patch-averaged features recomputed in every epoch on augmented training images ({how}); linear "
        f"classifiers, cross-entropy, Adam {lr:g}, weight decay {weight_decay:g}, batch {batch_size}, {epochs} epochs. "
        f"Accuracy after the last epoch on the test images without augmentation{shown}."
    )
    return ProbeResult(tuple(rows), protocol)


def _augmentation(augmentation: Augmentation, channels: int, size: int) -> nn.Module:
    """Random transforms of float images in [0, 1] while the classifier is trained."""
    if augmentation.kind in ("affine", "crops"):
        return transform(augmentation, channels, size)
    options: dict[str, Any] = {"scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3), "align_corners": False}
    return nn.Sequential(K.RandomResizedCrop((size, size), **options), K.RandomHorizontalFlip(p=0.5))


def _test_view(x: Tensor) -> Tensor:
    """Test images as they are; at STL-10's size enlarged by 1.1 and centre-cropped, as in the paper's protocol."""
    if x.shape[-1] != STL10_SIZE:
        return x
    start = (ENLARGED - STL10_SIZE) // 2
    enlarged = F.interpolate(x, (ENLARGED, ENLARGED), mode="bilinear", antialias=True)
    return enlarged[..., start : start + STL10_SIZE, start : start + STL10_SIZE]
