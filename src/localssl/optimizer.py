"""AdamW that takes a dense projection's gradient as two thin factors and never makes it as a whole.

Its second moment can be factored, too, for those parameters that stand in a group with ``factored_moment=True``: of g²
only the means over rows and columns are kept, R (d_z) and C (d_c), and R_i C_j / mean(R) stands in v_ij's place
(Shazeer & Stern 2018). Both means follow from the factors alone, without g. It is exact where g² has rank one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from typing_extensions import override

from localssl.errors import UsageError
from localssl.products import by_onednn, product

TILE = 8 * 2**20  # bytes of a gradient that are there at a time,
PARTS = 4  # and no more than a fourth of it: of small matrices 8 MiB would be most of a step's memory;
LEAST = 2 * 2**20  # but so much in any case: below, a tile's calls take longer than its numbers


def add_grad(p: Tensor, gradient: Tensor) -> None:
    """Add a tensor that nobody else holds to ``p.grad``, laid out in memory as ``p`` is, as autograd does it.

    On the CPU PyTorch's fused optimisers read weight and gradient in the order of their memory, and would take a
    channels-last gradient for that of other entries of a contiguous weight, without a word.
    """
    gradient = gradient.to(p.dtype)
    if p.grad is not None:
        p.grad += gradient
    else:
        p.grad = gradient if gradient.stride() == p.stride() else torch.empty_like(p).copy_(gradient)


def leave_factors(p: Tensor, signal: Tensor, c: Tensor) -> None:
    """Add Σ_i signal_i c_iᵀ to the gradient of ``p`` (d_z, d_c) as its factors (N, d_z) and (N, d_c), for ``step``."""
    if (before := factors_of(p)) is not None:
        signal, c = torch.cat((before[0], signal)), torch.cat((before[1], c))
    p.factors = (signal, c)  # pyright: ignore[reportAttributeAccessIssue]


def factors_of(p: Tensor) -> tuple[Tensor, Tensor] | None:
    """The factors that were left and not yet used."""
    return p.__dict__.get("factors")


def be_rows(p: Tensor, of: int, total: Callable[[Tensor], Tensor]) -> None:
    """Say that ``p`` is some rows of a matrix of ``of`` rows; ``total`` sums over all who hold some of them."""
    p.rows = (of, total)  # pyright: ignore[reportAttributeAccessIssue]


class FactoredAdamW(torch.optim.AdamW):
    """PyTorch's fused AdamW; parameters with factors are updated tile by tile, with the same result to rounding.

    Its state is AdamW's own. A gradient in ``.grad`` is treated as there; with factors beside it, their sum is. Groups
    with ``factored_moment`` keep "row" and "column" in place of "exp_avg_sq", whichever way their gradient comes.

    Raises:
        UsageError: an option of AdamW's, of all or of a group, that factors would be without.
    """

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, fused=True, **options)

    @override
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        for option in ("amsgrad", "maximize"):
            if param_group.get(option, self.defaults[option]):
                raise UsageError(f"FactoredAdamW has no {option}: factors would be updated without it")
        super().add_param_group(param_group)

    @override
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update of everything that has a gradient or factors."""
        loss = evaluated(closure)
        for group in self.param_groups:
            dense: list[tuple[Tensor, dict[str, Tensor]]] = []
            for p in group["params"]:
                factors = factors_of(p)
                p.__dict__.pop("factors", None)
                if factors is not None and p.grad is not None:  # one step, of their sum
                    p.grad.addmm_(factors[0].T.to(p.dtype), factors[1].to(p.dtype))
                    factors = None
                if factors is None and p.grad is None:
                    continue
                if group.get("factored_moment"):
                    self._by_rows_and_columns(p, factors, p.grad, group)
                elif factors is not None:
                    self._by_tiles(p, *factors, group)
                else:
                    dense.append((p, self._moments(p)))
            if dense:
                self._as_adamw(dense, group)
        return loss

    @override
    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget gradients and factors."""
        super().zero_grad(set_to_none)
        for group in self.param_groups:
            for p in group["params"]:
                p.__dict__.pop("factors", None)

    def _moments(self, p: Tensor) -> dict[str, Tensor]:
        """The state of ``p``, which begins as AdamW's does."""
        state = self.state[p]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
            state["exp_avg"] = torch.zeros_like(p)
            state["exp_avg_sq"] = torch.zeros_like(p)
        return state

    def _as_adamw(self, dense: list[tuple[Tensor, dict[str, Tensor]]], group: dict[str, Any]) -> None:
        """PyTorch's own step of those with gradients; AdamW's ``step`` around it costs small blocks dearly.

        A gradient scaler's scale holds here alone: no backward pass made the factors.
        """
        adamw(
            [p for p, _ in dense],
            [p.grad for p, _ in dense],  # pyright: ignore[reportArgumentType]
            [state["exp_avg"] for _, state in dense],
            [state["exp_avg_sq"] for _, state in dense],
            [],
            [state["step"] for _, state in dense],
            fused=True,
            grad_scale=getattr(self, "grad_scale", None),
            found_inf=getattr(self, "found_inf", None),
            **_options(group),
        )

    def _by_tiles(self, p: Tensor, signal: Tensor, c: Tensor, group: dict[str, Any]) -> None:
        state = self._moments(p)
        signal, c = signal.to(p.dtype), c.to(p.dtype)
        buffer, columns = _buffer(p, signal, c), c.T
        state["step"] += 1
        steps, options = [state["step"]], _options(group)
        whole = (p.detach(), signal.T, state["exp_avg"], state["exp_avg_sq"])
        for weight, part, first, second in zip(*(x.split(tile_rows(p)) for x in whole), strict=True):
            gradient = product(part, columns, None if buffer is None else buffer[: len(weight)])
            # What ``adamw`` calls: the rest of it, at every tile, takes as long as a small tile does.
            torch._fused_adamw_(  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
                [weight], [gradient], [first], [second], [], steps, **options
            )
            del gradient  # else it is there while the next tile is made

    def _by_rows_and_columns(
        self, p: Tensor, factors: tuple[Tensor, Tensor] | None, dense: Tensor | None, group: dict[str, Any]
    ) -> None:
        """A step of ``p`` (d_z, d_c) by its factors or its dense gradient."""
        state = self.state[p]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
            state["exp_avg"] = torch.zeros_like(p)
            state["row"], state["column"] = p.new_zeros(len(p)), p.new_zeros(p.shape[1])
        if dense is None:
            assert factors is not None
            signal, c = (x.to(p.dtype) for x in factors)
            row, column = _sums_of_squares(signal, c), _sums_of_squares(c, signal)
        else:
            signal = c = dense[:0]
            row, column = dense.square().sum(1), dense.square().sum(0)
        (beta1, beta2), lr = group["betas"], group["lr"]
        state["step"] += 1
        state["row"].lerp_(row / p.shape[1], 1 - beta2)
        count, mean = len(p), state["row"].mean()
        if "rows" in p.__dict__:
            count, total = p.__dict__["rows"]
            column, mean = total(torch.cat((column, state["row"].sum()[None]))).tensor_split([len(column)])
            mean = mean[0] / count
        state["column"].lerp_(column / count, 1 - beta2)
        smallest = torch.finfo(p.dtype).tiny
        steps = state["step"].to(p.dtype)
        corrected, squared = (-torch.expm1(steps * (math.log(b) if b else -math.inf)) for b in (beta1, beta2))  # 1 − βᵗ
        left = (state["row"] / squared).sqrt_()
        right = (state["column"] / mean.clamp_min(smallest)).sqrt_()
        rows = tile_rows(p)
        buffer = _buffer(p, signal, c) if dense is None else None
        for first in range(0, len(p), rows):
            part = slice(first, min(first + rows, len(p)))
            room = None if buffer is None else buffer[: part.stop - first]
            gradient = product(signal[:, part].T, c.T, room) if dense is None else dense[part]
            moment = state["exp_avg"][part].lerp_(gradient, 1 - beta1)
            scale = torch.outer(left[part], right).add_(group["eps"]).mul_(corrected)
            p[part].mul_(1 - lr * group["weight_decay"]).addcdiv_(moment, scale, value=-lr)
            del gradient, scale


