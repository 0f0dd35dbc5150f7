"""What a reference hands back, and what it is asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from localssl.oracle.layers import Array, Block

Patches = int | Sequence[int | None] | None


@dataclass(frozen=True)
class Task:
    """One batch and the network that sees it.

    Attributes:
        blocks: first to last.
        projections: by key, one matrix per loss, each (d_z, d_c); "head" is (d_out, d_z).
        samples: (2n, ...), view a then view b.
        negatives: (2n,) indices into the stacked positives.
        patches: patch size per block, None for the mean over all positions.
        references: by key, one (2n, d_c) per loss, to hold the references fixed; None computes them.
        labels: (n,), or None.
        norm: what every block's input goes through first, "length", "standardise" or None.
    """

    blocks: list[Block]
    projections: Mapping[str, Sequence[Array]]
    samples: Array
    negatives: NDArray[np.int64]
    patches: list[int | None]
    references: Mapping[str, Sequence[Array]] | None
    labels: NDArray[np.int64] | None = None
    norm: str | None = None


@dataclass
class Result:
    """Losses, their gradients (of the sum over layers) and the references they used.

    Attributes:
        losses: (L,), or (1,) for an end-to-end rule.
        block_grads: per block, {"weight": ..., "bias": ...}; a block without bias has no "bias".
        projection_grads: by key, one gradient per loss, shaped as the projection.
        references: by key, one (2n, d_c) per loss.
    """

    losses: Array
    block_grads: list[dict[str, Array]]
    projection_grads: dict[str, list[Array]]
    references: dict[str, list[Array]] = field(default_factory=dict[str, list[Array]])


Reference = Callable[..., Result]


def partner(i: int, samples: int) -> int:
    """The other view of sample i's image, with view a's n samples stacked on view b's."""
    n = samples // 2
    return i + n if i < n else i - n
