"""References: where the vector c of a score z.Bc comes from. A reference is a constant: no gradient ever reaches it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Reference(Protocol):
    """Where c comes from; one of your own needs this method alone."""

    def source(self, layer: int, n_layers: int) -> int:
        """The layer whose readout c is, from 0 to n_layers - 1."""
        ...


@dataclass(frozen=True)
class Own:
    """The layer's own readout (lateral projections; ``clapp``, ``clapp++``)."""

    def source(self, layer: int, n_layers: int) -> int:
        """The layer that c comes from."""
        return layer


@dataclass(frozen=True)
class Last:
    """The last layer's readout (direct feedback, paper equation 3: c^l = z'^L)."""

    def source(self, layer: int, n_layers: int) -> int:
        """The layer that c comes from."""
        return n_layers - 1


def take(reference: Reference, z: Sequence[Tensor], layer: int) -> Tensor:
    """The reference c of shape (2n, d_c) for one layer: the view that makes the prediction, stop-gradient.

    Sample i's reference is its own view's activity; its positive is the other view, z_pos = concat(z[n:], z[:n]).
    """
    return z[reference.source(layer, len(z))].detach()
