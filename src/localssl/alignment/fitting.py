"""Projections trained towards the minimum of their rule's own loss while the encoder stays as it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from localssl.alignment.signals import shared
from localssl.errors import UsageError
from localssl.learner import Learner
from localssl.optimizer import add_grad
from localssl.rules.base import Batch

Views = Iterable[Sequence[Tensor | None]]


def fit_projections(
    learner: Learner,
    data: Views | Callable[[int], Sequence[Sequence[Tensor | None]]],
    epochs: int = 30,
    lr: float = 1e-3,
) -> list[float]:
    """Train the learner's projections on its rule's losses; the encoder is frozen.

    Adam from the present projections, over all batches ``epochs`` times, the rate falling to zero as a cosine. It ends
    after these passes, wherever it is then; and where the hinge or softplus can separate all pairs there is no minimum
    to reach.

    Args:
        learner: its projections change, its encoder does not.
        data: batches as in ``measure``, whose readouts are computed once and kept; or a function that gives the batches
            of a pass (new views of the same images, say), as many in each.
        epochs: passes over the batches.
        lr: rate of the first step.

    Returns:
        The mean loss of every pass. It flattens as the rate falls: whether the fit has settled shows only against one
        with more passes (``mean_losses`` on other batches).

    Raises:
        UsageError: no batch, losses that are not finite, or the rule ``optimum``, whose B does not descend its losses.
    """
    if learner.rule.credit == "optimum":
        raise UsageError("the optimum's projections are no minimum of its losses: train them, or see optimal_feedback")
    kept = None if callable(data) else [_read(learner, item) for item in data]
    weights = [p for p in learner.projections.parameters() if p.requires_grad]
    if not weights:
        return []
    optimiser = torch.optim.Adam(weights, lr=lr, fused=True)
    history: list[float] = []
    for epoch in range(epochs):
        batches = _of_pass(learner, data, epoch) if callable(data) else _shuffled(kept or [], epoch)
        total, count = 0.0, 0
        for share, batch in batches:
            loss = learner.rule.losses(batch, learner.parts).sum()
            gradients = torch.autograd.grad(loss, weights, allow_unused=True)
            for p, g in zip(weights, gradients, strict=True):
                if g is not None:
                    add_grad(p, g)
            optimiser.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * (epoch + share) / epochs))
            optimiser.step()
            optimiser.zero_grad()
            total, count = total + float(loss.detach()), count + 1
        if not count:
            raise UsageError("projections are fitted on at least one batch, got none")
        history.append(total / count)
    if not all(math.isfinite(value) for value in history):
        raise UsageError(f"the losses of {learner.rule.name!r} did not stay finite while its projections were fitted")
    return history


@torch.no_grad()
def mean_losses(learner: Learner, data: Views) -> list[float]:
    """The rule's losses, one a layer, over batches as in ``measure``; nothing changes."""
    found = [learner.rule.losses(_read(learner, item), learner.parts) for item in data]
    if not found:
        raise UsageError("losses are taken over at least one batch, got none")
    return torch.stack(found).mean(0).tolist()


@torch.no_grad()
def _read(learner: Learner, item: Sequence[Tensor | None]) -> Batch:
    """What the rule sees of a batch, without graphs."""
    pair = shared([learner], item)
    found = learner.batch(*pair)
    return Batch([z.detach() for z in found.z], pair.negatives, pair.labels, [h.detach() for h in found.maps])


def _shuffled(kept: list[Batch], epoch: int) -> Iterator[tuple[float, Batch]]:
    order = torch.randperm(len(kept), generator=torch.Generator().manual_seed(epoch)).tolist()
    return ((done / len(kept), kept[i]) for done, i in enumerate(order))


def _of_pass(
    learner: Learner, data: Callable[[int], Sequence[Sequence[Tensor | None]]], epoch: int
) -> Iterator[tuple[float, Batch]]:
    items = data(epoch)
    return ((done / len(items), _read(learner, item)) for done, item in enumerate(items))
