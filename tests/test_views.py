"""The two views: independent, repeatable, normalised; and the whole transform against torchvision's, on images."""

from __future__ import annotations

import io
import os
import random
from functools import cache
from pathlib import Path

import kornia.augmentation as K
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from localssl.data.specs import SPECS, Augmentation
from localssl.data.views import Normalise, Views, transform

from .views_util import JITTER, RATIO, WRONG_JITTERS, colour_numbers, in_batches, same, textures

CIFAR, AFFINE = SPECS["cifar10"].augmentation, SPECS["digits"].augmentation
STILL = Augmentation("affine", degrees=0.0, translate=0.0, scale=(1.0, 1.0), shear=0.0)


def make_views(augmentation: Augmentation = CIFAR, channels: int = 3, size: int = 32) -> Views:
    return Views(augmentation, (0.5,) * channels, (0.25,) * channels, channels, size)


@pytest.mark.parametrize("kind", ["simclr", "affine"])
def test_views_of_an_image_and_images_of_a_batch_are_drawn_independently(kind: str) -> None:
    torch.manual_seed(15)
    n, size = 2000, 16
    augmentation = CIFAR if kind == "simclr" else AFFINE
    images = textures(1, 3, size).expand(n, 3, size, size)
    view_a, view_b = (view.mean((1, 2, 3)) for view in make_views(augmentation, 3, size)(images))
    for a, b in [(view_a, view_b), (view_a[1:], view_a[:-1]), (view_b[1:], view_b[:-1]), (view_a[1:], view_b[:-1])]:
        assert a.std() > 0.01
        assert torch.corrcoef(torch.stack((a, b)))[0, 1].abs() <= 4 / n**0.5
    assert same(view_a, view_b)


def test_the_two_views_do_not_share_the_order_of_the_jitter_steps() -> None:
    torch.manual_seed(16)
    views, orders = make_views(CIFAR, 3, 8), []
    jitter = next(m for m in views.transform if isinstance(m, K.ColorJitter))
    jitter.register_forward_hook(lambda module, _inputs, _out: orders.append(module._params["order"].tolist()))
    n = 200
    for _ in range(n):
        views(torch.zeros(1, 3, 8, 8))
    assert len(orders) == 2 * n
    assert sum(a == b for a, b in zip(orders[::2], orders[1::2], strict=True)) <= 22  # n/24, and 4 standard errors


