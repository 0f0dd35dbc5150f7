"""Filters of the first layer as a picture."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from localssl.encoders import Encoder

MOST = 64  # filters shown
PIXELS = 1024  # of a picture's longer side, at most


def first_weights(encoder: Encoder, shape: tuple[int, ...]) -> Tensor | None:
    """Weights of the first layer as little images (units, 1 or 3, h, w); None where they are no images.

    Args:
        encoder: the encoder.
        shape: of its images, (C, H, W), or of arrays; a linear layer's weights take it.
    """
    layer = next((m for m in encoder.blocks[0].modules() if isinstance(m, nn.Conv2d | nn.Linear)), None)
    if layer is None or len(shape) != 3:
        return None
    weight = layer.weight.detach().float().cpu()
    if isinstance(layer, nn.Linear):
        if weight.shape[1] != math.prod(shape):
            return None
        weight = weight.view(-1, *shape)
    return weight if weight.shape[1] in (1, 3) else None


def sheet(weight: Tensor) -> Image.Image:
    """The first ``MOST`` filters (units, 1 or 3, h, w) side by side, grey where a weight is 0, each by its largest."""
    shown = weight[:MOST]
    largest = shown.abs().amax((1, 2, 3), keepdim=True).clamp_min(1e-12)
    return tiles(to_bytes(0.5 + 0.5 * shown / largest), columns=16 if len(shown) > 8 else 8, gap=1)


def to_bytes(images: Tensor) -> NDArray[np.uint8]:
    """Floats in [0, 1], (n, 1 or 3, h, w), as bytes (n, h, w, 3)."""
    rgb = images.expand(-1, 3, -1, -1).clamp(0, 1)
    return (255 * rgb).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def tiles(images: NDArray[np.uint8], columns: int, gap: int) -> Image.Image:
    """Pictures (n, h, w, 3) in rows, with clear gaps between them."""
    n, height, width, _ = images.shape
    rows = -(-n // columns)
    columns = min(columns, n)
    out = np.zeros((rows * (height + gap) - gap, columns * (width + gap) - gap, 4), dtype=np.uint8)
    for i, image in enumerate(images):
        y, x = (i // columns) * (height + gap), (i % columns) * (width + gap)
        out[y : y + height, x : x + width, :3] = image
        out[y : y + height, x : x + width, 3] = 255
    picture = Image.fromarray(out)
    factor = max(1, min(8, PIXELS // max(picture.size)))  # sharp in viewers that smooth, and on paper
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
