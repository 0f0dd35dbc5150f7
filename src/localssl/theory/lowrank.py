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

    For a fixed row space the best B is an optimal projection with shorter references, for a fixed column space one with
    shorter activities; both are solved exactly, in turn, so the loss falls until it moves by less than ``tolerance``
    (relative) or ``steps`` are over. It may end in a minimum that is not the lowest.
    """
    rows = torch.linalg.qr(start.double().T).Q  # (d_c, r), orthonormal
    before = float("inf")
    b, loss = torch.zeros(z_pos.shape[1], c.shape[1], dtype=torch.float64), before
    for _ in range(steps):
        columns = solve(z_pos, z_neg, c.double() @ rows, f, loss_type, weight_decay).matrix()
        columns = torch.linalg.qr(columns).Q  # (d_z, r)
        best = solve(z_pos.double() @ columns, z_neg.double() @ columns, c, f, loss_type, weight_decay)
        within, loss = best.matrix(), best.loss
        b = columns @ within
        if before - loss <= tolerance * abs(loss):
            break
        before, rows = loss, torch.linalg.qr(within.T).Q
    return b, loss
