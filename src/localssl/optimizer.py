"""AdamW that takes a dense projection's gradient as two thin factors and never makes it as a whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from typing_extensions import override

TILE = 4 * 2**20  # bytes of a gradient that are there at a time


def leave_factors(p: Tensor, signal: Tensor, c: Tensor) -> None:
    """Add Σ_i signal_i c_iᵀ to the gradient of ``p`` (d_z, d_c) as its factors (N, d_z) and (N, d_c), for ``step``."""
    if (before := factors_of(p)) is not None:
        signal, c = torch.cat((before[0], signal)), torch.cat((before[1], c))
    p.factors = (signal, c)  # pyright: ignore[reportAttributeAccessIssue]


def factors_of(p: Tensor) -> tuple[Tensor, Tensor] | None:
    """The factors that were left and not yet used."""
    return p.__dict__.get("factors")


class FactoredAdamW(torch.optim.AdamW):
    """PyTorch's fused AdamW; parameters with factors are updated tile by tile, with the same result to rounding.

    Its state is AdamW's own. A gradient in ``.grad`` is treated as there.
    """

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, fused=True, **options)

    @override
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update of everything that has a gradient or factors."""
        loss = super().step(closure)  # pyright: ignore[reportArgumentType]
        for group in self.param_groups:
            for p in group["params"]:
                if (factors := factors_of(p)) is not None:
                    self._by_tiles(p, *factors, group)
                    del p.factors
        return loss

    @override
    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget gradients and factors."""
        super().zero_grad(set_to_none)
        for group in self.param_groups:
            for p in group["params"]:
                p.__dict__.pop("factors", None)

    def _by_tiles(self, p: Tensor, signal: Tensor, c: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        if not state:  # as AdamW begins
            state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
            state["exp_avg"] = torch.zeros_like(p)
            state["exp_avg_sq"] = torch.zeros_like(p)
        signal, c = signal.to(p.dtype), c.to(p.dtype)
        rows = max(1, TILE // (p.shape[1] * p.element_size()))
        buffer = p.new_empty(min(rows, len(p)), p.shape[1])
        beta1, beta2 = group["betas"]
        for first in range(0, len(p), rows):
            part = slice(first, min(first + rows, len(p)))
            gradient = torch.mm(signal[:, part].T, c, out=buffer[: part.stop - first])
            adamw(
                [p[part]],
                [gradient],
                [state["exp_avg"][part]],
                [state["exp_avg_sq"][part]],
                [],
                [state["step"].clone()],  # it is counted up for every tile
                fused=True,
                amsgrad=False,
                beta1=beta1,
                beta2=beta2,
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )
        state["step"] += 1
