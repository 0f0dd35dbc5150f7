"""The optimal projection of restricted rank, B = F₁ᵀF₂ (Figure A1). Not convex: what is found depends on the start.

At B = USVᵀ (U, V orthonormal) the rank leaves B free to move along T = {UMVᵀ + PVᵀ + UQᵀ : UᵀP = 0, VᵀQ = 0}. With f
taken to second order, the best B + ξ, ξ in T, is a problem like the one in ``projection``: it is Σ α_k Π(x_k y_kᵀ), Π
the projection onto T, K_kl = Π(x_k y_kᵀ)·Π(x_l y_lᵀ) and 2λα + f'(u) + D(Kα - u) = 0, D = diag f''(u). The factors
Uᵀ, SVᵀ go along S⁻ᵀPᵀ, MVᵀ + Qᵀ, which is ξ and a term of second order, as far as a line search allows: ξ descends.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from localssl.errors import UsageError
from localssl.theory.forms import Form, Hinge, form
from localssl.theory.projection import pairs

_HALVINGS = 40
_SHORT = 1 / 32  # a step cut to less of its length goes another way


@dataclass(frozen=True)
class LowRank:
    """What each of s starts came to.

    Attributes:
        matrices: (s, d_z, d_c), B.
        losses: (s,).
        residuals: (s,), the loss's gradient on T over that of its weight decay, |Π(∂L/∂B)| / |2λB|.
        converged: (s,), whether the residual met the tolerance.
    """

    matrices: Tensor
    losses: Tensor
    residuals: Tensor
    converged: Tensor


def low_rank(
    z_pos: Tensor,
    z_neg: Tensor,
    c: Tensor,
    f1: Tensor,
    f2: Tensor,
    f: str | Form | Hinge = "softplus",
    loss_type: int = 2,
    weight_decay: float = 0.01,
    steps: int = 500,
    tolerance: float = 1e-6,
) -> LowRank:
    """Minima of the layer's loss over B = F₁ᵀF₂, from s starts F₁ (s, r, d_z), F₂ (s, r, d_c).

    ``z_pos`` and ``z_neg`` are (n, d_z), ``c`` is (n, d_c). A start stops where its residual is at most ``tolerance``,
    or after ``steps``. What it ends in need not be the lowest minimum.

    Raises:
        UsageError: as ``optimal_projection``; the hinge, which has no second order; starts that do not fit.
    """
    chosen = form(f)
    if isinstance(chosen, Hinge):
        raise UsageError("a B of restricted rank is searched for with f' and f''; the hinge has none at its kink")
    x, y = pairs(z_pos, z_neg, c, loss_type, weight_decay)
    if f1.ndim != 3 or f1.shape[:2] != f2.shape[:2] or (f1.shape[2], f2.shape[2]) != (x.shape[1], y.shape[1]):
        raise UsageError(
            f"starts must be (s, r, {x.shape[1]}) and (s, r, {y.shape[1]}), got {tuple(f1.shape)} and {tuple(f2.shape)}"
        )
    # B lives in the span of the samples: fewer numbers, and no rank beyond the full one.
    span_x, span_y = _span(x), _span(y)
    problem = _Problem(x @ span_x, y @ span_y, chosen, weight_decay)
    at = problem.split(f1.double() @ span_x, f2.double() @ span_y)
    residuals = torch.full((len(f1),), torch.inf, dtype=x.dtype)
    left = torch.arange(len(f1))  # the starts that have not converged
    for _ in range(steps):
        new, residuals[left] = problem.step(tuple(part[left] for part in at), tolerance)
        for part, value in zip(at, new, strict=True):
            part[left] = value
        left = left[~(residuals[left] <= tolerance)]
        if len(left) == 0:
            break
    u, s, v = at
    matrices = span_x @ (u @ s @ v.mT) @ span_y.T
    scores = ((x @ matrices) * y).sum(2)
    losses = chosen.value(scores).sum(1) + weight_decay * matrices.square().sum((1, 2))
    return LowRank(matrices, losses, residuals, residuals <= tolerance)


def _span(x: Tensor) -> Tensor:
    """An orthonormal basis of the rows of x, (d, rank)."""
    _, values, vt = torch.linalg.svd(x, full_matrices=False)
    return vt[values > 1e-12 * values.max()].T


_Point = tuple[Tensor, ...]  # U (s, p, r), S (s, r, r), V (s, q, r)


@dataclass(frozen=True)
class _Problem:
    x: Tensor
    y: Tensor
    form: Form
    lam: float

    def split(self, f1: Tensor, f2: Tensor) -> _Point:
        """F₁ᵀF₂ as U, S, V."""
        v, right = torch.linalg.qr(f2.mT)
        u, s = torch.linalg.qr((right @ f1).mT)
        return u, s, v

    def step(self, at: _Point, tolerance: float) -> tuple[_Point, Tensor]:
        """One step, and the residual at the place it is taken from; those within ``tolerance`` stay."""
        u, s, v = at
        x, y, lam = self.x, self.y, self.lam
        xu, yv = x @ u, y @ v  # (s, m, r)
        scores = ((xu @ s) * yv).sum(2)
        slope = self.form.slope(scores)

        def project(weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            """M, P, Q of Π(Σ w_k x_k y_kᵀ)."""
            left, right = x.T @ (weights[:, :, None] * yv), y.T @ (weights[:, :, None] * xu)
            m = u.mT @ left
            return m, left - u @ m, right - v @ m.mT

        m, p, q = project(slope)
        square = torch.stack([part.square().sum((1, 2)) for part in (m + 2 * lam * s, p, q)]).sum(0)
        residual = (square / s.square().sum((1, 2))).sqrt() / (2 * lam)
        inner_x, inner_y = xu @ xu.mT, yv @ yv.mT
        kernel = inner_x * (y @ y.T) + (x @ x.T) * inner_y - inner_x * inner_y
        m, p, q = project(self._alpha(kernel, scores))
        f1, f2 = u.mT, s @ v.mT
        d1 = torch.linalg.solve_triangular(s.mT, p.mT, upper=False)
        d2 = (m - s) @ v.mT + q.mT
        length = torch.where(residual <= tolerance, 0, self._search(f1, f2, d1, d2))
        new = self.split(f1 + length[:, None, None] * d1, f2 + length[:, None, None] * d2)
        short = (length < _SHORT) & (residual > tolerance)
        if short.any():  # a singular value near 0: the column there may turn, or the row, not both at once
            u, s, v = (part[short] for part in at)
            f1, f2 = (u @ s).mT, v.mT
            alpha = self._alpha((x @ x.T) * inner_y[short], scores[short])
            d1 = (alpha[:, :, None] * yv[short]).mT @ x - f1
            length = self._search(f1, f2, d1, torch.zeros_like(f2))
            for part, value in zip(new, self.split(f1 + length[:, None, None] * d1, f2), strict=True):
                part[short] = value
        return new, residual

    def _alpha(self, kernel: Tensor, scores: Tensor) -> Tensor:
        """Where Newton's step goes, (s, m)."""
        curvature = self.form.curvature(scores)
        eye = 2 * self.lam * torch.eye(len(self.x), dtype=self.x.dtype)
        return torch.linalg.solve(eye + curvature[:, :, None] * kernel, curvature * scores - self.form.slope(scores))

    def _search(self, f1: Tensor, f2: Tensor, d1: Tensor, d2: Tensor) -> Tensor:
        """The first length of 1, ½, ¼ … (s,) at which (F₁ + tD₁)ᵀ(F₂ + tD₂) has descended enough (Armijo); else 0.

        Where rounding hides the descent, the slope there must not have turned (Hager and Zhang 2005).
        """
        a, b, along_a, along_b = self.x @ f1.mT, self.y @ f2.mT, self.x @ d1.mT, self.y @ d2.mT
        u_0, u_1, u_2 = (a * b).sum(2), (along_a * b + a * along_b).sum(2), (along_a * along_b).sum(2)
        gram_1, gram_2 = ((f @ f.mT, f @ d.mT + d @ f.mT, d @ d.mT) for f, d in ((f1, d1), (f2, d2)))
        decay = torch.zeros(5, len(f1), dtype=f1.dtype)  # of ‖B‖², a polynomial of the length
        for i, g in enumerate(gram_1):
            for j, h in enumerate(gram_2):
                decay[i + j] += self.lam * (g * h).sum((1, 2))
        start = self.form.value(u_0).sum(1) + decay[0]
        slope = (self.form.slope(u_0) * u_1).sum(1) + decay[1]
        length = torch.ones_like(slope)
        found = torch.zeros_like(slope, dtype=torch.bool)
        for _ in range(_HALVINGS):
            t = length[:, None]
            u = u_0 + t * (u_1 + t * u_2)
            powers = torch.stack([length**k for k in range(5)])
            change = self.form.value(u).sum(1) + (decay * powers).sum(0) - start
            there = (self.form.slope(u) * (u_1 + 2 * t * u_2)).sum(1)
            there = there + sum(k * decay[k] * powers[k - 1] for k in range(1, 5))
            flat = (change <= 1e-14 * start.abs()) & (there <= -0.9 * slope)
            found = (change <= 1e-4 * length * slope) | flat
            if found.all():
                break
            length = torch.where(found, length, length / 2)
        return torch.where(found, length, 0)
