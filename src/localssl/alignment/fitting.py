"""Projections trained towards the minimum of their rule's own loss while the encoder stays as it is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from localssl.alignment.signals import shared
from localssl.errors import UsageError
from localssl.learner import Learner
from localssl.rules.base import Batch


def fit_projections(
    learner: Learner, data: Iterable[Sequence[Tensor | None]], epochs: int = 30, lr: float = 1e-3
) -> list[float]:
    """Train the learner's projections on its rule's losses; the encoder is frozen and run once a batch.

    Adam from the present projections, over all batches ``epochs`` times, the rate falling to zero as a cosine. The
    readouts of all batches are kept in memory meanwhile. It ends after these passes, wherever it is then; and where the
    hinge or softplus can separate all pairs there is no minimum to reach.

    Args:
        learner: its projections change, its encoder does not.
        data: batches as in ``measure``.
        epochs: passes over the batches.
        lr: rate of the first step.

    Returns:
        The mean loss of every pass. It flattens as the rate falls: whether the fit has settled shows only against one
        with more passes.

    Raises:
        UsageError: no batch, losses that are not finite, or the rule ``optimum``, whose B does not descend its losses.
    """
    if learner.rule.credit == "optimum":
        raise UsageError("the optimum's projections are no minimum of its losses: train them, or see optimal_feedback")
    batches: list[Batch] = []
    with torch.no_grad():
        for item in data:
            pair = shared([learner], item)
            found = learner.batch(*pair)
            batches.append(
                Batch([z.detach() for z in found.z], pair.negatives, pair.labels, [h.detach() for h in found.maps])
            )
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
