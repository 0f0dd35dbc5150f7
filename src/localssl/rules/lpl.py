"""LPL (Halvagal & Zenke 2023): views agree, units vary, units differ; per layer, or on the last layer alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from localssl import losses
from localssl.errors import UsageError
from localssl.rules.base import Batch, Form, Projections, Rule


@dataclass(frozen=True, kw_only=True)
class Lpl(Rule):
    """L = α mean (z_a - z_b)² - β mean_i log(var_i + ε) + λ Σ_{i≠k} cov_ik² / (d² - d), per layer.

    z: (n, d) per view, averaged over space whatever the patches; the last two terms are means over the two views. var
    and cov of the batch with n - 1, about a mean that is a constant; gradient through both views. The formula of the
    decorrelation is that of the authors' erratum. No projector, no running statistics (their code's "stale" statistics
    and its loss on whole maps are not here).

    The published setting (Adam 1e-3, weight decay 1.5e-6, batches of 1024): ``localssl reproduce lpl-cifar10``.

    Args:
        pull: α, of the predictive term.
        push: β, of the Hebbian one.
        decorrelation: λ.
        eps: ε.
    """

    name: ClassVar[str] = "lpl"
    form: ClassVar[Form | None] = Form("distance, variance, covariance", None, "other view, with gradient")
    pull: float = 1.0
    push: float = 1.0
    decorrelation: float = 10.0
    eps: float = 1e-4

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), "above" if field.name == "eps" else "at least"
            fine = type(value) in (int, float) and math.isfinite(value)
            if not fine or value < 0 or (field.name == "eps" and value == 0):
                raise UsageError(f"{field.name} must be a finite number {least} 0, got {value!r}")

    @override
    def patches(self, patches: list[int | None]) -> list[int | None]:
        return [None] * len(patches)

    @override
    def layer_loss(self, batch: Batch, layer: int, projections: Projections) -> Tensor:
        z = batch.z[layer]
        with torch.autocast(z.device.type, enabled=False):  # variances and their logarithms need more than bfloat16
            z = losses.at_least_float32(z)
            pull, push, decorrelation = losses.lpl_terms(z[: batch.n], z[batch.n :], self.eps)
        return self.pull * pull + self.push * push + self.decorrelation * decorrelation


@dataclass(frozen=True, kw_only=True)
class BpLpl(Lpl):
    """The loss of ``lpl`` on the last layer alone, backpropagated through all blocks."""

    name: ClassVar[str] = "bp-lpl"
    credit: ClassVar[str] = "backprop"
