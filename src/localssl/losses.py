"""Losses of scores (paper section 3, Table 1) and the end-to-end InfoNCE loss. All are means over samples."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

FORMS = ("hinge", "softplus", "linear")


def decreasing(f: str, x: Tensor, margin: float) -> Tensor:
    """The decreasing function f of a score x: hinge max(0, m - x), softplus log(1 + e^(m - x)), linear -x.

    The gradient of the hinge at the kink x = m is 0, so its modulator is 1[x < m].
    """
    if f == "hinge":
        return F.relu(margin - x)
    if f == "softplus":
        return F.softplus(margin - x, threshold=40)  # PyTorch's 20 is off by 2e-9; beyond 40 float64 cannot tell
    return -x


def score(z: Tensor, g: Tensor) -> Tensor:
    """Scores s_i = z_i . g_i, shape (N,), for activities z (N, d) and predictions g = B c (N, d)."""
    return (at_least_float32(z) * at_least_float32(g)).sum(1)  # a sum of thousands of terms


def at_least_float32(x: Tensor) -> Tensor:
    """``x``, in float32 where autocast left it in half precision."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def contrast(s_pos: Tensor, s_neg: Tensor, f: str, loss_type: int, margin: float) -> Tensor:
    """The contrastive loss of a layer, a scalar.

    Type 2 (paper section 3): mean of f(s_pos) + f(-s_neg); with the hinge, max(0, 1 - s_pos) + max(0, 1 + s_neg).
    Type 1: mean of f(s_pos - s_neg).
    """
    if loss_type == 1:
        return decreasing(f, s_pos - s_neg, margin).mean()
    return decreasing(f, s_pos, margin).mean() + decreasing(f, -s_neg, margin).mean()


def info_nce(p_a: Tensor, p_b: Tensor, temperature: float) -> Tensor:
    """InfoNCE of two views' projections (n, d), one direction: view a (rows) must find its partner in view b.

    Mean over rows of minus the log-softmax, at the diagonal, of cosine similarities (eps 1e-9) over ``temperature``.
    """
    similarity = F.cosine_similarity(p_a[:, None], p_b[None], dim=2, eps=1e-9) / temperature
    return F.cross_entropy(similarity, torch.arange(len(p_a), device=p_a.device))


def nt_xent(p: Tensor, temperature: float) -> Tensor:
    """SimCLR's loss of both views' projections (2n, d), view a above view b: each must find its partner.

    Mean over all 2n of minus the log-softmax, at the partner, of the cosine similarities (norms of at least 1e-9) with
    the 2n - 1 others over ``temperature``.
    """
    with torch.autocast(p.device.type, enabled=False):
        unit = F.normalize(at_least_float32(p), dim=1, eps=1e-9)
        itself = torch.eye(len(p), dtype=torch.bool, device=p.device)
        similarity = (unit @ unit.T / temperature).masked_fill(itself, -torch.inf)
    return F.cross_entropy(similarity, torch.arange(len(p), device=p.device).roll(len(p) // 2))


def lpl_terms(z_a: Tensor, z_b: Tensor, eps: float = 1e-4) -> tuple[Tensor, Tensor, Tensor]:
    """Pull, push and decorrelation of two views' readouts (n, d), scalars (Halvagal & Zenke 2023, with their erratum).

    pull = mean over samples and units of (z_a - z_b)². With batch variances var_i and covariances C_ik (divisor n - 1,
    the mean a constant), each the average of the two views: push = -mean_i log(var_i + eps), decorrelation =
    Σ_{i≠k} C_ik² / (d² - d).
    """
    pull = (z_a - z_b).square().mean()
    push, decorrelation = torch.zeros_like(pull), torch.zeros_like(pull)
    for z in (z_a, z_b):
        centred = z - z.mean(0).detach()
        covariance = centred.T @ centred / (len(z) - 1)
        variance, d = covariance.diagonal(), len(covariance)
        push = push - torch.log(variance + eps).mean() / 2
        others = covariance.square().sum() - variance.square().sum()
        decorrelation = decorrelation + others / max(d * d - d, 1) / 2
    return pull, push, decorrelation
