"""End-to-end reference: InfoNCE with a linear head, backpropagated through the whole encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from typing_extensions import override

from localssl import losses
from localssl.errors import UsageError
from localssl.rules.base import Batch, Form, Projections, Rule


@dataclass(frozen=True, kw_only=True)
class BpInfoNCE(Rule):
    """L = -mean_i log softmax_j(cos(H z_a,i, H z_b,j) / τ)[j = i], gradient through both views and all blocks.

    z: (n, channels) per view, averaged over all positions; H: linear to ``projection_dim``, no bias (paper App. B).

    Args:
        projection_dim: outputs of the head H.
        temperature: τ.
    """

    name: ClassVar[str] = "bp-infonce"
    form: ClassVar[Form | None] = Form("−log softmax of x / τ", None, "other view, with gradient", "HᵀH, H trained")
    credit: ClassVar[str] = "backprop"
    weight_decay: ClassVar[float | None] = 0.0
    projection_dim: int = 1024
    temperature: float = 0.1

    def __post_init__(self) -> None:
        numbers = type(self.projection_dim) is int and type(self.temperature) in (int, float)
        if not numbers or self.projection_dim < 1 or not self.temperature > 0:
            raise UsageError(
                f"{self.name} needs a whole projection_dim >= 1 and temperature > 0, "
                f"got {self.projection_dim!r} and {self.temperature!r}"
            )

    @override
    def patches(self, patches: list[int | None]) -> list[int | None]:
        return [None] * len(patches)

    @override
    def build(self, dims: Sequence[int]) -> dict[str, list[nn.Module]]:
        return {"head": [nn.Linear(dims[-1], self.projection_dim, bias=False)]}

    @override
    def losses(self, batch: Batch, projections: Projections) -> Tensor:
        p: Tensor = projections["head"][0](batch.z[-1])
        return losses.info_nce(p[: batch.n], p[batch.n :], self.temperature)[None]
