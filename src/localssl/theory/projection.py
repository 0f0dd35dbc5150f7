"""The optimal projection B* of one layer on one batch, exactly and without ever searching over d × d numbers.

B* minimises Σ f(z_pos·Bc) + f(-z_neg·Bc_neg) + λ‖B‖² (paper equation 1; sums over the batch). It lies in the span of
the batch's outer products: with x the positives and the negated negatives and y their references, B* = Σ α_k x_k y_kᵀ.
What is left are at most 2n unknowns: scores u = Kα with K = (x xᵀ)∘(y yᵀ), and 2λα + f'(u) = 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from localssl.errors import UsageError
from localssl.theory import solvers
from localssl.theory.forms import LINEAR, Form, Hinge, form

_EXACT = 1e-12  # of the residual in the dual; beyond it the minimum is sought in the scores
_ZERO = 1e-13  # scores so small beside their terms are rounding errors
_REFUSED = 1e-6  # a residual that no gradient should be made of; it is 1e-12 or less unless numbers are extreme


@dataclass(frozen=True)
class Optimum:
    """The minimum over B, as α; B itself is made only by ``matrix``.

    Attributes:
        x: (m, d_z), positives then negated negatives (type 2), or their differences (type 1).
        y: (m, d_c), the reference of each.
        alpha: (m,), B* = Σ α_k x_k y_kᵀ.
        scores: (m,), u_k = x_k·B*y_k.
        slopes: (m,), f'(u_k), which is -2λα_k where K is regular (where it is singular other α make the same B*). For
            the hinge at its kink: the subgradient that the optimum selects.
        loss: the minimum, a sum over the batch.
        residual: largest |2λα + f'(u)|; for the hinge, the largest violation of u = 1, u >= 1, u <= 1; where the dual
            did not reach 1e-12, what Newton's last step changed a score by, relative to 1 + |u|.
    """

    x: Tensor
    y: Tensor
    alpha: Tensor
    scores: Tensor
    slopes: Tensor
    loss: float
    residual: float

    def matrix(self) -> Tensor:
        """B*, (d_z, d_c)."""
        return (self.x * self.alpha[:, None]).T @ self.y

    def predict(self, c: Tensor) -> Tensor:
        """g = c B*ᵀ, (n, d_z), for references c (n, d_c); costs n·m·(d_z + d_c), B* is not built."""
        return ((c.to(self.y) @ self.y.T) * self.alpha) @ self.x


def signed(z_pos: Tensor, z_neg: Tensor, loss_type: int) -> Tensor:
    """x: positives and negated negatives, (2n, d_z), for type 2; z_pos - z_neg, (n, d_z), for type 1."""
    return torch.cat((z_pos, -z_neg)) if loss_type == 2 else z_pos - z_neg


def pairs(
    z_pos: Tensor, z_neg: Tensor, c: Tensor, loss_type: int, weight_decay: float, c_neg: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """x (m, d_z) and y (m, d_c) in float64: the loss is Σ f(x_k·By_k) + λ‖B‖². Errors as ``optimal_projection``."""
    _check(z_pos, z_neg, c, loss_type, weight_decay, c_neg)
    z_pos, z_neg, c = z_pos.detach().double(), z_neg.detach().double(), c.detach().double()
    y = torch.cat((c, c if c_neg is None else c_neg.detach().double())) if loss_type == 2 else c
    return signed(z_pos, z_neg, loss_type), y


def solve(
    z_pos: Tensor,
    z_neg: Tensor,
    c: Tensor,
    f: str | Form | Hinge = "softplus",
    loss_type: int = 2,
    weight_decay: float = 0.01,
    c_neg: Tensor | None = None,
) -> Optimum:
    """The minimum over B in the implicit form, for layers too wide to build B. Arguments as ``optimal_projection``."""
    chosen = form(f)
    x, y = pairs(z_pos, z_neg, c, loss_type, weight_decay, c_neg)
    kernel = (x @ x.T) * (y @ y.T)
    if isinstance(chosen, Hinge):
        alpha = solvers.box(kernel, weight_decay)
        residual = solvers.violation(kernel, alpha, weight_decay)
    else:
        ones = torch.ones(len(x), dtype=x.dtype, device=x.device)
        alpha = ones / (2 * weight_decay) if chosen is LINEAR else solvers.newton(kernel, chosen, weight_decay)
        residual = float((2 * weight_decay * alpha + chosen.slope(kernel @ alpha)).abs().max())
    u, slopes = kernel @ alpha, -2 * weight_decay * alpha
    terms = float((kernel.abs() @ alpha.abs()).max())  # what scores are sums of
    if isinstance(chosen, Form) and chosen is not LINEAR and not residual <= _EXACT:
        alpha, u, residual = solvers.newton_in_scores(x, y, chosen, weight_decay)
        slopes, terms = chosen.slope(u), 1.0
    if not residual <= _REFUSED:
        raise UsageError(
            f"the optimum was not found (residual {residual:.1e}): activities so large against weight_decay "
            f"{weight_decay:g} leave float64 no digits; scale them down or raise weight_decay"
        )
    if float(u.abs().max()) <= _ZERO * terms:  # B* = 0, where it must not pass on gradients made of rounding errors
        alpha, u = torch.zeros_like(alpha), torch.zeros_like(u)
    loss = float(chosen.value(u).sum() + weight_decay * alpha @ u)
    return Optimum(x, y, alpha, u, slopes, loss, residual)


def optimal_projection(
    z_pos: Tensor,
    z_neg: Tensor,
    c: Tensor,
    f: str | Form | Hinge = "softplus",
    loss_type: int = 2,
    weight_decay: float = 0.01,
    c_neg: Tensor | None = None,
) -> Tensor:
    """The B, (d_z, d_c) in float64, that minimises the layer's loss on one batch (paper equation 1 and its type 1).

    Type 2: Σ_i f(z_pos,i·Bc_i) + f(-z_neg,i·Bc_neg,i) + λ‖B‖². Type 1: Σ_i f((z_pos,i - z_neg,i)·Bc_i) + λ‖B‖².

    Args:
        z_pos: (n, d_z), activities of the positive samples.
        z_neg: (n, d_z), of the negative ones.
        c: (n, d_c), the reference of each sample.
        f: "softplus" log(1 + e^(-x)), "hinge" max(0, 1 - x), "linear" -x, or a ``Form`` of your own.
        loss_type: 2 or 1.
        weight_decay: λ > 0.
        c_neg: (n, d_c), the reference of the negatives where it is another one (type 2).

    Raises:
        UsageError: λ <= 0 or an f that is not convex (the minimum would not be unique), shapes that do not fit,
            numbers so extreme that the minimum is not found.
    """
    return solve(z_pos, z_neg, c, f, loss_type, weight_decay, c_neg).matrix()


def _check(z_pos: Tensor, z_neg: Tensor, c: Tensor, loss_type: int, weight_decay: float, c_neg: Tensor | None) -> None:
    if not (weight_decay > 0 and math.isfinite(weight_decay)):
        raise UsageError(
            f"weight_decay is {weight_decay:g}; it must be positive: at 0 the loss is not strictly convex in B, "
            f"so the optimal B is not unique (or not finite)"
        )
    if loss_type not in (1, 2):
        raise UsageError(f"loss_type must be 1 or 2, got {loss_type!r}")
    if z_pos.ndim != 2 or z_pos.shape != z_neg.shape:
        raise UsageError(f"z_pos and z_neg must be (n, d_z) both, got {tuple(z_pos.shape)} and {tuple(z_neg.shape)}")
    if len(z_pos) == 0:
        raise UsageError("an empty batch has no optimal projection")
    if c.ndim != 2 or len(c) != len(z_pos):
        raise UsageError(f"c must be (n, d_c) with n = {len(z_pos)}, got {tuple(c.shape)}")
    if c_neg is not None and loss_type == 1:
        raise UsageError("c_neg has no meaning for type 1, where one reference serves both samples")
    if c_neg is not None and c_neg.shape != c.shape:
        raise UsageError(f"c_neg must have the shape of c, {tuple(c.shape)}, got {tuple(c_neg.shape)}")
    for name, tensor in (("z_pos", z_pos), ("z_neg", z_neg), ("c", c), ("c_neg", c_neg)):
        if tensor is not None and not torch.isfinite(tensor).all():
            raise UsageError(f"{name} holds NaN or infinite numbers")
