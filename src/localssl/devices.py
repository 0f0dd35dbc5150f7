"""Where the numbers are computed: the choices of --device, and what a full memory looks like."""

from __future__ import annotations

import torch

from localssl.errors import UsageError

CHOICES = ("auto", "cpu", "cuda", "mps")


def choose(name: str) -> torch.device:
    """The device that --device names; auto: CUDA where there is one, else the CPU; MPS only by its name.

    Raises:
        UsageError: not a choice, or not to be had here.
    """
    if name not in CHOICES:
        raise UsageError(f"--device {name!r}: use one of {', '.join(CHOICES)}")
    has = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device("cuda" if has["cuda"] else "cpu")
    if not has[name]:
        why = "no CUDA device is visible to PyTorch" if name == "cuda" else "not available to PyTorch here"
        raise UsageError(f"--device {name}: {why}; use --device cpu")
    return torch.device(name)


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory is full, on whatever device."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)
