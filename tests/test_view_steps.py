"""Every step of the views against torchvision's: numbers by distribution, and pixels where the numbers are the same."""

from __future__ import annotations

import kornia.augmentation as K
import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms import ColorJitter, RandomAffine, RandomResizedCrop, v2
from torchvision.transforms.v2 import functional as F

from localssl.data.specs import SPECS, Augmentation
from localssl.data.views import blur_kernel, transform

from .views_util import JITTER, RATIO, WRONG_JITTERS, colour_numbers, has_rate, in_batches, same, textures

CIFAR, AFFINE = SPECS["cifar10"].augmentation, SPECS["digits"].augmentation


def step(kind: type[nn.Module], augmentation: Augmentation = CIFAR, size: int = 32, channels: int = 3) -> nn.Module:
    (found,) = [module for module in transform(augmentation, channels, size) if isinstance(module, kind)]
    return found


def test_the_steps_follow_one_another_as_in_the_recipe() -> None:
    colour = [K.RandomResizedCrop, K.RandomHorizontalFlip, K.ColorJitter, K.RandomGrayscale, K.RandomGaussianBlur]
    assert [type(module) for module in transform(CIFAR, 3, 32)] == colour
    assert [type(module) for module in transform(CIFAR, 1, 32)] == [k for k in colour if k is not K.RandomGrayscale]
    assert [type(module) for module in transform(AFFINE, 1, 16)] == [K.RandomAffine]


# --- random resized crop: two ramps in the image tell which box was cut out of it


def ramps(n: int, size: int) -> Tensor:
    x = torch.arange(size) / size
    return torch.stack((x.expand(size, size), x[:, None].expand(size, size))).expand(n, 2, size, size)


def boxes(crops: Tensor, size: int) -> Tensor:
    """Columns left, top, width, height of what ``ramps`` became."""
    low, high = crops[:, :2].amin((2, 3)) * size, crops[:, :2].amax((2, 3)) * size
    return torch.cat((low, high - low + 1), 1).round()


def box_numbers(box: Tensor, size: int) -> list[Tensor]:
    left, top, width, height = box.unbind(1)
    return [
        width * height / size**2,
        (width / height).log(),
        (left / (size - width))[width < size],
        (top / (size - height))[height < size],
    ]


