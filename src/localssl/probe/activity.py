"""Features of a frozen encoder: what the probe sees of every block, the patch-averaged activities of paper Table A2."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm  # pyright: ignore[reportPrivateUsage]

from localssl import readout as ro
from localssl.data.sources import Images
from localssl.encoders import Encoder
from localssl.errors import UsageError

SETTLED_ON = 5_000  # images at most


@contextmanager
def frozen(module: nn.Module) -> Generator[None]:
    """Evaluation mode for a while; afterwards every submodule is back in the mode it was in."""
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for m, mode in modes:
            m.training = mode


@torch.no_grad()
def settle(encoder: nn.Module, see: Callable[[Tensor], object], batches: Iterable[Tensor]) -> None:
    """Give batch norms that have never seen a batch the mean statistics of some; as they are made they have 0 and 1.

    Without them its activity grows or dies from block to block, and a trained encoder, whose batch norms know the data,
    would be held against one that is worse than random. Nothing is done where there are none, or all have been trained.

    Args:
        encoder: the blocks.
        see: runs them on what ``batches`` holds.
        batches: of training images, or of their numbers.
    """
    new = [m for m in encoder.modules() if isinstance(m, BatchNorm) and m.num_batches_tracked == 0]
    if not new:
        return
    with frozen(encoder):
        kept = [m.momentum for m in new]
        for m in new:
            m.momentum = None  # the mean over batches
            m.train()
        for batch in batches:
            see(batch)
        for m, momentum in zip(new, kept, strict=True):
            m.momentum = momentum


def few(images: Images) -> tuple[Tensor, ...]:
    """Numbers of images to ``settle`` on, in batches of 250 or somewhat more."""
    count = min(len(images), SETTLED_ON)
    return torch.arange(count).chunk(max(1, count // 250))


def patch_sizes(encoder: Encoder, shape: Sequence[int], patches: ro.Patches) -> tuple[list[int | None], list[int]]:
    """Patch size and number of features of every block for images of ``shape`` (C, H, W).

    Raises:
        UsageError: images that the encoder does not accept, or patches that do not fit its blocks.
    """
    sizes = ro.per_block(patches, len(encoder.blocks))
    shapes = encoder.output_shapes(shape, emitted=True)
    for i, (z_shape, patch) in enumerate(zip(shapes, sizes, strict=True)):
        ro.check(z_shape, patch, i + 1)
    return sizes, [ro.dim(z_shape, patch) for z_shape, patch in zip(shapes, sizes, strict=True)]


def of_batch(encoder: Encoder, x: Tensor, sizes: Sequence[int | None]) -> list[Tensor]:
    """Every block's features (n, d_l), float32, for normalised images ``x`` (n, C, H, W)."""
    param = next(encoder.parameters(), x)
    return [ro.readout(z, p).float() for z, p in zip(encoder.emitted(x.to(param.dtype)), sizes, strict=True)]


def diverged(block: int) -> UsageError:
    """The error for a block (counted from 1) with NaN or infinite features."""
    return UsageError(f"features of block {block} are not finite; the encoder has diverged, train it anew")


@torch.no_grad()
def features(
    encoder: Encoder,
    images: Images,
    *,
    patches: ro.Patches,
    normalise: nn.Module,
    device: torch.device | str = "cpu",
    batch_size: int = 256,
    report: Callable[[int, int], None] | None = None,
) -> list[Tensor]:
    """Features of every image without augmentation: per block (N, d_l), float32, channels first, on ``device``.

    The encoder and ``normalise`` are moved to ``device``. The encoder runs in evaluation mode and leaves in the mode it
    came in. All features of 50,000 images at the paper's width are 6.5 GB.

    Args:
        encoder: the blocks, trained or not.
        images: uint8 images.
        patches: one patch size per block as in paper Table A2; None: the mean over all positions.
        normalise: maps a batch of uint8 images to what the encoder was trained on.
        device: where the encoder runs.
        batch_size: images at a time; the features do not depend on it.
        report: called after every batch with the number of images done and of all.

    Raises:
        UsageError: no images, images of a shape that the encoder does not accept, or patches that do not fit.
    """
    if len(images) == 0:
        raise UsageError(f"{images.name} has no images; the probe needs some")
    encoder.to(device)
    normalise.to(device)
    with frozen(encoder):
        sizes, dims = patch_sizes(encoder, images.shape, patches)
        out = [torch.empty(len(images), d, device=device) for d in dims]
        for start in range(0, len(images), batch_size):
            index = torch.arange(start, min(start + batch_size, len(images)))
            x = normalise(images.batch(index).to(device))
            for all_rows, rows in zip(out, of_batch(encoder, x, sizes), strict=True):
                all_rows[start : start + len(index)] = rows
            if report is not None:
                report(start + len(index), len(images))
    return out
