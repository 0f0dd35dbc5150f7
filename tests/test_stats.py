"""Student's t interval against SciPy's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from localssl.stats import cluster_rank_correlation, jackknife_interval, t_interval


@pytest.mark.parametrize("n", [2, 3, 10])
@pytest.mark.parametrize("level", [0.95, 0.5])
def test_t_interval_is_scipys(n: int, level: float) -> None:
    x = np.random.default_rng(n).normal(3, 2, n)
    mean, low, high = t_interval(x.tolist(), level)
    expected = stats.t.interval(level, n - 1, loc=x.mean(), scale=stats.sem(x))
    assert mean == x.mean()
    np.testing.assert_allclose((low, high), expected, rtol=1e-12)


def test_one_value_has_no_interval() -> None:
    mean, low, high = t_interval([2.5])
    assert mean == 2.5
    assert np.isnan([low, high]).all()


def test_the_jackknife_of_a_mean_is_the_t_interval() -> None:
    x = np.random.default_rng(0).normal(3, 2, 10)
    without = [float(np.delete(x, i).mean()) for i in range(10)]
    np.testing.assert_allclose(jackknife_interval(float(x.mean()), without), t_interval(x.tolist()), rtol=1e-12)
    assert np.isnan(jackknife_interval(1.0, [])[1:]).all()


def test_rank_correlation_is_scipys() -> None:
    x, y = np.random.default_rng(1).integers(0, 6, (2, 12)).astype(float)
    value, low, high = cluster_rank_correlation(x.tolist(), y.tolist(), [i // 3 for i in range(12)])
    assert value == pytest.approx(stats.spearmanr(x, y).statistic, rel=1e-12)
    assert -1 <= low < value < high <= 1
    assert np.isnan(cluster_rank_correlation([1.0, 2.0], [1.0, 2.0], ["a", "a"])[1:]).all()