@pytest.mark.parametrize("augmentation", [CIFAR, AFFINE], ids=["simclr", "affine"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_views_come_from_torchs_generator_alone(augmentation: Augmentation, dtype: torch.dtype) -> None:
    views = make_views(augmentation).to(dtype)
    images = (textures(8, 3, 32) * 255).to(torch.uint8)
    torch.manual_seed(17)
    views(images)
    state, others = torch.get_rng_state(), (random.getstate(), np.random.get_state()[1].tolist())
    first = views(images)
    assert others == (random.getstate(), np.random.get_state()[1].tolist())
    next_ones = views(images)
    torch.set_rng_state(state)
    again = make_views(augmentation).to(dtype)(images)
    for a, b, c in zip(first, again, next_ones, strict=True):
        assert a.dtype == dtype
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_float64_views_are_made_in_float64() -> None:
    torch.manual_seed(18)
    images = torch.rand(8, 3, 32, 32, dtype=torch.float64)
    for view in make_views(STILL).double()(images):
        torch.testing.assert_close(view, (images - 0.5) / 0.25, atol=1e-12, rtol=0)
    for view in make_views().double()(images):
        assert (view != view.float()).double().mean() > 0.5


RECIPE = {
    "cifar10": ((125.3 / 255, 123.0 / 255, 113.9 / 255), (63.0 / 255, 62.1 / 255, 66.7 / 255)),
    "stl10": ((0.4313, 0.4156, 0.3663), (0.2683, 0.2610, 0.2687)),
    "tiny-imagenet": ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
}


@pytest.mark.parametrize("data", RECIPE)
def test_views_are_normalised_by_the_recipes_constants(data: str) -> None:
    spec = SPECS[data]
    assert spec.mean is not None
    assert spec.std is not None
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16)
    expected = F.normalize(images.double() / 255, *(list(numbers) for numbers in RECIPE[data]))
    made = [Normalise(spec.mean, spec.std)(images), Normalise(spec.mean, spec.std)(images.float() / 255)]
    made += Views(STILL, spec.mean, spec.std, 3, 16)(images)
    made += Views(STILL, spec.mean, spec.std, 3, 16)(images.float() / 255)
    for out in made:
        torch.testing.assert_close(out.double(), expected, atol=2e-5, rtol=0)


# --- all of it, on images


def blobs(n: int) -> Tensor:
    generator = torch.Generator().manual_seed(20)
    tint = 0.5 + 0.25 * torch.randn(n, 3, 1, 1, generator=generator)
    coarse = tint + 0.2 * torch.randn(n, 3, 5, 5, generator=generator)
    fine = torch.randn(n, 1, 32, 32, generator=generator) / 20
    return (nn.functional.interpolate(coarse, (32, 32), mode="bicubic") + fine).clamp(0, 1)


def cifar(n: int) -> Tensor:
    root = Path(os.environ.get("LOCALSSL_DATA", Path(__file__).resolve().parents[1] / ".." / "shared" / "data"))
    file = root / "cifar10" / "train.parquet"
    if not file.exists():
        pytest.skip(f"no CIFAR-10: {file} not found")
    rows = next(pq.ParquetFile(file).iter_batches(n, columns=["image"])).column("image").to_pylist()
    return torch.stack([F.to_image(Image.open(io.BytesIO(row["bytes"])).convert("RGB")) for row in rows]).float() / 255


def numbers(views: Tensor, images: Tensor) -> tuple[list[Tensor], Tensor]:
    """What a view changed, a sample a number; and per image (n, 50) what may be averaged over the images.

    The latter: the histograms of the channels in 16 bins, whether the view is gray, and whether it is mirrored.
    """

    def luma_numbers(x: Tensor) -> tuple[Tensor, Tensor]:
        luma = F.rgb_to_grayscale(x)[:, 0]
        edges = luma.diff(dim=2).abs().mean((1, 2)) / (luma.std((1, 2)) + 0.01)
        return edges, luma[:, :, :16].mean((1, 2)) - luma[:, :, 16:].mean((1, 2))

    (edges, tilt), (edges_before, tilt_before) = luma_numbers(views), luma_numbers(images)
    gray = (views.amax(1) - views.amin(1)).amax((1, 2)) < 1e-4
    changes = colour_numbers(views) - colour_numbers(images)
    turn = (changes[:, 3] + 0.5) % 1 - 0.5
    bins = (views * 16).long().clamp(max=15).flatten(2)
    shares = torch.zeros(len(views), 3, 16).scatter_add_(2, bins, torch.ones(bins.shape)).flatten(1) / bins.shape[2]
    averaged = torch.cat((shares, gray[:, None], (tilt * tilt_before).sign()[:, None]), 1)
    return [*changes[:, :2].T, changes[~gray, 2], turn[~gray], edges - edges_before], averaged


Sample = tuple[Tensor, tuple[list[Tensor], Tensor]]


@cache
def reference_sample(source: str) -> Sample:
    """2,000 images, and the numbers of a view of each by torchvision."""
    images = blobs(2000) if source == "synthetic" else cifar(2000)
    torch.manual_seed(21)
    reference = v2.Compose(
        [
            v2.RandomResizedCrop(32, scale=(0.25, 1.0)),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(*JITTER)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(3, (0.1, 2.0))], p=0.5),
        ]
    )
    return images, numbers(torch.stack([reference(image) for image in images]), images)


def same_views(module: nn.Module, source: str) -> bool:
    images, (expected, averaged) = reference_sample(source)
    torch.manual_seed(22)
    ours, our_averaged = numbers(in_batches(module, images), images)
    difference = our_averaged - averaged  # image by image: what the images differ in cancels
    error = difference.std(0) / len(images) ** 0.5
    return bool((difference.mean(0).abs() <= 4 * error).all()) and all(map(same, ours, expected))


@pytest.mark.parametrize("source", ["synthetic", "CIFAR-10"])
def test_the_whole_transform_is_distributed_as_torchvisions(source: str) -> None:
    assert same_views(transform(CIFAR, 3, 32), source)


WRONG_STEPS = {
    **{name: WRONG_JITTERS[name] for name in ("brightness", "contrast", "saturation", "hue", "jitter's probability")},
    "crop": K.RandomResizedCrop((32, 32), scale=(0.08, 1.0), ratio=RATIO, align_corners=False),
    "flip": K.RandomHorizontalFlip(p=0.25),
    "grayscale": K.RandomGrayscale(p=0.1),
    "sigma": K.RandomGaussianBlur((3, 3), (0.1, 0.5), p=0.5),
}


@pytest.mark.parametrize(("source", "wrong"), [("CIFAR-10", "brightness"), *(("synthetic", w) for w in WRONG_STEPS)])
def test_a_wrong_step_in_the_whole_is_found_out(source: str, wrong: str) -> None:
    replacement = WRONG_STEPS[wrong]
    steps = [replacement if isinstance(m, type(replacement)) else m for m in transform(CIFAR, 3, 32)]
    assert not same_views(nn.Sequential(*steps), source)
