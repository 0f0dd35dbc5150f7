"""What the peers' own recipes do to images before their nets see them, besides crops and flips (``data.views``)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import torch
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


def centre(x: Tensor, crop: int | None) -> Tensor:
    """The middle of images (n, C, H, W); ``crop`` None: the images."""
    if crop is None:
        return x
    top, left = (round((side - crop) / 2) for side in x.shape[2:])
    return x[:, :, top : top + crop, left : left + crop]
