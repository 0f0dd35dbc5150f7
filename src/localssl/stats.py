"""Intervals. The unit is named by the caller: seeds, batches or draws of labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


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
