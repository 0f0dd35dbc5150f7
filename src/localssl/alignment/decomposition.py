"""What limits a rule: the form of its error, the loss that its B is trained on, or that B lags behind."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from localssl.alignment.fitting import fit_projections
from localssl.alignment.optimum import (
    Matrices,
    as_projections,
    linear_errors,
    matrices,
    optimal_feedback,
    presynaptic,
    score_rule,
)
from localssl.alignment.quantities import compare
from localssl.alignment.signals import Signals, shared
from localssl.errors import UsageError
from localssl.learner import Learner
from localssl.stats import t_interval

DECOMPOSITION = ("form", "objective", "lag", "total")


@dataclass(frozen=True)
class Limit:
    """One part of 1 − cosine of one block: mean over batches and the ends of the 95 % t interval over batches."""

    block: int
    part: str
    mean: float
    low: float
    high: float
    batches: int


def decompose(
    learner: Learner,
    fit: Iterable[Sequence[Tensor | None]],
    data: Iterable[Sequence[Tensor | None]],
    against: Learner | None = None,
    gates: Literal["fixed", "own"] = "fixed",
    epochs: int = 30,
    settled: Learner | None = None,
) -> list[Limit]:
    """1 − cosine of a rule's weight gradients with backpropagation's, in parts that sum exactly, below the last block.

    form = 1 − cos(B_o), B_o the least-squares solution of Definition 3.4 (another B may have a larger cosine).
    objective = cos(B_o) − cos(B̂), B̂ what ``epochs`` passes of training on the rule's own loss at the present weights
    reach. lag = cos(B̂) − cos(B): the present B is not there. Each may be negative.

    Args:
        learner: of a local score rule; unchanged.
        fit: batches on which B_o and B̂ are fitted.
        data: other batches, on which all cosines are measured.
        against: whose last-layer loss is backpropagated; None: the learner's own.
        gates: "fixed": those of the present B for all three; "own": each B with its own.
        epochs: passes over ``fit`` for B̂; objective and lag depend on them where it has not settled.
        settled: a learner whose projections are B̂, however they were fitted; None: fitted here.

    Raises:
        UsageError: no local score rule, the rule ``optimum``, or no batch.
    """
    rule = score_rule(learner)
    fitting = [tuple(batch) for batch in fit]
    if settled is None:
        settled = copy.deepcopy(learner, {id(learner.encoder): learner.encoder})
        fit_projections(settled, fitting, epochs)
    candidates: dict[str, Matrices] = {
        "optimum": optimal_feedback(learner, fitting, against),
        "settled": matrices(settled),
        "now": matrices(learner),
    }
    cosines: dict[str, list[list[float]]] = {name: [] for name in candidates}
    for item in data:
        signals = Signals(learner.encoder, shared([learner], item))
        reference = signals.of_last_loss(against or learner)
        batch = signals.batch(learner)
        for name, b in candidates.items():
            decide = as_projections(learner, b) if gates == "own" else learner.parts
            q = [presynaptic(rule, batch, layer, decide) for layer in range(len(b))]
            found = signals.local(linear_errors(signals, learner, q, b))
            cosines[name].append([_cosine(mine, theirs) for mine, theirs in zip(found, reference, strict=True)])
    if not cosines["now"]:
        raise UsageError("the decomposition needs at least one batch to measure on")
    rows: list[Limit] = []
    for block in range(len(learner.output_shapes) - 1):
        optimum, settled_, now = ([batch[block] for batch in cosines[name]] for name in candidates)
        triples = [t for t in zip(optimum, settled_, now, strict=True) if all(v == v for v in t)]
        parts = {
            "form": [1 - o for o, _, _ in triples],
            "objective": [o - s for o, s, _ in triples],
            "lag": [s - n for _, s, n in triples],
            "total": [1 - n for _, _, n in triples],
        }
        for part, values in parts.items():
            mean, low, high = t_interval(values) if values else (float("nan"),) * 3
            rows.append(Limit(block + 1, part, mean, low, high, len(values)))
    return rows


def _cosine(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Of a block's weights (no biases); NaN where one is zero."""
    names = [name for name in mine if mine[name].ndim > 1]
    if not names:
        return float("nan")
    quantities = compare(*(torch.cat([g[name].flatten() for name in names]) for g in (mine, theirs)))
    return float("nan") if quantities is None else quantities["cosine"]
