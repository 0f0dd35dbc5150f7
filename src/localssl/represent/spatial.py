"""The spatial shape of a learnt B: how strongly patches are connected that lie some distance apart on the map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from localssl import readout
from localssl.errors import UsageError
from localssl.learner import Learner
from localssl.rules import ScoreRule
from localssl.stats import t_interval


@dataclass(frozen=True)
class Distance:
    """All pairs of patches at one distance.

    Args:
        distance: between the two patches' centres, in patches of the larger map.
        strength: mean |B| of a patch's such pairs, over the mean of all pairs, mean over the patches that predictions
            go to: 1 is no structure.
        low: lower end of the 95 % t interval over these patches; NaN where only one has such a pair.
        high: its upper end.
        pairs: number of ordered pairs.
        like: mean weight from a channel to the same channel in such pairs, over the root mean square of all of B's
            weights; NaN where the reference is another readout.
    """

    distance: float
    strength: float
    low: float
    high: float
    pairs: int
    like: float


@dataclass(frozen=True)
class Shape:
    """The spatial shape of one projection of a learner.

    Args:
        key: "lateral", "feedback".
        block: whose activity it predicts, counted from 1.
        patch: side of a patch of the larger map, in pixels of the image.
        rows: by distance, nearest first.
    """

    key: str
    block: int
    patch: float
    rows: list[Distance]


def shapes(learner: Learner) -> list[Shape]:
    """``spatial`` of every projection of a score rule that connects maps of more than one patch; none for others."""
    rule, found = learner.rule, list[Shape]()
    if not isinstance(rule, ScoreRule):
        return found
    maps = [
        tuple(n // k for n, k in zip(shape[1:], readout.kernel(shape[1:], patch), strict=True))
        for shape, patch in zip(learner.output_shapes, learner.patches, strict=True)
    ]
    for key, reference in rule.references.items():
        for i, layer in enumerate(rule.loss_layers(len(maps))):
            source = reference.source(layer, len(maps))
            to, origin = maps[layer], maps[source]
            if len(to) != 2 or len(origin) != 2 or max(*to, *origin) == 1:
                continue
            weight = learner.projections.get_submodule(f"{key}.{i}").weight
            patch = learner.input_shape[-1] / max(to[-1], origin[-1])
            found.append(Shape(key, layer + 1, patch, spatial(weight, to, None if source == layer else origin)))
    return found


def spatial(weight: Any, to_map: Sequence[int], from_map: Sequence[int] | None = None) -> list[Distance]:
    """Mean strength of B against distance.

    Args:
        weight: B (d_z, d_c), as ``projections[key][l].weight``, with readouts flattened channels first.
        to_map: patches of the readout that B predicts, (height, width).
        from_map: of the one that it predicts from; None: the same. A coarser map is laid over the finer one.

    Returns:
        A row a distance, nearest first.

    Raises:
        UsageError: sizes that do not fit B; a single patch on both sides, which has no distance; a B that is not
            finite.
    """
    b = np.asarray(weight.detach().cpu() if isinstance(weight, torch.Tensor) else weight, dtype=np.float64)
    try:
        sides = tuple(to_map), tuple(to_map if from_map is None else from_map)
    except TypeError as error:
        raise UsageError(f"a map of {to_map} patches; give (height, width)") from error
    if not b.size or not np.isfinite(b).all():
        raise UsageError(f"B {b.shape} holds no numbers, or NaN or infinity")
    counts = [int(np.prod(side)) for side in sides]
    if b.ndim != 2 or any(len(side) != 2 or min(side) < 1 for side in sides) or b.shape[0] % counts[0]:
        raise UsageError(f"B {b.shape} does not fit a map of {sides[0]} patches; give (height, width) of its readout")
    if b.shape[1] % counts[1]:
        raise UsageError(f"B {b.shape} does not fit a map of {sides[1]} patches; give (height, width) of its reference")
    if counts[0] * counts[1] == 1:
        raise UsageError("there is one patch on both sides: no distance to look at")
    parts = b.reshape(-1, counts[0], b.shape[1] // counts[1], counts[1])  # channels and patches, to and from
    by_patch = np.abs(parts).mean((0, 2))
    by_patch /= by_patch.mean()
    like = np.full(by_patch.shape, np.nan)
    if from_map is None and b.shape[0] == b.shape[1]:
        like = np.diagonal(parts, axis1=0, axis2=2).mean(-1) / np.sqrt((b * b).mean())
    finest = np.maximum(*sides)
    to, source = (_centres(side, finest) for side in sides)
    distance = np.sqrt(((to[:, None] - source[None]) ** 2).sum(-1)).round(6)
    rows: list[Distance] = []
    for d in np.unique(distance):
        there = distance == d
        each = [float(by_patch[i][there[i]].mean()) for i in range(counts[0]) if there[i].any()]
        rows.append(Distance(float(d), *t_interval(each), int(there.sum()), float(like[there].mean())))
    return rows


def _centres(side: Sequence[int], finest: Any) -> Any:
    """Centres of the patches of a map (patches, 2), in units of the finest map's patches."""
    axes = [(np.arange(n) + 0.5) * f / n for n, f in zip(side, finest, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
