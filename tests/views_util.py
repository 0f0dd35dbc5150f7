"""Helpers of the tests of the views: when two samples agree, and images to try the views on.

``same`` tolerates 4 standard errors of the mean and a Kolmogorov-Smirnov p-value of 1e-4. The tests' seeds were fixed
beforehand and never changed, n was raised only where a wrong parameter was missed; that ``same`` is strict enough is
shown by wrong parameters that must be found out.
"""

from __future__ import annotations

import kornia.augmentation as K
import torch
from scipy.stats import ks_2samp
from torch import Tensor, nn

RATIO = (3 / 4, 4 / 3)
JITTER = (0.8, 0.8, 0.8, 0.2)
WRONG_JITTERS = {
    "brightness": K.ColorJitter(0.4, 0.8, 0.8, 0.2, p=0.8),
    "contrast": K.ColorJitter(0.8, 0.4, 0.8, 0.2, p=0.8),
    "saturation": K.ColorJitter(0.8, 0.8, 0.4, 0.2, p=0.8),
    "hue": K.ColorJitter(0.8, 0.8, 0.8, 0.1, p=0.8),
    "hue in radians": K.ColorJitter(0.8, 0.8, 0.8, 0.2 / 6.2832, p=0.8),
    "jitter's probability": K.ColorJitter(*JITTER, p=1.0),
    "additive brightness": K.ColorJiggle(*JITTER, p=0.8),
}


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two samples of a number may come from one distribution."""
    error = (a.var() / len(a) + b.var() / len(b)).sqrt()
    return bool((a.mean() - b.mean()).abs() <= 4 * error) and ks_2samp(a, b, method="asymp").pvalue > 1e-4


def has_rate(hits: Tensor, p: float) -> bool:
    """Whether the share of hits is p, up to 4 standard errors."""
    return abs(hits.double().mean().item() - p) <= 4 * (p * (1 - p) / len(hits)) ** 0.5


def in_batches(module: nn.Module, images: Tensor, size: int = 40) -> Tensor:
    """In small batches, since the order of the jitter steps is drawn once a batch."""
    return torch.cat([module(part) for part in images.split(size)])


def textures(n: int, channels: int, size: int) -> Tensor:
    """Noise: no two pixels are alike, so a wrong place or a wrong border shows."""
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(7))


def colour_numbers(images: Tensor) -> Tensor:
    """Per image (n, 4), each the trace of one jitter step where no value is clamped.

    Brightness: log mean luma. Contrast: log spread of luma over its mean. Saturation: log colour over spread of luma.
    Hue: angle of the mean colour, in turns.
    """
    r, g, b = images.unbind(1)
    luma = 0.299 * r + 0.587 * g + 0.114 * b
    mean, spread = luma.mean((1, 2)) + 0.01, luma.std((1, 2)) + 0.002
    colour = (images.amax(1) - images.amin(1)).mean((1, 2)) + 0.002
    r, g, b = images.mean((2, 3)).unbind(1)
    angle = torch.atan2(3**0.5 * (g - b), 2 * r - g - b) / (2 * torch.pi)
    return torch.stack((mean.log(), (spread / mean).log(), (colour / spread).log(), angle), 1)
