"""Projections brought to the minimum of their rule's own loss while the encoder stays as it is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from localssl.alignment.signals import to_pairs
from localssl.errors import UsageError
from localssl.learner import Learner
from localssl.rules.base import Batch


def fit_projections(
    learner: Learner, data: Iterable[Sequence[Tensor | None]], epochs: int = 30, lr: float = 1e-3
) -> list[float]:
    """Train the learner's projections on its rule's losses; the encoder is frozen and run once a batch.

    Adam from the present projections, over all batches ``epochs`` times, the rate falling to zero as a cosine. The
    readouts of all batches are kept in memory meanwhile.

    Args:
        learner: its projections change, its encoder does not.
        data: batches as in ``measure``.
        epochs: passes over the batches.
        lr: rate of the first step.

    Returns:
        The mean loss of every pass, so that one can see whether the fit has settled.

    Raises:
        UsageError: no batch, or losses that are not finite.
    """
    batches: list[Batch] = []
    with torch.no_grad():
        for item in data:
            pair = to_pairs([learner], item)
            found = learner.batch(*pair, credit="local")
            batches.append(Batch([z.detach() for z in found.z], pair.negatives, pair.labels))
    if not batches:
        raise UsageError("projections are fitted on at least one batch, got none")
    weights = [p for p in learner.projections.parameters() if p.requires_grad]
    if not weights:
        return []
    optimiser = torch.optim.Adam(weights, lr=lr, fused=True)
    steps, step, history = epochs * len(batches), 0, []
    for epoch in range(epochs):
        total = 0.0
        order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(epoch)).tolist()
        for i in order:
            loss = learner.rule.losses(batches[i], learner.parts).sum()
            gradients = torch.autograd.grad(loss, weights, allow_unused=True)
            for p, g in zip(weights, gradients, strict=True):
                p.grad = g
            optimiser.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
            optimiser.step()
            optimiser.zero_grad()
            total += float(loss.detach())
            step += 1
        history.append(total / len(batches))
    if not all(math.isfinite(value) for value in history):
        raise UsageError(f"the losses of {learner.rule.name!r} did not stay finite while its projections were fitted")
    return history
