"""Readout: what of a block's activity enters the loss and the probe. Pool in patches, then flatten, channels first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch.nn.functional as F
from torch import Tensor

from localssl.errors import UsageError

Patches = Sequence[int | None] | None


class Dims(tuple[int, ...]):
    """Lengths of the readouts, channels times patches, one a block, which know of how many channels each is made."""

    channels: tuple[int, ...]

    def __new__(cls, lengths: Iterable[int], channels: Iterable[int]) -> Dims:
        """The lengths as a tuple that has ``channels``."""
        made = super().__new__(cls, lengths)
        made.channels = tuple(channels)
        return made


def per_block(patches: Patches, n_blocks: int) -> list[int | None]:
    """One patch size per block; None (mean over all positions) for every block where ``patches`` is None.

    Raises:
        UsageError: another number of entries than blocks, or a patch size below one.
    """
    if patches is None:
        return [None] * n_blocks
    if not isinstance(patches, Sequence):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(f"patches is {patches!r}; give one entry per block, for instance {(patches,) * n_blocks}")
    sizes = list(patches)
    if len(sizes) != n_blocks:
        raise UsageError(f"patches has {len(sizes)} entries, the encoder {n_blocks} blocks; give one entry per block")
    if any(p is not None and (type(p) is not int or p < 1) for p in sizes):
        raise UsageError(f"patches {tuple(sizes)}: a patch size is a positive whole number or None")
    return sizes


def kernel(positions: Sequence[int], patch: int | None) -> tuple[int, ...]:
    """The patch as it lies on a map of these positions: clipped to it, or all of it."""
    return tuple(positions) if patch is None else tuple(min(patch, n) for n in positions)


def check(shape: tuple[int, ...], patch: int | None, block: int) -> None:
    """Refuse a patch that does not divide the map of this block (output ``shape`` (C, H, W), block counted from 1).

    Raises:
        UsageError: the map's height or width is not a multiple of the patch.
    """
    for size, k in zip(shape[1:], kernel(shape[1:], patch), strict=True):
        if size % k:
            good = [d for d in range(1, size + 1) if size % d == 0]
            raise UsageError(
                f"patch {patch} does not divide the {'x'.join(map(str, shape[1:]))} map of block {block}; "
                f"use one of {good}"
            )


def dim(shape: tuple[int, ...], patch: int | None) -> int:
    """Length of the readout of an activity of ``shape`` (C, H, W): channels times patches."""
    d = shape[0]
    for size, k in zip(shape[1:], kernel(shape[1:], patch), strict=True):
        d *= size // k
    return d


def readout(z: Tensor, patch: int | None) -> Tensor:
    """Average ``z`` (N, C, H, W) over patches of ``patch`` x ``patch`` and flatten to (N, C * H/p * W/p).

    ``patch=None`` averages over all positions, (N, C); a patch larger than the map is clipped to it. Vectors (N, d)
    and sequences (N, C, T) work alike. Paper section 3.4 and Table A2.
    """
    positions = tuple(z.shape[2:])
    if not positions:
        return z
    sides = kernel(positions, patch)
    if sides == positions:
        return z.flatten(2).mean(2)
    if all(k == 1 for k in sides):
        return z.flatten(1)
    pool = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[len(positions)]
    return pool(z, sides).flatten(1)
