"""The product x wᵀ of few rows with a large matrix, by the faster of the two libraries that PyTorch has on a CPU.

Behind ``torch.mm`` is MKL, which makes such products on an AMD EPYC at less than half of the rate of oneDNN, the
library of PyTorch's convolutions. On a Xeon oneDNN is ahead with a large w, with few rows most as (w xᵀ)ᵀ, and MKL
with the tiles of a large product (``benchmarks/products.py``, d of 2,048 and
8,192; other processors were not measured, and those that are no x86 have something else behind ``torch.mm``: there
nothing is chosen).
"""

from __future__ import annotations

import platform

import torch
from torch import Tensor

from localssl.system.devices import processor

WORTH = 2**25  # multiply-adds; below it oneDNN's way in costs more than it saves
FEW = 64  # rows of x; with 256, on a Xeon, (w xᵀ)ᵀ takes a quarter longer


def product(x: Tensor, w: Tensor, room: Tensor | None = None) -> Tensor:
    """x wᵀ, (N, d), of x (N, e) and w (d, e), without a graph.

    Args:
        x, w: of one dtype.
        room: where this is a tile of a larger product, memory that it may take, (N, d).
    """
    x, w = x.detach(), w.detach()
    if by_onednn(x, w, room is not None):
        onednn = torch.ops.mkldnn._linear_pointwise  # pyright: ignore[reportPrivateUsage]
        if on_intel() and len(x) <= FEW:  # the many rows in the place of the samples
            return onednn(w, x, None, "none", [], "").T.contiguous()
        return onednn(x, w, None, "none", [], "")
    return x @ w.T if room is None else torch.mm(x, w.T, out=room)


def by_onednn(x: Tensor, w: Tensor, tile: bool = False) -> bool:
    """Whether ``product`` is oneDNN's: of large float32 matrices on a CPU, where it is there and not forbidden."""
    if any(t.device.type != "cpu" or t.dtype != torch.float32 for t in (x, w)) or len(x) * w.numel() < WORTH:
        return False
    known = platform.machine() in ("x86_64", "AMD64")
    forbidden = torch.is_autocast_enabled("cpu") or not torch.backends.mkldnn.enabled
    slower = tile and on_intel()
    return known and not forbidden and not slower and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def on_intel() -> bool:
    """Whether the processor is Intel's."""
    return "Intel" in processor()
