"""Intervals. The unit is named by the caller: seeds, batches or draws of labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def t_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """Mean and the two ends of Student's t interval over ``values``; the ends are NaN for fewer than two values."""
    x = np.asarray(values, dtype=np.float64)
    mean = float(x.mean())
    if len(x) < 2:
        return mean, float("nan"), float("nan")
    from scipy.special import stdtrit  # here, and not scipy.stats, which takes a second to import

    half = float(stdtrit(len(x) - 1, (1 + level) / 2) * x.std(ddof=1) / np.sqrt(len(x)))
    return mean, mean - half, mean + half


def jackknife_interval(value: float, without: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """A statistic of n units and the ends of its jackknife interval (Tukey 1958, Student's t with n - 1).

    ``without[i]`` is the statistic without unit i; fewer than two of them leave no interval.
    """
    x = np.asarray(without, dtype=np.float64)
    n = len(x)
    if n < 2:
        return value, float("nan"), float("nan")
    from scipy.special import stdtrit

    half = float(stdtrit(n - 1, (1 + level) / 2) * np.sqrt((n - 1) / n * np.square(x - x.mean()).sum()))
    return value, value - half, value + half


def cluster_rank_correlation(
    x: Sequence[float], y: Sequence[float], groups: Sequence[object], draws: int = 2000, level: float = 0.95
) -> tuple[float, float, float]:
    """Spearman's rank correlation and the ends of its percentile bootstrap interval over groups of dependent points.

    Groups (for instance the checkpoints of one run) are drawn with replacement, whole. The ends are NaN for fewer than
    two groups. The draws have a fixed seed.
    """
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    members = [np.flatnonzero([g == group for g in groups]) for group in dict.fromkeys(groups)]
    value = _spearman(a, b)
    if len(members) < 2:
        return value, float("nan"), float("nan")
    generator = np.random.default_rng(0)
    found: list[float] = []
    for _ in range(draws):
        chosen = np.concatenate([members[i] for i in generator.integers(len(members), size=len(members))])
        found.append(_spearman(a[chosen], b[chosen]))
    low, high = np.nanquantile(found, [(1 - level) / 2, (1 + level) / 2])
    return value, float(low), float(high)


def ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 1, ties sharing their mean."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]


def _spearman(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    a, b = ranks(x), ranks(y)
    a, b = a - a.mean(), b - b.mean()
    power = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / power if power > 0 else float("nan")
