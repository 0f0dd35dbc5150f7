"""What the peers' own recipes do to images before their nets see them: crops, flips, whitening."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from localssl.data.sources import Images
from localssl.errors import UsageError
from localssl.system.files import write_atomic

Normalise = Callable[[Tensor], Tensor]  # of uint8 images (n, C, H, W)
PART = 1000  # images of which the covariance is added up at a time


def whitening(images: Images, smoothing: float = 0.1, kept: Path | None = None) -> Normalise:
    """ZCA fitted on all of these images: pixels standardised, then U (S + smoothing)^(-1/2) Uᵀ, of S, U theirs.

    ``kept``: a file that holds what was fitted, or will.

    Raises:
        UsageError: fewer than two images.
    """
    if len(images) < 2:
        raise UsageError("whitening is fitted on two images or more")
    if kept is not None and kept.is_file():
        mean, std, matrix = torch.load(kept, weights_only=True)
    else:
        mean, std, matrix = _fitted(images, smoothing)
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(kept, functools.partial(torch.save, (mean, std, matrix)))
    return lambda given: (((given.flatten(1).float() / 255 - mean) / std) @ matrix).view(given.shape)


def _fitted(images: Images, smoothing: float) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and std of every pixel, and (C + smoothing)^(-1/2) of the covariance C of the standardised pixels."""

    def pixels(index: Tensor) -> Tensor:
        return images.batch(index).flatten(1).double() / 255

    n, parts = len(images), torch.arange(len(images)).split(PART)
    mean = torch.stack([pixels(index).sum(0) for index in parts]).sum(0) / n
    std = (torch.stack([(pixels(index) - mean).square().sum(0) for index in parts]).sum(0) / (n - 1)).sqrt() + 1e-8
    d = len(mean)
    if n < d:  # the few directions that there are
        _, values, u = torch.linalg.svd(((pixels(torch.arange(n)) - mean) / std).float(), full_matrices=False)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        s, u = values.square() / (n - 1), u.T
    else:
        c = torch.zeros(d, d, dtype=torch.float64)
        for index in parts:
            x = (pixels(index) - mean) / std
            c += x.T @ x
        s, u = torch.linalg.eigh((c / (n - 1)).float())  # pyright: ignore[reportUnknownMemberType]
    rest = smoothing**-0.5  # outside of their span
    matrix = torch.eye(d) * rest + u * ((s.clamp_min(0) + smoothing).rsqrt() - rest) @ u.T
    return mean.float(), std.float(), matrix


def augmented(x: Tensor, pad: int | None, reflect: bool = False, crop: int | None = None) -> Tensor:
    """Images (n, C, H, W), each flipped or not and cropped at random.

    Args:
        x: the images.
        pad: they are padded by this much first; None: neither padded nor flipped nor cropped.
        reflect: whether the padding reflects (else zeros).
        crop: side of the crop; None: the images' own.
    """
    if pad is None:
        return x
    n = len(x)
    x = torch.where(torch.rand(n, 1, 1, 1) < 0.5, x.flip(3), x)
    height, width = (crop, crop) if crop else x.shape[2:]
    if pad:
        x = F.pad(x, (pad,) * 4, mode="reflect" if reflect else "constant")
    room = x.shape[2] - height, x.shape[3] - width
    if room == (0, 0):
        return x
    at = [torch.randint(more + 1, (n, 1)) for more in room]
    rows, columns = at[0] + torch.arange(height), at[1] + torch.arange(width)
    image = torch.arange(n)[:, None, None]
    return x.movedim(1, 3)[image, rows[:, :, None], columns[:, None, :]].movedim(3, 1)


def centre(x: Tensor, crop: int | None) -> Tensor:
    """The middle of images (n, C, H, W); ``crop`` None: the images."""
    if crop is None:
        return x
    top, left = (round((side - crop) / 2) for side in x.shape[2:])
    return x[:, :, top : top + crop, left : left + crop]
