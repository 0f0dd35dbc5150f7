"""The fast protocol: what it may see, its draws of labels, its errors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from localssl.errors import UsageError
from localssl.probe import budgets, fast_probe
from localssl.probe import classifiers as cl

from .probe_util import accuracies, by_sklearn, clusters


def two_blocks(noise: float = 0.3, k: int = 3, n: int = 180) -> tuple[list[Tensor], Tensor, list[Tensor], Tensor]:
    a, y, a_test, y_test = clusters(n, 12, k, noise, seed=1)
    b, _, b_test, _ = clusters(n, 30, k, noise, seed=2)
    return [a, b], y, [a_test, b_test], y_test


def test_separable_classes_are_told_apart():
    result = fast_probe(*two_blocks(), labels=("1", "10", "all"))
    layers, methods = ("1", "2", "all"), ("linear", "knn")
    assert {(r.layer, r.method, r.labels) for r in result.rows} == {
        (layer, method, labels) for layer in layers for method in methods for labels in ("1", "10", "all")
    }
    assert all(r.accuracy == 100 for r in result.rows if r.labels != "1")
    assert {r.features for r in result.rows if r.layer == "all"} == {42}
    for r in result.rows:
        assert r.draws == (1 if r.labels == "all" else 5)
        assert (r.low is None) == (r.labels == "all")
        assert (r.strength is None) == (r.method == "knn")
    for words in ("without augmentation", "L-BFGS", "stratified 20%", "5-fold", "fixed at 0.01", "last weights"):
        assert words in result.protocol


def test_options_leave_out_what_is_not_asked_for():
    result = fast_probe(*two_blocks(), labels=("10",), draws=1, layers=("all",), knn=False)
    assert [(r.layer, r.method, r.labels, r.low) for r in result.rows] == [("all", "linear", "10", None)]


def test_accuracy_is_a_fresh_classifiers_at_the_reported_strength():
    train, y, test, y_test = two_blocks(noise=3.0)
    result = fast_probe(train, y, test, y_test, knn=False)
    for r in result.rows:
        i = {"1": slice(0, 1), "2": slice(1, 2), "all": slice(0, 2)}[r.layer]
        x, x_test = torch.cat(train[i], 1), torch.cat(test[i], 1)
        mean, std = x.mean(0), x.std(0, correction=0)
        assert r.strength is not None
        weight, bias = by_sklearn((x - mean) / std, y, r.strength)
        want = (((x_test - mean) / std).double().numpy() @ weight + bias).argmax(1) == y_test.numpy()
        one_row = 100 / len(y_test) + 1e-6  # may lie on the edge
        assert r.accuracy == pytest.approx(100 * want.mean(), abs=one_row)
        assert r.accuracy < 100


def test_test_labels_choose_nothing(monkeypatch: pytest.MonkeyPatch):
    train, y, test, y_test = two_blocks(noise=3.0)
    fitted: list[Tensor] = []
    fit = cl.fit_chosen

    def spy(*args, **options):
        model, strength = fit(*args, **options)
        fitted.append(model.weight)
        return model, strength

    monkeypatch.setattr(cl, "fit_chosen", spy)
    results = [fast_probe(train, y, test, labels, labels=("10", "all")) for labels in (y_test, y_test.flip(0) * 0)]
    strengths = [[r.strength for r in result.rows] for result in results]
    half = len(fitted) // 2
    assert strengths[0] == strengths[1]
    assert all(torch.equal(a, b) for a, b in zip(fitted[:half], fitted[half:], strict=True))
    assert accuracies(results[0]) != accuracies(results[1])


def test_standardisation_uses_training_images_alone_and_scale_does_not_matter():
    train, y, test, y_test = two_blocks(noise=3.0)
    a = fast_probe(train, y, test, y_test, labels=("10", "all"))
    b = fast_probe([5 * f - 3 for f in train], y, [5 * f - 3 for f in test], y_test, labels=("10", "all"))
    for r, s in zip(a.rows, b.rows, strict=True):
        assert (r.accuracy, r.strength) == (pytest.approx(s.accuracy, abs=2), s.strength)
    alone = fast_probe(train, y, [f[:20] for f in test], y_test[:20])
    whole = fast_probe(train, y, [torch.cat((f[:20], f[:20] + 50)) for f in test], torch.cat((y_test[:20],) * 2))
    assert [r.strength for r in alone.rows] == [r.strength for r in whole.rows]


def test_constant_features_change_nothing():
    train, y, test, y_test = two_blocks(noise=3.0)
    plain = fast_probe(train[:1], y, test[:1], y_test, labels=("all",))
    ones = torch.full((len(y), 3), 0.1), torch.full((len(y_test), 3), 7.0)  # constant in training, not in the test
    train_c, test_c = (torch.cat((f[0], c), 1) for f, c in zip((train, test), ones, strict=True))
    with_constant = fast_probe([train_c], y, [test_c], y_test, labels=("all",))
    assert accuracies(plain) == accuracies(with_constant)
    assert accuracies(plain, "knn") == accuracies(with_constant, "knn")
    dead = fast_probe([torch.zeros(len(y), 4)], y, [torch.zeros(len(y_test), 4)], y_test, layers=("each",))
    assert all(r.accuracy == pytest.approx(100 / 3) for r in dead.rows)


def test_labels_need_not_be_consecutive():
    train, y, test, y_test = two_blocks(noise=3.0)
    names = torch.tensor([3, 7, 400])
    a, b = fast_probe(train, y, test, y_test), fast_probe(train, names[y], test, names[y_test])
    assert a.rows == b.rows


def test_few_images_hold_nothing_out():
    x = torch.eye(4)
    result = fast_probe([x], torch.tensor([0, 1, 0, 1]), [x], torch.tensor([0, 1, 0, 1]), knn=False)
    assert result.rows[0].strength == cl.FIXED_STRENGTH
    assert f"all labels: fixed at {cl.FIXED_STRENGTH}" in result.protocol


# --- label budgets ----------------------------------------------------------------------------------------------


def some_labels() -> budgets.Labels:
    y = torch.randint(0, 4, (200,), generator=torch.Generator().manual_seed(3))
    return budgets.check_labels(y, y)


def test_draws_are_stratified_seeded_and_nested():
    y = some_labels()
    ten, one = budgets.draw(y, 10, 5, seed=1), budgets.draw(y, 1, 5, seed=1)
    for big, small in zip(ten, one, strict=True):
        assert torch.equal(y.train[big], torch.arange(4)[:, None].expand(4, 10))
        assert len(big.unique()) == 40
        assert torch.equal(big[:, :1], small)
    assert len({tuple(d.flatten().tolist()) for d in ten}) == 5
    assert all(torch.equal(a, b) for a, b in zip(ten, budgets.draw(y, 10, 5, seed=1), strict=True))
    assert not torch.equal(ten[0], budgets.draw(y, 10, 5, seed=2)[0])


def test_two_encoders_get_the_same_draws(monkeypatch: pytest.MonkeyPatch):
    """The first feature numbers the images, so it shows which of them were drawn."""
    used: list[list[tuple[int, int]]] = []
    fit = cl.fit_chosen

    def spy(x: Tensor, y: Tensor, *args, **options):
        numbers = (x[:, 0] * std + mean).round().int().tolist()
        used.append(list(zip(numbers, y.tolist(), strict=True)))
        return fit(x, y, *args, **options)

    monkeypatch.setattr(cl, "fit_chosen", spy)
    number = torch.arange(60.0)
    mean, std = number.mean(), number.std(correction=0)
    y = torch.arange(60) % 3
    for seed in (0, 1):  # of two encoders
        f = torch.cat((number[:, None], torch.randn(60, 8, generator=torch.Generator().manual_seed(seed))), 1)
        fast_probe([f], y, [f], y, labels=("1", "10"), draws=2, layers=("each",), knn=False, seed=4)
    assert used[:4] == used[4:]
    labels = budgets.check_labels(y, y)
    want = [*budgets.draw(labels, 1, 2, seed=4), *budgets.draw(labels, 10, 2, seed=4)]
    assert used[:4] == [[(int(i), int(y[i])) for i in d.flatten()] for d in want]


def test_folds_are_stratified_and_cover_the_draw():
    split = budgets.folds(3, 10)
    assert split is not None
    fit, held = split
    classes = torch.arange(30) // 10
    assert sorted(held.flatten().tolist()) == list(range(30))
    for f in range(5):
        assert classes[held[f]].bincount().tolist() == [2, 2, 2]
        assert sorted([*fit[f].tolist(), *held[f].tolist()]) == list(range(30))
    assert budgets.folds(3, 1) is None


def test_held_out_part_is_a_stratified_fifth():
    y = some_labels()
    order, n_fit = budgets.hold_out(y, seed=0)
    assert sorted(order.tolist()) == list(range(200))
    want = [round(0.2 * c) for c in y.train.bincount().tolist()]
    assert y.train[order[n_fit:]].bincount().tolist() == want


# --- errors -----------------------------------------------------------------------------------------------------

Y, Y_TEST = torch.arange(120) % 3, torch.arange(60) % 3


@pytest.mark.parametrize(
    ("y", "y_test", "options", "message"),
    [
        (None, Y_TEST, {}, "the training part has no labels; the linear probe needs them"),
        (Y, None, {}, "the test part has no labels"),
        (Y * 0, Y_TEST * 0, {"classes": ("cat",)}, "all training images are of class cat; .* two classes"),
        (Y.clamp(max=1), Y_TEST, {}, "the test part has images of class 2, the training part none"),
        (Y - 1, Y_TEST, {}, "the training part has 40 images without a label"),
        (Y.float(), Y_TEST, {}, "labels must be whole numbers"),
        (Y[:100], Y_TEST, {}, r"block 1: features of 120 \+ 60 images, labels of 100 \+ 60"),
        (Y, Y_TEST, {"labels": ("5",)}, "unknown label budget '5'.*choices: 1, 10, all"),
        (Y, Y_TEST, {"labels": ()}, "no label budget given"),
        (Y, Y_TEST, {"draws": 0}, "draws is 0"),
        (Y, Y_TEST, {"layers": ("last",)}, "choose 'each', 'all' or both"),
    ],
)
def test_bad_labels_and_options(y: Tensor | None, y_test: Tensor | None, options: dict, message: str):
    train, _, test, _ = two_blocks()
    with pytest.raises(UsageError, match=message):
        fast_probe(train, y, test, y_test, **options)


def test_too_few_labels_of_a_class_names_it():
    train, y, test, y_test = two_blocks()
    y = y.clone()
    y[y == 2] = 1
    y[:7] = 2
    with pytest.raises(UsageError, match="class ship has 7 training images, fewer than 10 labels per class"):
        fast_probe(train, y, test, y_test, labels=("10",), classes=("cat", "dog", "ship"))


def test_features_that_do_not_fit():
    train, y, test, y_test = two_blocks()
    with pytest.raises(UsageError, match=r"block 2: training features \(120, 30\) and test features \(60, 29\)"):
        fast_probe(train, y, [test[0], test[1][:, 1:]], y_test)
    with pytest.raises(UsageError, match="features of 2 blocks to train and 1 to test"):
        fast_probe(train, y, test[:1], y_test)
    for part, value in ((0, float("nan")), (0, float("inf")), (1, float("nan"))):
        bad = [[f.clone() for f in fs] for fs in (train, test)]
        bad[part][1][5, 5] = value
        with pytest.raises(UsageError, match="features of block 2 are not finite"):
            fast_probe(bad[0], y, bad[1], y_test)
