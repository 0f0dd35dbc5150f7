"""Alignment: how close a rule's weight gradient is to backpropagation's, at the same weights, views and negatives."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from localssl.encoders import Encoder
from localssl.errors import UsageError
from localssl.learner import Learner
from localssl.rules.base import ScoreRule
from localssl.stats import t_interval

QUANTITIES = ("cosine", "relative_error", "norm_ratio", "sign_agreement")


@dataclass(frozen=True)
class LayerAlignment:
    """One quantity of one block: mean over batches and the ends of the 95 % t interval over batches.

    ``batches`` counts those where both gradients were non-zero; ``mean`` is NaN where there was none.
    """

    block: int
    quantity: str
    mean: float
    low: float
    high: float
    batches: int


def reference_name(learner: Learner) -> str:
    """What the rule is held against."""
    if learner.rule.credit == "backprop":
        return f"itself ({learner.rule.name} is end to end)"
    return f"backpropagation of {learner.rule.name}'s own last-layer loss"


def block_gradients(encoder: Encoder, loss: Tensor) -> list[Tensor]:
    """Gradient of ``loss`` with respect to every block's weights (no biases), one flat float64 vector per block."""
    blocks = [[p for p in block.parameters() if p.ndim > 1] for block in encoder.blocks]
    flat = [p for block in blocks for p in block]
    grads: Iterator[Tensor | None] = iter(
        cast(tuple[Tensor | None, ...], torch.autograd.grad(loss, flat, allow_unused=True))
    )
    result: list[Tensor] = []
    for block in blocks:
        found = [(p, next(grads)) for p in block]
        parts = [torch.zeros_like(p) if g is None else g for p, g in found]
        result.append(torch.cat([g.flatten().double() for g in parts]) if parts else torch.zeros(0))
    return result


def compare(local: Tensor, reference: Tensor) -> dict[str, float] | None:
    """The quantities of ``QUANTITIES`` for two gradients; None where either is zero and no angle exists.

    cosine x.y/(|x||y|); relative_error |x - y|²/|y|²; norm_ratio |x|/|y|; sign_agreement: share of entries, among those
    where both are non-zero, with equal sign (NaN if there is none).
    """
    x, y = float((local @ local).sqrt()), float((reference @ reference).sqrt())
    if x == 0 or y == 0:
        return None
    both = (local != 0) & (reference != 0)
    return {
        "cosine": float(local @ reference) / (x * y),
        "relative_error": float((local - reference).square().sum()) / y**2,
        "norm_ratio": x / y,
        "sign_agreement": float((local.sign() == reference.sign())[both].double().mean()),
    }


def measure(
    learner: Learner, batches: Iterable[tuple[Tensor, Tensor]], labels: Iterable[Tensor] | None = None
) -> list[LayerAlignment]:
    """Alignment of the learner's rule with backpropagation of the rule's own last-layer loss, block by block.

    The reference has the rule's own readout, B^L and gates (``clapp++both``: the sum of its two last-layer losses).

    Args:
        learner: encoder, rule and projections, at the weights to measure at; unchanged.
        batches: pairs of views, each (n, C, H, W); rule and reference share them and their negatives.
        labels: one LongTensor (n,) per batch, for supervised rules.

    Returns:
        For each block and each of ``QUANTITIES``: mean and 95 % t interval over batches.

    Raises:
        UsageError: no batch.
    """
    n_blocks = len(learner.encoder.blocks)
    values: dict[tuple[int, str], list[float]] = {(b, q): [] for b in range(n_blocks) for q in QUANTITIES}
    label_list = iter(labels) if labels is not None else None
    seen = 0
    for view_a, view_b in batches:
        seen += 1
        y = next(label_list) if label_list is not None else None
        negatives = shared_negatives(learner, len(view_a), view_a.device)
        local = block_gradients(learner.encoder, learner.losses(view_a, view_b, negatives, y).sum())
        reference = block_gradients(learner.encoder, learner.end_to_end_loss(view_a, view_b, negatives, y))
        for block, (x, r) in enumerate(zip(local, reference, strict=True)):
            for quantity, value in (compare(x, r) or {}).items():
                values[block, quantity].append(value)
    if seen == 0:
        raise UsageError("alignment needs at least one batch of views")
    rows: list[LayerAlignment] = []
    for (block, quantity), found in values.items():
        mean, low, high = t_interval(found) if found else (float("nan"),) * 3
        rows.append(LayerAlignment(block + 1, quantity, mean, low, high, len(found)))
    return rows


def shared_negatives(learner: Learner, n: int, device: torch.device) -> Tensor | None:
    """One draw of negatives for all layers and both gradients, (2n,); None for rules that draw none."""
    rule = learner.rule
    if not rule.uses_negatives:
        return None
    if isinstance(rule, ScoreRule) and rule.negatives == "random":
        return torch.randint(2 * n, (2 * n,), device=device)
    return (torch.arange(2 * n, device=device) + 1) % (2 * n)
