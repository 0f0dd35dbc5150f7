"""Similarity of representations with an interval over images and a null that says what chance would give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from localssl.errors import UsageError, unknown
from localssl.represent.measures import MEASURES, Array, checked, participation_ratio
from localssl.stats import jackknife_interval

GROUPS = 10  # of images, left out in turn for the interval


@dataclass(frozen=True)
class Similarity:
    """A number with its interval and its null.

    Args:
        value: of all images.
        low: lower end of the 95 % jackknife interval over ten groups of images, left out in turn.
        high: its upper end.
        null: mean over permutations of the images of one of the two; NaN where there is none.
        p: share of permutations (and the identity) that give at least the value; NaN where there is none, or no value.
        images: their number.
    """

    value: float
    low: float
    high: float
    null: float
    p: float
    images: int


def similarity(x: Any, y: Any, measure: str = "cka", permutations: int = 200, seed: int = 0) -> Similarity:
    """How alike two representations (N, p) and (N, q) of the same images are.

    Args:
        x, y: activities, images in the same order.
        measure: "cka" or "rsa".
        permutations: of the images of ``y``, for the null; the smallest p is 1 / (permutations + 1). 0: no null.
        seed: of groups and permutations.

    Raises:
        UsageError: an unknown measure, other numbers of images, fewer than 20, no real numbers, NaN or infinity.
    """
    return _compared(_Prepared.of(x, measure, seed), _Prepared.of(y, measure, seed), permutations, seed)


def layers(
    one: Mapping[str, Any],
    other: Mapping[str, Any] | None = None,
    measure: str = "cka",
    permutations: int = 200,
    seed: int = 0,
) -> dict[tuple[str, str], Similarity]:
    """Similarity of every layer of ``one`` with every layer of ``other`` (None: of itself), by their names.

    Layers, rules and seeds alike: ``one`` and ``other`` are what ``activities`` returns for any two encoders.
    """
    mine = {name: _Prepared.of(x, measure, seed) for name, x in one.items()}
    theirs = mine if other is None else {name: _Prepared.of(x, measure, seed) for name, x in other.items()}
    return {(a, b): _compared(x, y, permutations, seed) for a, x in mine.items() for b, y in theirs.items()}


@dataclass(frozen=True)
class _Prepared:
    """A representation, ready to be compared: of all images, and without each of the groups."""

    whole: Array
    parts: tuple[Array, ...]

    @classmethod
    def of(cls, x: Any, measure: str, seed: int) -> _Prepared:
        if measure not in MEASURES:
            raise unknown("measure", str(measure), MEASURES)
        prepare, standard = MEASURES[measure]
        k = prepare(checked(x))
        return cls(standard(k), tuple(standard(k[np.ix_(kept, kept)]) for kept in _left(len(k), seed)))


def _compared(a: _Prepared, b: _Prepared, permutations: int, seed: int) -> Similarity:
    images = len(a.whole)
    if images != len(b.whole):
        raise UsageError(f"one representation is of {images} images, the other of {len(b.whole)}; give the same images")
    value = float((a.whole * b.whole).sum())
    without = [float((k * m).sum()) for k, m in zip(a.parts, b.parts, strict=True)]
    generator = np.random.default_rng([seed, 1])
    null: list[float] = []
    for _ in range(permutations):
        order = generator.permutation(images)
        null.append(float((a.whole * b.whole[np.ix_(order, order)]).sum()))
    known = null and value == value  # where nothing varies there is neither a similarity nor a chance of it
    p = (1 + sum(v >= value for v in null)) / (1 + len(null)) if known else float("nan")
    mean = float(np.mean(null)) if null else float("nan")
    return Similarity(*jackknife_interval(value, without), mean, p, images)


def dimension(x: Any, seed: int = 0) -> Similarity:
    """Participation ratio (``measures.participation_ratio``) with the same interval; it has no null."""
    x = checked(x)
    without = [participation_ratio(x[kept]) for kept in _left(len(x), seed)]
    return Similarity(*jackknife_interval(participation_ratio(x), without), float("nan"), float("nan"), len(x))


def _left(images: int, seed: int) -> list[Any]:
    """The images that stay when each of the groups is left out."""
    if images < 2 * GROUPS:
        raise UsageError(f"{images} images are too few for an interval; give at least {2 * GROUPS}")
    groups = np.array_split(np.random.default_rng(seed).permutation(images), GROUPS)
    return [np.setdiff1d(np.arange(images), group) for group in groups]
