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

    ``batches`` counts those where both gradients were non-zero; ``mean`` is NaN where there was none. ``null`` is the
    mean with the pairs shuffled: each batch's local gradient against the reference gradient of the batch before (the
    first's: of the last). What it shares with ``mean`` owes nothing to the batch; NaN for fewer than two batches.
    """

    block: int
    quantity: str
    mean: float
    low: float
    high: float
    batches: int
    null: float = float("nan")


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
        UsageError: no batch, or gradients that are not the same when computed twice.
    """
    places = [(block, quantity) for block in range(len(learner.encoder.blocks)) for quantity in QUANTITIES]
    values: dict[tuple[int, str], list[float]] = {place: [] for place in places}
    shuffled: dict[tuple[int, str], list[float]] = {place: [] for place in places}
    label_list = iter(labels) if labels is not None else None
    first: list[Tensor] = []  # the first batch's local gradients, the last one's reference gradients
    last: list[Tensor] = []
    seen = 0
    for view_a, view_b in batches:
        y = next(label_list) if label_list is not None else None
        negatives = shared_negatives(learner, len(view_a), view_a.device)
        local, reference = _both(learner, view_a, view_b, negatives, y)
        if seen == 0:
            _guard((local, reference), _both(learner, view_a, view_b, negatives, y))
            first = local
        else:
            _add(shuffled, local, last)
        _add(values, local, reference)
        last = reference
        seen += 1
    if seen == 0:
        raise UsageError("alignment needs at least one batch of views")
    if seen > 1:
        _add(shuffled, first, last)
    rows: list[LayerAlignment] = []
    for (block, quantity), found in values.items():
        mean, low, high = t_interval(found) if found else (float("nan"),) * 3
        other = shuffled[block, quantity]
        null = sum(other) / len(other) if other else float("nan")
        rows.append(LayerAlignment(block + 1, quantity, mean, low, high, len(found), null))
    return rows


def _both(
    learner: Learner, view_a: Tensor, view_b: Tensor, negatives: Tensor | None, labels: Tensor | None
) -> tuple[list[Tensor], list[Tensor]]:
    """The rule's gradients and the reference's, per block."""
    local = block_gradients(learner.encoder, learner.losses(view_a, view_b, negatives, labels).sum())
    return local, block_gradients(learner.encoder, learner.end_to_end_loss(view_a, view_b, negatives, labels))


def _add(values: dict[tuple[int, str], list[float]], local: list[Tensor], reference: list[Tensor]) -> None:
    for block, (x, r) in enumerate(zip(local, reference, strict=True)):
        for quantity, value in (compare(x, r) or {}).items():
            values[block, quantity].append(value)


def _guard(once: tuple[list[Tensor], list[Tensor]], again: tuple[list[Tensor], list[Tensor]]) -> None:
    """Refuse gradients that are not the same when computed twice: on the CPU to the bit, elsewhere to 1e-5."""
    for a, b in zip((*once[0], *once[1]), (*again[0], *again[1]), strict=True):
        allowed = 0.0 if a.device.type == "cpu" else 1e-5 * float((a @ a).sqrt())
        if not float((a - b).abs().max()) <= allowed:
            raise UsageError(
                "gradients differ when computed twice on the same batch: a block or the rule draws random numbers "
                "(dropout?) or has gradients that are not finite; call learner.eval() first"
            )


def shared_negatives(learner: Learner, n: int, device: torch.device) -> Tensor | None:
    """One draw of negatives for all layers and both gradients, (2n,); None for rules that draw none."""
    rule = learner.rule
    if not rule.uses_negatives:
        return None
    if isinstance(rule, ScoreRule) and rule.negatives == "random":
        return torch.randint(2 * n, (2 * n,), device=device)
    return (torch.arange(2 * n, device=device) + 1) % (2 * n)
