"""The probe's classifiers against independent ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import cosine_similarity
from torch import Tensor

from localssl.probe import budgets
from localssl.probe import classifiers as cl

from .probe_util import by_sklearn, clusters
from .util import assert_close_report


def objective(x: Tensor, y: Tensor, weight: np.ndarray, bias: np.ndarray, strength: float) -> float:
    """Mean cross-entropy + strength / 2 ||W||^2 in float64, row by row."""
    total = 0.0
    for row, label in zip(x.double().numpy(), y.tolist(), strict=True):
        scores = row @ weight + bias
        total += np.log(np.exp(scores - scores[label]).sum())
    return total / len(x) + strength / 2 * float((weight**2).sum())


@pytest.mark.parametrize(("n", "d", "strength"), [(150, 20, 1.0), (150, 20, 1e-4), (60, 200, 1.0), (60, 200, 0.1)])
def test_logistic_regression_is_sklearns(n: int, d: int, strength: float):
    x, y, _, _ = clusters(n * 3 // 2, d, 4, 3.0)
    x = x * torch.logspace(-1, 1, d)  # badly scaled
    x[:, 1] = x[:, 0] + 0.01 * x[:, 1]  # and nearly dependent; with d > n separable, too
    want_weight, want_bias = by_sklearn(x, y, strength)
    lowest = objective(x, y, want_weight, want_bias, strength)
    single = cl.fit_logistic(x, y, 4, strength)
    got = objective(x, y, single.weight.double().numpy(), single.bias[0].double().numpy(), strength)
    assert lowest - 1e-7 < got < lowest + (1e-6 if n > d else 3e-5)
    double = cl.fit_logistic(x.double(), y, 4, strength, tolerance=1e-16)
    assert_close_report(double.weight, want_weight, 1e-3)
    assert_close_report(double.logits(x.double()), x.double().numpy() @ want_weight + want_bias, 1e-3)


def test_logistic_regression_fits_problems_side_by_side():
    x, y, _, _ = clusters(90, 8, 3, 2.0, dtype=torch.float64)
    pick = torch.stack([torch.arange(0, 40), torch.arange(20, 60)])
    both = cl.fit_logistic(x[pick], y[pick], 3, 0.01, tolerance=1e-13)
    for i in range(2):
        alone = cl.fit_logistic(x[pick[i]], y[pick[i]], 3, 0.01, tolerance=1e-13)
        assert_close_report(both.weight[i], alone.weight, 1e-4)


def test_logistic_regression_goes_on_from_where_it_starts():
    x, y, _, _ = clusters(90, 8, 3, 2.0, dtype=torch.float64)
    end = cl.fit_logistic(x, y, 3, 0.01, tolerance=1e-13)
    stay = cl.fit_logistic(x, y, 3, 0.01, start=end, tolerance=1.0)  # gains less than that at once
    away = cl.fit_logistic(x, y, 3, 0.01, tolerance=1.0)
    assert_close_report(stay.weight, end.weight, 1e-5)
    assert_close_report(stay.bias, end.bias, 1e-5)
    assert (away.weight - end.weight).abs().max() > 0.05 * end.weight.abs().max()


def test_logistic_regression_refuses_features_that_are_not_finite():
    with pytest.raises(ValueError, match="finite"):
        cl.fit_logistic(torch.full((4, 2), float("nan")), torch.tensor([0, 1, 0, 1]), 2, 0.1)


def test_chosen_fit_on_the_span_of_few_rows_is_the_full_solution():
    x, y, _, _ = clusters(45, 100, 3, 3.0, dtype=torch.float64)
    model, strength = cl.fit_chosen(x, y, 3, None)
    want, _ = by_sklearn(x, y, cl.FIXED_STRENGTH)
    assert strength == cl.FIXED_STRENGTH
    assert model.weight.shape == (100, 3)
    assert_close_report(model.weight, want, 1e-2)


def test_strength_is_the_best_on_the_held_out_rows():
    x, y, _, _ = clusters(600, 60, 3, 3.0)
    g = torch.Generator().manual_seed(1)
    x = x * 0.2
    x[:, 0] = 5 * (y == 0) + 2 * torch.randn(
        400, generator=g
    )  # clear but not enough: too strong a penalty sees it alone
    x[:, 1] = 20 * torch.randn(400, generator=g)  # noise, which too weak a one fits
    scores: dict[float, float] = {}
    for strength in cl.STRENGTHS:
        weight, bias = by_sklearn(x[:200], y[:200], strength)
        scores[strength] = float(np.mean((x[200:].double().numpy() @ weight + bias).argmax(1) == y[200:].numpy()))
    best = max(scores, key=lambda s: scores[s])
    assert sorted(scores.values())[-1] > sorted(scores.values())[-2] + 0.02  # the choice is no coin flip
    assert best not in (cl.STRENGTHS[0], cl.STRENGTHS[-1])
    model, strength = cl.fit_chosen(x, y, 3, 200)
    assert strength == best
    assert_close_report(model.weight, by_sklearn(x, y, best)[0], 1e-2)  # and the final fit uses every row


def test_cross_validation_chooses_one_strength_for_all_folds():
    x, y, _, _ = clusters(120, 60, 4, 3.0, dtype=torch.float64)
    order = y.argsort(stable=True)
    x, y = x[order], y[order]  # class by class, as drawn
    split = budgets.folds(4, 20)
    assert split is not None
    scores: dict[float, float] = {}
    for strength in cl.STRENGTHS:
        right = 0
        for fit, held in zip(*split, strict=True):
            weight, bias = by_sklearn(x[fit], y[fit], strength)
            right += int(((x[held].numpy() @ weight + bias).argmax(1) == y[held].numpy()).sum())
        scores[strength] = right / 80
    _, strength = cl.fit_chosen(x, y, 4, split)
    assert min(scores.values()) < max(scores.values()) - 0.02
    assert scores[strength] == max(scores.values())


# --- nearest neighbours -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [12, 200])  # fewer voters than neighbours, and more
def test_neighbours_against_loops(n: int):
    x, y, x_test, _ = clusters(n * 3 // 2, 6, 3, 2.0)
    similarity = cosine_similarity(x_test.numpy(), x.numpy())
    want: list[int] = []
    for row in similarity:
        votes = np.zeros(3)
        for j in np.argsort(-row)[:20]:
            votes[y[j]] += np.exp(row[j] / 0.07)
        want.append(int(votes.argmax()))
    got = cl.nearest_neighbours(x, y, x_test, 3, chunk=7)
    assert got.tolist() == want


def test_neighbour_ties_do_not_depend_on_the_order_of_rows():
    x = torch.tensor([[1.0, 0.0]] * 30 + [[0.0, 1.0]])
    y = torch.tensor([2] * 15 + [1] * 15 + [0])
    for order in (torch.arange(31), torch.arange(31).flip(0)):
        assert cl.nearest_neighbours(x[order], y[order], torch.tensor([[2.0, 0.1]]), 3).tolist() == [1]
    near = torch.tensor([[1.0, 7e-4]] * 25 + [[1.0, 0.0]] * 20)  # cosines to (1, 0) that differ by 2e-7
    assert cl.nearest_neighbours(near, torch.arange(45) // 25, torch.tensor([[1.0, 0.0]]), 2).tolist() == [0]
    scale = torch.logspace(-2, 2, 31)[:, None]  # the same directions, up to rounding
    x = scale * torch.tensor([[0.3, 0.7, 0.9]] * 30 + [[0.0, -1.0, 0.0]])
    for order in (torch.arange(31), torch.arange(31).flip(0)):
        assert cl.nearest_neighbours(x[order], y[order] % 2, torch.tensor([[2.0, 0.1, 0.4]]), 2).tolist() == [0]
