"""The product x wᵀ of few rows with a large matrix, by the faster of the two libraries that PyTorch has on a CPU.

Behind ``torch.mm`` is MKL, which makes such products on an AMD EPYC at less than half of the rate of oneDNN, the
library of PyTorch's convolutions; on a Xeon neither is far ahead (``benchmarks/products.py``).
"""

from __future__ import annotations

import torch
from torch import Tensor

WORTH = 2**25  # multiply-adds; below it oneDNN's way in costs more than it saves


def product(x: Tensor, w: Tensor, room: Tensor | None = None) -> Tensor:
    """x wᵀ, (N, d), of x (N, e) and w (d, e), without a graph; ``room``: memory that it may take, (N, d)."""
    x, w = x.detach(), w.detach()
    if by_onednn(x, w):
        return torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], "")  # pyright: ignore[reportPrivateUsage]
    return x @ w.T if room is None else torch.mm(x, w.T, out=room)


def by_onednn(x: Tensor, w: Tensor) -> bool:
    """Whether ``product`` is oneDNN's: of large float32 matrices on a CPU, where it is there and not forbidden."""
    if any(t.device.type != "cpu" or t.dtype != torch.float32 for t in (x, w)) or len(x) * w.numel() < WORTH:
        return False
    forbidden = torch.is_autocast_enabled("cpu") or not torch.backends.mkldnn.enabled
    return not forbidden and hasattr(torch.ops.mkldnn, "_linear_pointwise")