def same_boxes(module: nn.Module, size: int, scale: tuple[float, float], n: int = 4000) -> bool:
    torch.manual_seed(1)
    image = ramps(1, size)
    drawn = torch.cat([boxes(module(ramps(250, size)), size) for _ in range(n // 250)])
    params = [RandomResizedCrop.get_params(image[0], list(scale), list(RATIO)) for _ in range(n)]
    expected = torch.tensor(params, dtype=torch.float32)[:, [1, 0, 3, 2]]
    return all(same(a, b) for a, b in zip(box_numbers(drawn, size), box_numbers(expected, size), strict=True))


@pytest.mark.parametrize(("data", "size"), [("cifar10", 32), ("tiny-imagenet", 64), ("stl10", 96)])
def test_crop_has_torchvisions_area_ratio_and_position(data: str, size: int) -> None:
    scale = {"cifar10": (0.25, 1.0)}.get(data, (0.08, 1.0))
    assert same_boxes(step(K.RandomResizedCrop, SPECS[data].augmentation, size), size, scale)


@pytest.mark.parametrize(("scale", "ratio"), [((0.2, 1.0), RATIO), ((0.25, 0.9), RATIO), ((0.25, 1.0), (0.7, 1 / 0.7))])
def test_a_slightly_wrong_crop_is_found_out(scale: tuple[float, float], ratio: tuple[float, float]) -> None:
    wrong = K.RandomResizedCrop((32, 32), scale=scale, ratio=ratio, align_corners=False)
    assert not same_boxes(wrong, 32, (0.25, 1.0))


@pytest.mark.parametrize("size", [32, 96])
def test_crop_of_the_same_box_has_the_same_pixels(size: int) -> None:
    torch.manual_seed(2)
    images = torch.cat((ramps(64, size), textures(64, 1, size)), 1)
    crops = step(K.RandomResizedCrop, SPECS["stl10"].augmentation, size)(images)
    for image, crop, box in zip(images, crops, boxes(crops, size).int().tolist(), strict=True):
        left, top, width, height = box
        expected = F.resized_crop(image, top, left, height, width, [size, size], antialias=True)
        torch.testing.assert_close(crop, expected, atol=1e-5, rtol=0)


# --- flip, colour, grayscale


def test_half_of_the_images_are_flipped() -> None:
    torch.manual_seed(3)
    images = textures(4000, 3, 4)
    out = step(K.RandomHorizontalFlip)(images)
    flipped = (out == images.flip(3)).flatten(1).all(1)
    assert (flipped | (out == images).flatten(1).all(1)).all()
    assert has_rate(flipped, 0.5)


def test_a_fifth_of_the_images_turn_gray_by_luma() -> None:
    torch.manual_seed(4)
    images = textures(4000, 3, 4)
    out = step(K.RandomGrayscale)(images)
    gray = (out == out[:, :1]).flatten(1).all(1)
    assert torch.equal(out[~gray], images[~gray])
    torch.testing.assert_close(out[gray], F.rgb_to_grayscale(images[gray], 3), atol=2e-4, rtol=0)
    assert has_rate(gray, 0.2)


@pytest.mark.parametrize("channels", [3, 1])
def test_jitter_means_by_its_factors_what_torchvision_means(channels: int) -> None:
    torch.manual_seed(5)
    jitter = step(K.ColorJitter, channels=channels)
    names = ["brightness", "contrast", "saturation", "hue"]
    adjust = [F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue]
    for _ in range(12):  # calls, each with an order of its own
        images = textures(16, channels, 8)
        out = jitter(images)
        drawn = jitter._params
        assert out.amin() >= 0
        assert out.amax() <= 1
        for i, expected in enumerate(images):
            for k in drawn["order"].tolist() if drawn["batch_prob"][i] else []:
                expected = adjust[k](expected, drawn[f"{names[k]}_factor"][i].item())
            torch.testing.assert_close(out[i], expected, atol=1e-3, rtol=0)  # torchvision's luma weights sum to 0.9999


@pytest.mark.parametrize("channels", [3, 1])
def test_jitter_draws_its_factors_as_torchvision_does(channels: int) -> None:
    torch.manual_seed(6)
    jitter = step(K.ColorJitter, channels=channels)
    n = 4000
    out = jitter(images := textures(n, channels, 4))
    drawn = jitter._params
    ranges = [(0.2, 1.8), (0.2, 1.8), (0.2, 1.8) if channels == 3 else None, (-0.2, 0.2) if channels == 3 else None]
    expected = [ColorJitter.get_params(*ranges)[1:] for _ in range(n)]
    for k, name in enumerate(["brightness", "contrast", "saturation", "hue"]):
        factor = drawn[f"{name}_factor"]
        if ranges[k] is None:
            assert (factor == (0.0 if name == "hue" else 1.0)).all()
        else:
            assert same(factor, torch.tensor([e[k] for e in expected]))
    assert has_rate((out != images).flatten(1).any(1), 0.8)


@pytest.fixture(scope="module")
def jittered() -> tuple[Tensor, Tensor]:
    """A gray texture with a tint, far from 0 and 1, 2,000 times; and the traces of torchvision's jitter in it."""
    torch.manual_seed(8)
    image = 0.3 + 0.1 * textures(1, 1, 6) + torch.tensor([0.03, 0.0, -0.03]).view(3, 1, 1)
    images, reference = image.expand(2000, 3, 6, 6), v2.RandomApply([v2.ColorJitter(*JITTER)], p=0.8)
    return images, colour_numbers(torch.stack([reference(one) for one in images]))


def same_jitter(module: nn.Module, jittered: tuple[Tensor, Tensor]) -> bool:
    torch.manual_seed(9)
    images, expected = jittered
    return all(map(same, colour_numbers(in_batches(module, images)).T, expected.T))


def test_jittered_images_are_distributed_as_torchvisions(jittered: tuple[Tensor, Tensor]) -> None:
    assert same_jitter(step(K.ColorJitter), jittered)


@pytest.mark.parametrize("wrong", WRONG_JITTERS)
def test_a_wrong_jitter_is_found_out(wrong: str, jittered: tuple[Tensor, Tensor]) -> None:
    assert not same_jitter(WRONG_JITTERS[wrong], jittered)


# --- blur


def test_blur_kernel_is_a_tenth_made_odd() -> None:
    assert [blur_kernel(size) for size in (32, 96, 64, 16)] == [3, 9, 7, 1]


@pytest.mark.parametrize("size", [32, 64, 96])
def test_blur_has_torchvisions_pixels(size: int) -> None:
    torch.manual_seed(10)
    blur = step(K.RandomGaussianBlur, size=size)
    images = textures(24, 3, size)
    out = blur(images)
    applied = blur._params["batch_prob"].bool()
    assert torch.equal(out[~applied], images[~applied])
    kernel = {32: 3, 64: 7, 96: 9}[size]
    for image, blurred, sigma in zip(images[applied], out[applied], blur._params["sigma"][applied], strict=True):
        expected = F.gaussian_blur(image, [kernel, kernel], [sigma.item()] * 2)  # with reflected borders
        torch.testing.assert_close(blurred, expected, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def blurred() -> Tensor:
    """What torchvision leaves of a white dot, 4,000 times: a function of sigma."""
    torch.manual_seed(11)
    reference = v2.RandomApply([v2.GaussianBlur(3, (0.1, 2.0))], p=0.5)
    return torch.stack([reference(dot) for dot in dots(4000)])[:, 0, 3, 3]


def dots(n: int) -> Tensor:
    image = torch.zeros(1, 7, 7)
    image[0, 3, 3] = 1
    return image.expand(n, 1, 7, 7)


def test_sigma_is_distributed_as_torchvisions(blurred: Tensor) -> None:
    torch.manual_seed(12)
    assert same(step(K.RandomGaussianBlur)(dots(4000))[:, 0, 3, 3], blurred)


@pytest.mark.parametrize(("sigma", "p"), [((0.1, 1.7), 0.5), ((0.5, 2.0), 0.5), ((0.1, 2.0), 0.6)])
def test_a_wrong_sigma_or_rate_is_found_out(sigma: tuple[float, float], p: float, blurred: Tensor) -> None:
    torch.manual_seed(12)
    assert not same(K.RandomGaussianBlur((3, 3), sigma, p=p)(dots(4000))[:, 0, 3, 3], blurred)


# --- affine


def test_affine_moves_every_image_as_torchvision_does_and_pads_with_zeros() -> None:
    torch.manual_seed(13)
    affine = step(K.RandomAffine, AFFINE)
    images = textures(64, 1, 16) + 0.1
    out = affine(images)
    p = affine._params
    assert (out != images).flatten(1).any(1).all()
    for i, image in enumerate(images):
        expected = F.affine(
            image,
            angle=p["angle"][i].item(),
            translate=p["translations"][i].tolist(),
            scale=p["scale"][i, 0].item(),
            shear=[p["shear_x"][i].item(), p["shear_y"][i].item()],
            interpolation=v2.InterpolationMode.BILINEAR,
        )
        torch.testing.assert_close(out[i], expected, atol=1e-4, rtol=0)


def test_affine_draws_its_numbers_as_torchvision_does_for_every_image() -> None:
    torch.manual_seed(14)
    n, pixels = 4000, 1000  # so many that torchvision's rounding of the shift to whole pixels does not show
    a = AFFINE
    p = step(K.RandomAffine, AFFINE).forward_parameters(torch.Size((n, 1, pixels, pixels)))
    ranges = ([-a.degrees, a.degrees], [a.translate] * 2, list(a.scale), [-a.shear, a.shear])
    params = [RandomAffine.get_params(*ranges, [pixels, pixels]) for _ in range(n)]
    expected = torch.tensor([(angle, *shift, scale, *shear) for angle, shift, scale, shear in params])
    drawn = torch.stack((p["angle"], *p["translations"].T, p["scale"][:, 0], p["shear_x"]), 1)
    for k in range(5):
        assert same(drawn[:, k], expected[:, k])
    assert torch.equal(p["scale"][:, 0], p["scale"][:, 1])
    assert not p["shear_y"].any()
    off_diagonal = torch.corrcoef(drawn.T) - torch.eye(5)
    assert off_diagonal.abs().max() <= 4 / n**0.5
