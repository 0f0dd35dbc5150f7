"""The probe: its classifiers against independent ones, what it may see, its draws, its errors."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import cosine_similarity
from torch import Tensor, nn

from localssl import encoders
from localssl.data.pixels import InMemory
from localssl.data.sources import Images, open_images
from localssl.data.specs import Augmentation
from localssl.data.views import Normalise
from localssl.encoders import Encoder
from localssl.errors import UsageError
from localssl.features import features
from localssl.probe import budgets, fast_probe, paper_probe
from localssl.probe import classifiers as cl
from localssl.probe.paper import _test_view  # pyright: ignore[reportPrivateUsage]

from .util import assert_close_report


def images(pixels: Tensor, labels: Tensor | None = None) -> Images:
    classes = tuple(f"c{i}" for i in range(10))
    shape = (pixels.shape[1], pixels.shape[2], pixels.shape[3])
    return Images("toy", "train", labels, classes, (), shape, InMemory(pixels))


def clusters(n: int, d: int, k: int, noise: float, seed: int = 0, dtype: torch.dtype = torch.float32):
    """Two parts, of 2 n / 3 and n / 3 rows, of Gaussian clusters around k random centres: x, y, x_test, y_test."""
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % k
    x = torch.randn(k, d, generator=g, dtype=torch.float64)[y]
    x = (x + noise * torch.randn(n, d, generator=g, dtype=torch.float64)).to(dtype)
    m = 2 * n // 3
    return x[:m], y[:m], x[m:], y[m:]


def accuracies(result, method: str = "linear") -> dict[tuple[str, str], float]:
    return {(r.layer, r.labels): r.accuracy for r in result.rows if r.method == method}


# --- features ---------------------------------------------------------------------------------------------------


class Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def test_features_are_patch_means_channels_first():
    pixels = torch.arange(2 * 2 * 4 * 4, dtype=torch.uint8).view(2, 2, 4, 4)  # two images of two channels
    encoder = Encoder.from_blocks([Double(), Double(), Double()])
    normalise = Normalise((0.0, 0.0), (1 / 255, 1 / 255))  # pixels as they are
    got = features(encoder, images(pixels), patches=(2, 1, None), normalise=normalise, batch_size=1)
    # image 0, channel 0 is 0..15 in rows of four: the patches' means are 2.5, 4.5, 10.5, 12.5; channel 1 is 16 more
    patches = [2.5, 4.5, 10.5, 12.5, 18.5, 20.5, 26.5, 28.5]
    assert_close_report(got[0][0], 2 * np.array(patches), 1e-6)
    assert_close_report(got[0][1], 2 * np.array(patches) + 64, 1e-6)
    assert_close_report(got[1], 4 * pixels.flatten(1).double(), 1e-6)
    assert_close_report(got[2], 8 * np.array([[7.5, 23.5], [39.5, 55.5]]), 1e-6)
    assert all(f.dtype == torch.float32 for f in got)


def test_features_leave_every_mode_and_the_running_averages():
    torch.manual_seed(0)
    encoder = Encoder.from_blocks([nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)), nn.Dropout()])
    encoder.train()
    encoder.blocks[0].eval()
    before, modes = copy.deepcopy(encoder.state_dict()), [m.training for m in encoder.modules()]
    pixels = torch.randint(0, 256, (5, 1, 4, 4), dtype=torch.uint8)
    normalise = Normalise((0.5,), (0.5,))
    got = [features(encoder, images(pixels), patches=None, normalise=normalise, batch_size=size)[1] for size in (2, 5)]
    assert_close_report(got[0], got[1], 1e-6)  # dropout off, no batch statistics
    assert [m.training for m in encoder.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())


def test_features_errors():
    normalise = Normalise((0.5,), (0.5,))
    pixels = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    encoder = Encoder.from_blocks([Double()])
    with pytest.raises(UsageError, match="patch 3 does not divide the 4x4 map of block 1"):
        features(encoder, images(pixels), patches=(3,), normalise=normalise)
    with pytest.raises(UsageError, match="has 2 entries, the encoder 1 block"):
        features(encoder, images(pixels), patches=(2, 2), normalise=normalise)
    with pytest.raises(UsageError, match="toy has no images"):
        features(encoder, images(pixels[:0]), patches=(2,), normalise=normalise)
    with pytest.raises(UsageError, match="does not accept inputs of shape"):
        features(encoders.vgg5(in_channels=3), images(pixels), patches=None, normalise=normalise)


# --- logistic regression ----------------------------------------------------------------------------------------


def objective(x: Tensor, y: Tensor, weight: np.ndarray, bias: np.ndarray, strength: float) -> float:
    """Mean cross-entropy + strength / 2 ||W||^2 in float64, row by row."""
    total = 0.0
    for row, label in zip(x.double().numpy(), y.tolist(), strict=True):
        scores = row @ weight + bias
        total += np.log(np.exp(scores - scores[label]).sum())
    return total / len(x) + strength / 2 * float((weight**2).sum())


def by_sklearn(x: Tensor, y: Tensor, strength: float) -> tuple[np.ndarray, np.ndarray]:
    model = LogisticRegression(C=1 / (len(x) * strength), tol=1e-10, max_iter=10_000)
    model.fit(x.double().numpy(), y.numpy())
    return model.coef_.T, model.intercept_


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


# --- the fast protocol ------------------------------------------------------------------------------------------


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
    """A one-hot feature per image shows which images were drawn; a second encoder's block must see the same ones."""
    used: list[list[int]] = []
    fit = cl.fit_chosen

    def spy(x: Tensor, *args, **options):
        used.append(sorted((x[:, 0] * std + mean).round().int().tolist()))
        return fit(x, *args, **options)

    monkeypatch.setattr(cl, "fit_chosen", spy)
    number = torch.arange(60.0)
    mean, std = number.mean(), number.std(correction=0)
    y = torch.arange(60) % 3
    for seed in (0, 1):  # of two encoders
        f = torch.cat((number[:, None], torch.randn(60, 8, generator=torch.Generator().manual_seed(seed))), 1)
        fast_probe([f], y, [f], y, labels=("1", "10"), draws=2, layers=("each",), knn=False)
    assert used[:4] == used[4:]
    assert [len(u) for u in used[:4]] == [3, 3, 30, 30]
    assert used[0] != used[1]


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


