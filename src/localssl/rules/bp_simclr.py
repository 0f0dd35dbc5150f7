"""A present-day end-to-end reference: SimCLR's loss with a nonlinear head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from localssl import losses
from localssl.errors import UsageError
from localssl.rules.base import Batch, Form, Projections, Rule


@dataclass(frozen=True, kw_only=True)
class BpSimCLR(Rule):
    """L = -mean_i log softmax_{j≠i}(cos(p_i, p_j) / τ)[j = other view of i],  p = H₂ ReLU(H₁ z^L)  (Chen et al. 2020).

    z^L: (2n, channels), averaged over all positions; i and j run over all 2n views. H₁ to ``hidden``, H₂ to
    ``projection_dim``, no biases. Gradient through all blocks. The probe reads z, not p. One hidden layer as wide as z,
    128 outputs and τ = 0.5 are those of its public code (google-research/simclr) for CIFAR-10; the batch norm after
    both layers of the head, LARS, batches of 512 and ResNet-18 are there and not here.

    Args:
        hidden: units of the head's hidden layer; None: as many as z has.
        projection_dim: outputs of the head.
        temperature: τ.
    """

    name: ClassVar[str] = "bp-simclr"
    form: ClassVar[Form | None] = Form("−log softmax of x / τ", None, "other view, with gradient", "trained head")
    credit: ClassVar[str] = "backprop"
    hidden: int | None = None
    projection_dim: int = 128
    temperature: float = 0.5

    def __post_init__(self) -> None:
        for name in ("hidden", "projection_dim"):
            value = getattr(self, name)
            if not (name == "hidden" and value is None) and (type(value) is not int or value < 1):
                raise UsageError(f"{name} must be a whole number of at least 1, got {value!r}")
        if type(self.temperature) not in (int, float) or not 0 < self.temperature < float("inf"):
            raise UsageError(f"temperature must be a positive number, got {self.temperature!r}")

    @override
    def patches(self, patches: list[int | None]) -> list[int | None]:
        return [None] * len(patches)

    @override
    def build(self, dims: Sequence[int]) -> dict[str, list[nn.Module]]:
        hidden = self.hidden or dims[-1]
        return {
            "hidden": [nn.Linear(dims[-1], hidden, bias=False)],
            "head": [nn.Linear(hidden, self.projection_dim, bias=False)],
        }

    @override
    def losses(self, batch: Batch, projections: Projections) -> Tensor:
        p: Tensor = projections["head"][0](torch.relu(projections["hidden"][0](batch.z[-1])))
        return losses.nt_xent(p, self.temperature)[None]
