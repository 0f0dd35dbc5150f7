"""Exact minimisers in the dual: Newton's method for smooth f, an active set for the hinge. All in float64.

Both work on m unknowns, one a score, whatever the widths of the layers: K = (x xᵀ)∘(y yᵀ), scores u = Kα.
"""

from __future__ import annotations

import torch
from torch import Tensor

from localssl.theory.forms import Form

_STEPS = 200
_EXACT = 1e-14  # of the hinge's scores, which are near 1


def newton(kernel: Tensor, form: Form, weight_decay: float) -> Tensor:
    """α (m,) with 2λα + f'(Kα) = 0, the minimum of Σ f(Kα) + λ αᵀKα; K (m, m) may be singular.

    It goes on until rounding allows no better: the slopes may be tiny, and they are what the gradients are made of.
    A step solves (2λI + DK) δ = -r with D = diag f'', which has a solution for every K. δ descends the loss, so a
    backtracking line search makes it converge from anywhere.
    """
    lam = weight_decay
    alpha = torch.zeros(len(kernel), dtype=kernel.dtype, device=kernel.device)
    u = kernel @ alpha
    residual = 2 * lam * alpha + form.slope(u)
    eye = 2 * lam * torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device)
    for _ in range(_STEPS):
        worst = float(residual.abs().max())
        if worst == 0:
            break
        step = -torch.linalg.solve_ex(eye + form.curvature(u)[:, None] * kernel, residual)[0]
        new = _search(alpha, u, step, kernel, form, lam, worst)
        if new is None:  # rounding allows no better
            break
        alpha, u, residual = new
    return alpha


def _search(
    alpha: Tensor, u: Tensor, step: Tensor, kernel: Tensor, form: Form, lam: float, worst: float
) -> tuple[Tensor, Tensor, Tensor] | None:
    change = kernel @ step
    sizes = kernel.abs() @ alpha.abs()
    loss = float(form.value(u).sum() + lam * alpha @ u)
    slope = float(change @ (form.slope(u) + 2 * lam * alpha))
    noise = 1e-12 * abs(loss) + 1e-15 * float(lam * alpha.abs() @ sizes + sizes.sum())  # what rounding does to the loss
    length = 1.0
    while length > (0.1 if worst < 1e-12 * float(alpha.abs().max()) * 2 * lam else 1e-10):
        a = alpha + length * step
        v = kernel @ a  # anew, not u + length * change: rounding errors would add up
        residual = 2 * lam * a + form.slope(v)
        gain = loss - float(form.value(v).sum() + lam * a @ v)
        falls = float(residual.abs().max()) < worst
        if gain > max(noise, -1e-4 * length * slope) or (gain >= -noise and falls):
            return a, v, residual
        length /= 2
    return None


def newton_in_scores(x: Tensor, y: Tensor, form: Form, weight_decay: float) -> tuple[Tensor, Tensor, float]:
    """The same minimum where K is singular or λ next to nothing beside it, and the terms of Kα cancel.

    With K = V diag(s²) Vᵀ, V (m, rank) orthonormal, the scores are u = Vt, and t minimises Σ f(Vt) + λ Σ t²/s², whose
    numbers are of order one whatever the size of the activities.

    Returns:
        The α (m,) of smallest norm with Kα = u; u (m,); what Newton's last step still changed the scores by, over
        1 + |u|, which says how many digits rounding has left.
    """
    v, squares = _scores_basis(x, y)
    decay = 2 * weight_decay / squares
    t = torch.zeros_like(decay)

    def loss(t: Tensor) -> Tensor:
        return form.value(v @ t).sum() + (decay * t.square()).sum() / 2

    value, changed = loss(t), torch.inf
    for _ in range(_STEPS):
        u = v @ t
        gradient = v.T @ form.slope(u) + decay * t
        step = -torch.linalg.solve_ex((v * form.curvature(u)[:, None]).T @ v + torch.diag(decay), gradient)[0]
        change = float(((v @ step).abs() / (1 + u.abs())).max())
        if not change < changed and change < 1e-6:  # rounding allows no better
            break
        changed, length = change, 1.0
        while length > 1e-10:
            new = loss(t + length * step)
            if new <= value + 1e-4 * length * float(gradient @ step) + 1e-15 * abs(float(value)):
                break
            length /= 2
        else:
            break
        t, value = t + length * step, new
    return v @ (t / squares), v @ t, changed