# --- the paper's protocol ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits() -> tuple[Images, Images]:
    return open_images("digits", "train", limit=300), open_images("digits", "test", limit=200)


def paper(encoder: Encoder, train: Images, test: Images, **options):
    normalise = Normalise((0.3,), (0.35,))
    settings = {"patches": (4, 4, 4, 2, 1), "normalise": normalise, "augmentation": Augmentation(kind="affine")}
    return paper_probe(encoder, train, test, **(settings | options))


def test_paper_protocol_beats_chance_and_leaves_the_encoder_alone(digits: tuple[Images, Images]):
    torch.manual_seed(0)
    encoder = encoders.vgg5(0.5)
    encoder.train()
    encoder.blocks[1].eval()
    before, modes = copy.deepcopy(encoder.state_dict()), [m.training for m in encoder.modules()]
    generator = torch.get_rng_state()
    reports: list[tuple[int, int, float]] = []
    result = paper(encoder, *digits, epochs=6, lr=3e-3, report=lambda *args: reports.append(args))
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())
    assert [m.training for m in encoder.modules()] == modes
    assert all(p.grad is None for p in encoder.parameters())
    assert torch.equal(torch.get_rng_state(), generator)
    found = accuracies(result)
    assert [r.layer for r in result.rows] == ["1", "2", "3", "4", "5", "all"]
    assert found["all", "all"] > 60
    assert result.rows[-1].features == sum(r.features for r in result.rows[:-1])
    assert [r[:2] for r in reports] == [(i, 6) for i in range(1, 7)]
    assert reports[-1][2] < reports[0][2] < 2.4
    for words in ("300 training labels", "affine", "Adam 0.003", "6 epochs", "after the last epoch"):
        assert words in result.protocol
    again = paper(encoder, *digits, epochs=6, lr=3e-3)
    assert again.rows == result.rows


