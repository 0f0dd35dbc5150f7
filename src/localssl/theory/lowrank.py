"""The optimal projection of restricted rank, B = F₁ᵀF₂ (Figure A1). Not convex: what is found depends on the start."""

from __future__ import annotations

import torch
from torch import Tensor

from localssl.theory.forms import Form, Hinge
from localssl.theory.projection import solve


def low_rank(
    z_pos: Tensor,
    z_neg: Tensor,
    c: Tensor,
    start: Tensor,
    f: str | Form | Hinge = "softplus",
    loss_type: int = 2,
    weight_decay: float = 0.01,
    steps: int = 100,
    tolerance: float = 1e-10,
) -> tuple[Tensor, float]:
    """A B of rank r, (d_z, d_c), and its loss, from the row space spanned by ``start`` (r, d_c).

    ``z_pos`` and ``z_neg`` are (n, d_z), ``c`` is (n, d_c), as in ``optimal_projection``, whose errors it raises.
    For a fixed row space the best B is an optimal projection with shorter references, for a fixed column space one with
    shorter activities; both are solved exactly, in turn, so the loss falls until it moves by less than ``tolerance``
    (relative) or ``steps`` are over. It may end in a minimum that is not the lowest.
    """
    z_pos, z_neg, c = z_pos.detach().double(), z_neg.detach().double(), c.detach().double()
    choice = (f, loss_type, weight_decay)
    rows = torch.linalg.qr(start.double().T).Q  # (d_c, r), orthonormal
    loss, alpha = float("inf"), None
    b = torch.zeros(z_pos.shape[1], c.shape[1], dtype=torch.float64)
    for _ in range(steps):
        best = solve(z_pos, z_neg, c @ rows, *choice, start=alpha)
        columns = torch.linalg.qr(best.matrix()).Q  # (d_z, r)
        best = solve(z_pos @ columns, z_neg @ columns, c, *choice, start=best.alpha)
        within, gain = best.matrix(), loss - best.loss
        b, loss, alpha = columns @ within, best.loss, best.alpha
        if gain <= tolerance * abs(loss):
            break
        rows = torch.linalg.qr(within.T).Q
    return b, loss
