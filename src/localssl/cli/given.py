"""Numbers that several commands take: refused where they make no sense."""

from __future__ import annotations

import torch

from localssl.errors import UsageError


def at_least(least: int, **values: int | None) -> None:
    """Refuse numbers of flags below the least that makes sense."""
    for name, value in values.items():
        if value is not None and value < least:
            raise UsageError(f"--{name.replace('_', '-')} {value}: use {least} or more")


def set_threads(threads: int | None) -> None:
    """PyTorch's threads, where their number was asked for."""
    at_least(1, threads=threads)
    if threads is not None:
        torch.set_num_threads(threads)