def test_paper_protocol_is_adam_on_each_layers_features_alone(digits: tuple[Images, Images]):
    """Without augmentation and with one batch per epoch, the first layer's classifier is a plain loop's."""
    train, test = digits
    torch.manual_seed(0)
    encoder = Encoder(encoders.vgg5(0.5).blocks[:2])
    still = Augmentation("affine", degrees=0.0, translate=0.0, scale=(1.0, 1.0), shear=0.0)
    options = {"patches": (4, 4), "augmentation": still, "batch_size": len(train), "seed": 7, "lr": 0.01}
    normalise = Normalise((0.3,), (0.35,))
    x, x_test = (features(encoder, part, patches=(4, 4), normalise=normalise)[0] for part in (train, test))
    assert train.labels is not None
    assert test.labels is not None
    torch.manual_seed(7)
    head = nn.Linear(x.shape[1], 10)
    adam = torch.optim.Adam(head.parameters(), lr=0.01)
    want: list[float] = []
    for _ in range(20):
        adam.zero_grad()
        nn.functional.cross_entropy(head(x), train.labels).backward()
        adam.step()
        want.append(100 * float((head(x_test).argmax(1) == test.labels).double().mean()))
    got = [accuracies(paper(encoder, train, test, epochs=n, **options))["1", "all"] for n in (3, 20)]
    assert got == [pytest.approx(want[2], abs=0.51), pytest.approx(want[19], abs=0.51)]  # one image may be on the edge
    assert want[19] > want[2] + 10


def test_paper_protocol_augments_colour_images_by_crops(digits: tuple[Images, Images]):
    pixels = torch.randint(0, 256, (40, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    y = torch.arange(40) % 2
    pixels[y == 1] = pixels[y == 1] // 4
    part = images(pixels, y)
    torch.manual_seed(0)
    encoder = encoders.vgg5(0.5, in_channels=3)
    normalise = Normalise((0.5,) * 3, (0.5,) * 3)
    result = paper(encoder, part, part, normalise=normalise, augmentation=Augmentation(), epochs=10, batch_size=8)
    assert accuracies(result)["all", "all"] == 100  # dark against bright survives any crop
    assert "random resized crop of 8 to 100 %" in result.protocol


def test_stl10_test_images_are_enlarged_and_cropped():
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import center_crop, resize

    x = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    want = center_crop(resize(x, [105, 105], InterpolationMode.BILINEAR, antialias=True), [96, 96])
    assert_close_report(_test_view(x), want, 1e-6)
    assert torch.equal(_test_view(x[..., :32, :32]), x[..., :32, :32])


def test_paper_protocol_errors(digits: tuple[Images, Images]):
    train, test = digits
    encoder = encoders.vgg5(0.5)
    unlabelled = images(torch.zeros(4, 1, 16, 16, dtype=torch.uint8))
    with pytest.raises(UsageError, match="the training part of toy has no labels; the linear probe needs them"):
        paper(encoder, unlabelled, test)
    with pytest.raises(UsageError, match="epochs is 0"):
        paper(encoder, train, test, epochs=0)
    small = images(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.arange(4))
    with pytest.raises(UsageError, match=r"training images are \(1, 16, 16\), test images \(1, 8, 8\)"):
        paper(encoder, train, small)
    broken = copy.deepcopy(encoder)
    nn.init.constant_(next(broken.blocks[2].parameters()), float("nan"))
    with warnings.catch_warnings(), pytest.raises(UsageError, match="features of block 3 are not finite"):
        paper(broken, train, test, epochs=1)
    assert broken.training
