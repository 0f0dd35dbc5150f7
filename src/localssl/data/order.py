"""In which order images are trained on: a function of seed and epoch alone, so that any place in it is found again."""

from __future__ import annotations

import torch
from torch import Tensor


def batches(seed: int, epoch: int, images: int, batch_size: int) -> list[Tensor]:
    """The batches of an epoch, int64 (batch_size,) each, of the training images; what is left over is not used."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    shuffled = torch.randperm(images, generator=generator)
    return list(shuffled[: images // batch_size * batch_size].split(batch_size))


def batch_of(seed: int, step: int, images: int, batch_size: int) -> Tensor:
    """The batch of a step, counted from 0 over the whole run."""
    epoch, position = divmod(step, images // batch_size)
    return batches(seed, epoch, images, batch_size)[position]
