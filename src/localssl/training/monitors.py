"""Online monitors: is the representation alive? Measured on a fixed sample of images, without touching the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from localssl import alignment, readout
from localssl.engine import factors
from localssl.learner import Learner
from localssl.rules.base import ScoreRule

SAMPLE = 512  # images
PAIRS = 128  # of them, whose two views show which hinges are active
NEIGHBOURS = 5


def names(n_blocks: int) -> list[str]:
    """Column names of what ``observe`` returns for an encoder of ``n_blocks`` blocks."""
    return ["knn"] + [f"{what}_{block}" for what in ("rank", "dead", "active") for block in range(1, n_blocks + 1)]


@torch.no_grad()
def observe(
    learner: Learner, view_a: Tensor, view_b: Tensor, images: Tensor, labels: Tensor | None
) -> dict[str, float]:
    """Monitors by name.

    Args:
        view_a, view_b: two views of some images, for the share of active hinges.
        images: the sample, normalised but not augmented (N, C, H, W).
        labels: (N,), only to score the nearest neighbours; None leaves "knn" out.

    Returns:
        ``knn``: leave-one-out accuracy (%) of cosine 5-nearest neighbours on all blocks' readouts.
        ``rank_l``: effective rank of block l's readout, exp of the entropy of the covariance's normalised spectrum.
        ``dead_l``: share of its channels that are zero for every image and position.
        ``active_l``: share of its hinges with a gradient (score rules with the hinge).
    """
    was_training = learner.training
    learner.eval()
    outputs = learner.encoder.emitted(images)
    rule = learner.rule
    shown = isinstance(rule, ScoreRule) and rule.f == "hinge"
    batch = learner.batch(view_a, view_b) if shown else None
    learner.train(was_training)
    values: dict[str, float] = {}
    read = [readout.readout(h, patch).float() for h, patch in zip(outputs, learner.patches, strict=True)]
    if labels is not None:
        values["knn"] = _leave_one_out(torch.cat([_standardise(z) for z in read], 1), labels)
    for block, (z, h) in enumerate(zip(read, outputs, strict=True), start=1):
        values[f"rank_{block}"] = effective_rank(z)
        per_channel = h.detach().transpose(0, 1).flatten(1)
        values[f"dead_{block}"] = float((per_channel == 0).all(1).float().mean())
    if batch is not None and isinstance(rule, ScoreRule):
        for i, layer in enumerate(rule.loss_layers(len(read))):
            shares: list[float] = []
            for key in rule.references:
                scores = rule.scores(batch, layer, key, learner.projections.get_submodule(f"{key}.{i}"))
                active = torch.cat(factors.modulators(*scores, "hinge", rule.loss_type, rule.margin))
                shares.append(float(active.float().mean()))
            values[f"active_{layer + 1}"] = sum(shares) / len(shares)
    return values


def align(
    learner: Learner, batches: Sequence[Sequence[Tensor | None]], reference: str | Learner = "own"
) -> dict[str, float]:
    """Cosine of the learner's updates with backpropagation's, in evaluation mode, on batches as of
    ``alignment.measure``: ``align_1`` to ``align_L``, without the blocks whose gradient is zero everywhere.

    Raises:
        UsageError: as ``alignment.measure``.
    """
    was_training = learner.training
    learner.eval()
    try:
        rows = alignment.measure(learner.encoder, learner, batches, reference)
    finally:
        learner.train(was_training)
    mine = (r for r in rows if r.quantity == "cosine" and r.parameter == "weights" and r.batches)
    return {f"align_{r.block}": r.mean for r in mine}


def collapse(values: dict[str, float]) -> dict[str, str]:
    """Warnings by monitor: a readout not finite, or close to a point or a line; a block with few channels alive."""
    warnings: dict[str, str] = {}
    for name, value in values.items():
        kind, _, block = name.partition("_")
        if kind == "rank" and value != value:
            warnings[name] = f"block {block} is diverging: its activities are not finite; try a lower --lr"
        elif kind == "rank" and value < 2:
            warnings[name] = f"block {block} is collapsing: effective rank {value:.1f}; try a lower --lr"
        elif kind == "dead" and value > 0.9:
            share = f"{100 * value:.0f} % of its channels"
            warnings[name] = f"block {block} is dying: {share} are zero for every image; try a lower --lr"
    return warnings


def effective_rank(z: Tensor) -> float:
    """exp(entropy) of the eigenvalues, normalised to sum one, of the covariance of z (N, d) (Roy & Vetterli 2007).

    NaN where z is not finite.
    """
    z = z.cpu().double()  # float64: the products below lose half of the digits
    z = z - z.mean(0)
    products = z @ z.T if z.shape[0] < z.shape[1] else z.T @ z  # the smaller of the two; same spectrum
    if not bool(products.isfinite().all()):
        return float("nan")
    spectrum = torch.linalg.eigvalsh(products).clamp_min(0)
    total = spectrum.sum()
    if not total > 0:
        return 1.0
    p = spectrum / total
    return float(torch.exp(-torch.special.xlogy(p, p).sum()))


def _standardise(z: Tensor) -> Tensor:
    return (z - z.mean(0)) / z.std(0).clamp_min(1e-6) / z.shape[1] ** 0.5


def _leave_one_out(features: Tensor, labels: Tensor) -> float:
    x = torch.nn.functional.normalize(features)
    similarity = (x @ x.T).fill_diagonal_(-torch.inf)
    nearest = similarity.topk(min(NEIGHBOURS, len(x) - 1)).indices
    votes = torch.nn.functional.one_hot(labels[nearest]).sum(1)
    return float(100 * (votes.argmax(1) == labels).float().mean())


def not_finite(values: Mapping[str, Tensor]) -> list[str]:
    """Names of the values that hold a NaN or an infinity."""
    return [name for name, value in values.items() if not bool(value.isfinite().all())]
