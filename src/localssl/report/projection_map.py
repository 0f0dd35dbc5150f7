"""How strong a learnt projection B is over the distance between the two places in the image that it connects."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from localssl import readout
from localssl.learner import Learner
from localssl.rules import ScoreRule

BINS = 10  # of distances, at most


@dataclass(frozen=True)
class Strength:
    """One projection, by distance.

    Args:
        key: "lateral" or "feedback".
        block: whose activity it predicts, counted from 1.
        distance: of the two places, in pixels of the image, centre to centre.
        strength: root mean square of B's weights at that distance, over that before training.
        same: mean weight between a channel and itself at that distance, over the root mean square of all of B's
            weights; empty where the reference is another layer.
        pairs: pairs of places at that distance.
    """

    key: str
    block: int
    distance: list[float]
    strength: list[float]
    same: list[float]
    pairs: list[int]


def centres(shape: tuple[int, ...], patch: int | None, size: int) -> Tensor | None:
    """Centres (P, 2) of a block's patches in pixels of an image of side ``size``; None for blocks without a map.

    Args:
        shape: of the block's output, (C, H, W).
        patch: side of the patches; None: one patch, the whole map.
        size: side of the image.
    """
    if len(shape) != 3:
        return None
    sides = readout.kernel(shape[1:], patch)
    axes = [(torch.arange(n // side) + 0.5) * side * size / n for n, side in zip(shape[1:], sides, strict=True)]
    return torch.cartesian_prod(*axes)


@torch.no_grad()
def strengths(trained: Learner, before: Learner) -> list[Strength]:
    """Every projection of a score rule that connects maps of more than one place; none for other rules.

    Args:
        trained: with its learnt projections.
        before: the same learner as it was before the first step.
    """
    rule = trained.rule
    if not isinstance(rule, ScoreRule):
        return []
    n = len(trained.encoder.blocks)
    places = [
        centres(shape, patch, trained.input_shape[-1])
        for shape, patch in zip(trained.output_shapes, trained.patches, strict=True)
    ]
    found: list[Strength] = []
    for key, reference in rule.references.items():
        for i, layer in enumerate(rule.loss_layers(n)):
            source = reference.source(layer, n)
            here, there = places[layer], places[source]
            if here is None or there is None or max(len(here), len(there)) == 1:
                continue
            parts = [p.projections.get_submodule(f"{key}.{i}") for p in (trained, before)]
            weights = [_split(part.weight, len(here), len(there)) for part in parts]  # pyright: ignore
            found.append(_by_distance(key, layer, weights[0], weights[1], torch.cdist(here, there), layer == source))
    return found


def _split(weight: Tensor, places: int, sources: int) -> Tensor:
    """B as (channels, places, channels of the reference, its places): readouts are flattened channels first."""
    d_z, d_c = weight.shape
    return weight.detach().float().view(d_z // places, places, d_c // sources, sources)


def _by_distance(key: str, layer: int, b: Tensor, b0: Tensor, distance: Tensor, own: bool) -> Strength:
    square, square0 = (w.square().mean((0, 2)) for w in (b, b0))
    same = torch.diagonal(b, dim1=0, dim2=2).mean(-1) if own else None  # (places, places)
    whole = square.mean().sqrt().clamp_min(1e-30)
    values = distance.round(decimals=3).unique()
    edges = values
    if len(values) > BINS:
        edges = torch.linspace(0, float(values[-1]) * (1 + 1e-6), BINS + 1)
    number = torch.bucketize(distance.round(decimals=3), edges, right=True) - 1
    result: tuple[list[float], list[float], list[float], list[int]] = ([], [], [], [])
    for which in range(len(edges)):
        mask = number == which
        if not bool(mask.any()):
            continue
        result[0].append(float(distance[mask].mean()))
        result[1].append(float((square[mask].mean() / square0[mask].mean()).sqrt()))
        if same is not None:
            result[2].append(float(same[mask].mean() / whole))
        result[3].append(int(mask.sum()))
    return Strength(key, layer + 1, *result)