def tile_rows(p: Tensor) -> int:
    """Rows of a tile of the gradient of ``p``."""
    row = p.shape[1] * p.element_size()
    return max(1, min(len(p), TILE // row, max(-(-len(p) // PARTS), LEAST // row)))


def _buffer(p: Tensor, signal: Tensor, c: Tensor) -> Tensor | None:
    """Room for every tile in turn, where the product takes it; oneDNN's has memory of its own."""
    rows = tile_rows(p)
    return None if by_onednn(signal[:, :rows].T, c.T, tile=True) else p.new_empty(rows, p.shape[1])


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    """Of a group, as PyTorch's functions take them."""
    beta1, beta2 = group["betas"]
    named = {name: group[name] for name in ("lr", "weight_decay", "eps")}
    return {"beta1": beta1, "beta2": beta2, "amsgrad": False, "maximize": False, **named}


def evaluated(closure: Callable[[], float] | None) -> float | None:
    """The loss that a step returns: PyTorch's optimisers ask for it anew where they are given how."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


class ShiftSGD(torch.optim.Optimizer):
    """Descent without multiplications: the step of every tensor is its gradient, shifted.

    Δp = -lr · u · clip(g / s, ±8). u and s are powers of two: u the one nearest the mean of |p| at the first step, s at
    first the one nearest the mean of |g|, afterwards doubled or halved by a step in which that mean is more than twice
    or less than half of it. So lr is the size of a step beside the weights', and known before a batch comes.

    Args:
        params: what is trained.
        lr: relative to the weights; a power of two where no multiplication is wanted.
        shifted: False: Δp = -lr · g.
    """

    CLIP = 8.0

    def __init__(self, params: Any, lr: float, shifted: bool = True):
        super().__init__(params, {"lr": lr, "shifted": shifted})

    @override
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update of everything that has a gradient."""
        loss = evaluated(closure)
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.add_(self.change(p, group).to(p.dtype))
        return loss

    def change(self, p: Tensor, group: dict[str, Any]) -> Tensor:
        """The change that is due, float64; the tensor's s goes with the gradient."""
        assert p.grad is not None
        g = p.grad.double()
        if not group["shifted"]:
            return -group["lr"] * g
        state, size = self.state[p], float(g.abs().sum())
        if size == 0:
            return g
        if not state:
            state["u"] = power_of_two(float(p.double().abs().mean()) or 2.0**-8)
            state["s"] = power_of_two(size / g.numel())
        s, whole = state["s"], state["s"] * g.numel()
        state["s"] *= 2.0 if size > 2 * whole else 0.5 if size < whole / 2 else 1.0
        return (g / s).clamp_(-self.CLIP, self.CLIP).mul_(-group["lr"] * state["u"])


def power_of_two(x: float) -> float:
    """The nearest one, by ratio."""
    return 2.0 ** round(math.log2(x))


def _sums_of_squares(one: Tensor, other: Tensor) -> Tensor:
    """Σ_j g_ij² of g = oneᵀ · other, from (N, d) and (N, e), in N² d multiply-adds: g is never made."""
    return ((other @ other.T @ one) * one).sum(0).clamp_min_(0)