def _scores_basis(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """V (m, rank) and s² (rank,), from the outer products x_k y_kᵀ themselves where they are short enough."""
    if x.shape[1] * y.shape[1] <= 2 * len(x):
        v, s, _ = torch.linalg.svd((x[:, :, None] * y[:, None]).flatten(1), full_matrices=False)
        kept = s > 1e-14 * s.max()
        return v[:, kept], s[kept].square()
    squares, v = torch.linalg.eigh((x @ x.T) * (y @ y.T))
    kept = squares > 1e-13 * squares.max()
    return v[:, kept], squares[kept]


def box(kernel: Tensor, weight_decay: float) -> Tensor:
    """α = β / 2λ (m,) for the hinge max(0, 1 - u): β in [0, 1] minimises βᵀQβ / 2 - Σβ with Q = K / 2λ.

    A primal active-set method, exact after finitely many steps. Each goes towards the minimum over the unknowns that
    no bound holds, as far as the bounds allow; one that meets a bound is held there; at that minimum, the one whose
    bound is most wrongly held is let go. Where Q is singular the step runs along its null space to a bound. There β
    need not be unique (B* is): the minimum as a function of z has a kink, so no gradient but a set of subgradients.
    """
    q = kernel / (2 * weight_decay)
    beta, held = _start(q)
    for _ in range(_STEPS * len(q)):
        slope = q @ beta - 1
        free = ~held
        step = torch.zeros_like(beta)
        if free.any():
            step[free], bounded = _step(q[free][:, free], slope[free])
            room = torch.where(step > 0, (1 - beta) / step, torch.where(step < 0, -beta / step, torch.inf))
            length = min(1.0 if bounded else torch.inf, float(room.min()))
            beta = (beta + length * step).clamp(0, 1)
            meets = free & (room <= length)
            if meets.any():
                beta[meets] = (step[meets] > 0).to(beta.dtype)
                held |= meets
                continue
            slope = q @ beta - 1
        wrong = torch.where(held, torch.where(beta > 0, slope, -slope), -torch.inf)
        if float(wrong.max()) <= _EXACT * len(q):
            break
        held[wrong.argmax()] = False
    return beta / (2 * weight_decay)


def _start(q: Tensor) -> tuple[Tensor, Tensor]:
    """A point near the minimum and which bounds hold there: projected Newton steps (Bertsekas 1982) while they help."""
    beta = torch.full((len(q),), 0.5, dtype=q.dtype, device=q.device)
    beta = beta / max(1.0, float((q @ beta).max()))  # scores of order one
    value, held = _objective(q, beta), torch.zeros_like(beta, dtype=torch.bool)
    for _ in range(50):
        slope = q @ beta - 1
        held = ((beta <= 0) & (slope >= 0)) | ((beta >= 1) & (slope <= 0))
        if held.all():
            break
        step = torch.zeros_like(beta)
        step[~held] = _step(q[~held][:, ~held], slope[~held])[0]
        tried = [(beta + 0.5**k * step).clamp(0, 1) for k in range(6)]
        values = [_objective(q, new) for new in tried]
        best = min(range(len(tried)), key=values.__getitem__)
        if not values[best] < value - 1e-12 * abs(value):
            break
        beta, value = tried[best], values[best]
    return beta, held


def _step(a: Tensor, slope: Tensor) -> tuple[Tensor, bool]:
    """The step to the minimum of a quadratic, or, where it has none (singular a), one that descends for ever."""
    factor, info = torch.linalg.cholesky_ex(a)
    diagonal = factor.diagonal()
    if int(info) == 0 and float(diagonal.min()) > 1e-6 * float(diagonal.max()):
        return -torch.cholesky_solve(slope[:, None], factor)[:, 0], True
    values, vectors = torch.linalg.eigh(a)
    along = vectors.T @ slope
    null = values <= 1e-12 * float(values.max())
    if float(along[null].norm()) > 1e-9 * float(slope.norm()) and float(along[null].norm()) > _EXACT:
        return -vectors[:, null] @ along[null], False
    return -vectors[:, ~null] @ (along[~null] / values[~null]), True


def _objective(q: Tensor, beta: Tensor) -> float:
    return float(beta @ (q @ beta) / 2 - beta.sum())


def violation(kernel: Tensor, alpha: Tensor, weight_decay: float) -> float:
    """How far the scores u are from what makes α the hinge's minimum: u >= 1 at β = 0, u <= 1 at β = 1, else u = 1."""
    beta = 2 * weight_decay * alpha
    over = kernel @ alpha - 1
    wrong = torch.where(beta < 1e-12, -over, torch.where(beta > 1 - 1e-12, over, over.abs()))
    return max(0.0, float(wrong.max()))
