"""Representations: closed forms, invariances, intervals that hold, nulls that say chance, files that come back."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import localssl
from localssl import encoders, represent, rules
from localssl.encoders import Encoder, mlp, vgg5
from localssl.learner import Learner
from localssl.represent import cka, participation_ratio, rsa, similarity, spatial

from .train_util import run_tiny
from .util import assert_close_report, usage_error

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((30, 6)), RNG.standard_normal((30, 4))
ROTATION = np.linalg.qr(RNG.standard_normal((6, 6)))[0]


def test_cka_is_that_of_its_publication() -> None:
    """By loops over units: Σ cov(x_i, y_j)² over the lengths of the covariances."""

    def power(a: Any, b: Any) -> float:
        return sum(float(np.cov(a[:, i], b[:, j])[0, 1]) ** 2 for i in range(a.shape[1]) for j in range(b.shape[1]))

    assert_close_report(cka(X, Y), power(X, Y) / np.sqrt(power(X, X) * power(Y, Y)))
    assert_close_report(cka(X, 3 * X @ ROTATION + 5), 1.0)
    assert cka(X, X @ np.diag([1, 1, 1, 1, 1, 20])) < 0.9


def test_rsa_is_spearmans_of_the_pairs() -> None:
    from scipy import stats

    def pairs(a: Any) -> list[float]:
        return [1 - np.corrcoef(a[i], a[j])[0, 1] for i in range(len(a)) for j in range(i)]

    assert_close_report(rsa(X, Y), stats.spearmanr(pairs(X), pairs(Y)).statistic)
    assert_close_report(rsa(X, 2 * X), 1.0)
    dissimilar = represent.dissimilarities(X)
    assert_close_report(dissimilar[3, 5], 1 - np.corrcoef(X[3], X[5])[0, 1])
    silent = represent.dissimilarities(np.vstack([X, np.ones(6)]))
    assert np.allclose(silent[-1], 1)


def test_the_participation_ratio() -> None:
    assert_close_report(participation_ratio(np.outer(np.arange(9.0), [1.0, -2.0])), 1.0)
    square = np.array([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    assert_close_report(participation_ratio(square), 2.0)
    values = np.linalg.eigvalsh(np.cov(X.T))
    assert_close_report(participation_ratio(X), values.sum() ** 2 / (values**2).sum())
    found = represent.dimension(X)
    assert found.low < found.value < found.high
    assert np.isnan(found.null)


def test_the_null_says_what_chance_gives() -> None:
    """With more units than images CKA is high for nothing; the null is as high, and p is uniform."""
    found = [
        similarity(*(np.random.default_rng([seed, i]).standard_normal((20, 60)) for i in range(2)), permutations=39)
        for seed in range(40)
    ]
    assert all(s.value > 0.5 for s in found)
    assert abs(float(np.mean([s.value - s.null for s in found]))) < 0.01
    p = np.array([s.p for s in found])
    assert p.min() >= 1 / 40
    assert 0.3 < p.mean() < 0.7
    assert (p <= 0.05).mean() < 0.15
    alike = similarity(X, X @ ROTATION, permutations=99)
    assert (round(alike.value, 12), alike.p) == (1.0, 0.01)


@pytest.mark.parametrize("measure", ["cka", "rsa"])
def test_the_interval_covers(measure: str) -> None:
    """Jackknife over images: the value of very many images lies in about 95 % of the intervals."""

    def pair(images: int, seed: int) -> tuple[Any, Any]:
        rng = np.random.default_rng(seed)
        hidden = rng.standard_normal((images, 3))
        mix = np.random.default_rng(99).standard_normal((2, 3, 5))
        return tuple(hidden @ m + 0.5 * rng.standard_normal((images, 5)) for m in mix)  # pyright: ignore

    truth = {"cka": cka, "rsa": rsa}[measure](*pair(1500, 0))
    found = [similarity(*pair(100, seed), measure, permutations=0) for seed in range(1, 61)]
    covered = float(np.mean([s.low <= truth <= s.high for s in found]))
    assert covered >= 0.85
    assert all(s.low < s.value < s.high for s in found)


def test_layers_by_name() -> None:
    one = {"block_1": X, "block_2": Y}
    found = represent.layers(one, permutations=9)
    assert list(found) == [(a, b) for a in one for b in one]
    assert round(found["block_1", "block_1"].value, 12) == 1
    assert found["block_1", "block_2"] == similarity(X, Y, permutations=9)
    assert found["block_1", "block_2"].value == pytest.approx(found["block_2", "block_1"].value)
    assert list(represent.layers(one, {"v1": Y}, "rsa", 0)) == [("block_1", "v1"), ("block_2", "v1")]


def test_activities_of_a_run(tmp_path: Path) -> None:
    run = run_tiny(tmp_path / "run")
    encoder = localssl.load(run.path)
    images = run.images("test").subset(torch.arange(24))
    found = represent.activities(encoder, images.batch(torch.arange(24)), label=images.labels, patches=(4, 4, 4, 2, 1))
    assert [array.shape for array in found.values()] == [(24, 64), (24, 32), (24, 32), (24, 64), (24, 64)]
    assert list(found) == [f"block_{i}" for i in range(1, 6)]
    whole = represent.activities(encoder, images.batch(torch.arange(24)), whole=True)
    assert whole["block_1"].shape == (24, 4 * 16 * 16)
    pooled = represent.activities(encoder, images.batch(torch.arange(24)))
    assert_close_report(pooled["block_1"], whole["block_1"].reshape(24, 4, 256).mean(2), 1e-5)
    by_hand = encoder(encoder.preprocess(images.batch(torch.arange(24))))[2]
    assert_close_report(whole["block_3"], by_hand.flatten(1).detach(), 1e-6)
    found.save(tmp_path / "a.npz")
    again = represent.load(tmp_path / "a.npz")
    assert list(again) == list(found)
    assert all(np.array_equal(again[name], found[name]) for name in found)
    assert np.array_equal(again.images["label"], images.labels)
    with np.load(tmp_path / "a.npz") as file:  # what others read
        assert set(file.files) == {*(f"activity/block_{i}" for i in range(1, 6)), "images/label"}


def test_rsatoolbox(monkeypatch: pytest.MonkeyPatch) -> None:
    found = represent.Activities({"block_1": X.astype(np.float32)}, {"label": np.arange(30) % 3})
    monkeypatch.setitem(sys.modules, "rsatoolbox", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with usage_error("pip install rsatoolbox"):
        represent.to_rsatoolbox(found)


def test_rsatoolbox_agrees() -> None:
    toolbox: ModuleType = pytest.importorskip("rsatoolbox")
    found = represent.Activities({"one": X.astype(np.float32)}, {"label": np.arange(30) % 3})
    dataset = represent.to_rsatoolbox(found)["one"]
    rdm = toolbox.rdm.calc_rdm(dataset, method="correlation", descriptor="image")
    theirs = rdm.get_matrices()[0]
    assert_close_report(represent.dissimilarities(np.asarray(found["one"], dtype=np.float64)), theirs, 1e-6)
    assert list(dataset.obs_descriptors["label"]) == list(np.arange(30) % 3)


def test_what_does_not_vary_is_like_nothing() -> None:
    """No similarity, and above all no small p."""
    for measure, still in (("cka", np.ones((30, 3))), ("rsa", np.ones((30, 3))), ("rsa", X[:, :1])):
        found = similarity(still, X, measure)
        assert all(math.isnan(v) for v in (found.value, found.low, found.high, found.null, found.p))
    assert not math.isnan(similarity(torch.tensor(X, requires_grad=True), Y).p)


def _diverged() -> Encoder:
    encoder = mlp(4, (2,))
    with torch.no_grad():
        next(encoder.parameters()).fill_(torch.nan)
    return encoder


def test_the_spatial_shape_of_b() -> None:
    """B that connects neighbours alone: all its strength is at distance 0 and 1."""
    side, channels = 3, 2
    places = np.stack(np.meshgrid(range(side), range(side), indexing="ij"), -1).reshape(-1, 2)
    near = (np.abs(places[:, None] - places[None]).sum(-1) <= 1).astype(float)
    b = np.einsum("ij,pq->ipjq", np.array([[1.0, -2], [3, 0]]), near).reshape(channels * 9, channels * 9)
    rows = spatial(torch.tensor(b), (side, side))
    assert [row.distance for row in rows] == [round(float(np.sqrt(d)), 6) for d in (0, 1, 2, 4, 5, 8)]
    assert [row.pairs for row in rows] == [9, 24, 16, 12, 16, 4]
    assert rows[0].strength == pytest.approx(rows[1].strength) == pytest.approx(81 / near.sum())
    assert all(row.strength == 0 for row in rows[2:])
    noise = spatial(RNG.standard_normal((40 * 9, 40 * 9)), (side, side))
    assert all(abs(row.strength - 1) < 0.03 for row in noise)
    assert all(row.low < row.strength < row.high for row in noise)
    coarse = spatial(np.ones((16, 4)), (4, 4), (2, 2))
    assert {row.strength for row in coarse} == {1.0}
    assert coarse[0].distance == pytest.approx(np.sqrt(0.5), abs=1e-6)


def test_the_shape_of_every_projection() -> None:
    """The same as of its weight alone; like to like where it was put, and only where a readout predicts itself."""
    torch.manual_seed(0)
    blocks = [encoders.conv_block(3, 4, pool=False), encoders.conv_block(4, 5, pool=True)]
    learner = Learner(Encoder.from_blocks(blocks), rules.get("clapp++both"), (3, 8, 8), (4, 4))
    weight = learner.projections.get_submodule("lateral.0").weight
    assert isinstance(weight, torch.Tensor)
    with torch.no_grad():
        weight.view(4, 4, 4, 4).diagonal(0, 1, 3).diagonal(0, 0, 1).fill_(1.0)  # channel, place, channel, place
    lateral, feedback = represent.shapes(learner)  # block 2 has one place
    assert [(s.key, s.block, s.patch) for s in (lateral, feedback)] == [("lateral", 1, 4), ("feedback", 1, 4)]
    np.testing.assert_equal(lateral.rows, spatial(weight, (2, 2)))
    assert [row.distance for row in lateral.rows] == pytest.approx([0, 1, math.sqrt(2)])
    assert [row.pairs for row in lateral.rows] == [4, 8, 4]
    assert lateral.rows[0].like * float(weight.detach().square().mean().sqrt()) == pytest.approx(1)
    assert all(abs(row.like) < 0.5 for row in lateral.rows[1:])
    assert [row.distance for row in feedback.rows] == pytest.approx([math.sqrt(0.5)])
    assert math.isnan(feedback.rows[0].like)
    plain = Learner(encoders.mlp(48, widths=(6, 5)), rules.get("clapp++"), (3, 4, 4))
    assert represent.shapes(plain) == []
    local = rules.get("clapp++", projection="patch-local", rank=2)
    found = represent.shapes(Learner(Encoder.from_blocks(blocks), local, (3, 8, 8), (4, 4)))
    assert [row.strength for row in found[0].rows] == [4, 0, 0]  # nothing between patches


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: cka(X, Y[:20]), "one representation is of 30 images, the other of 20"),
        (lambda: similarity(X, Y[:20]), "one representation is of 30 images, the other of 20"),
        (lambda: similarity(X[:8], Y[:8]), "8 images are too few for an interval; give at least 20"),
        (lambda: similarity(X, Y, "ckaa"), "unknown measure 'ckaa': did you mean 'cka'"),
        (lambda: cka(X[0], Y[0]), "a representation is an array .images, units. of at least 4 images"),
        (lambda: cka(X * np.nan, Y), "holds NaN or infinity"),
        (lambda: spatial(np.ones((4, 4)), (3, 1)), "does not fit a map of .3, 1. patches; give .* of its readout"),
        (lambda: spatial(np.ones((4, 4)), (2, 1), (3, 1)), "does not fit a map of .3, 1. patches; .* reference"),
        (lambda: spatial(np.ones((4, 4)), (1, 1)), "one patch on both sides"),
        (lambda: represent.activities(vgg5(0.25), torch.zeros(0, 1, 16, 16)), "there are no images"),
        (lambda: represent.activities(vgg5(0.25), torch.zeros(2, 3, 16, 16)), "does not accept inputs of shape"),
        (lambda: represent.activities(mlp(4, (2,)), torch.zeros(2, 4), label=[1]), "label describes 1 images"),
        (lambda: represent.activities(mlp(4, (2,)), torch.zeros(2, 4), label=[{}, {}]), "label holds objects"),
        (lambda: represent.activities(mlp(4, (2,)), torch.full((2, 4), torch.nan)), "the images hold NaN"),
        (lambda: represent.activities(_diverged(), torch.zeros(2, 4)), "block_1 are not finite"),
        (lambda: represent.activities(mlp(4, (2,)), torch.tensor(1.0)), "there are no images"),
        (lambda: represent.activities(mlp(4, (2,)), "x"), "images are a str"),  # type: ignore[arg-type]
        (lambda: represent.activities(mlp(4, (2,)), torch.zeros(2, 4), label=3), "label describes 1 images"),
        (
            lambda: represent.activities(mlp(4, (2,)), torch.zeros(2, 4), label=[[1], [1, 2]]),
            "lists of several lengths",
        ),
        (lambda: similarity(X + 1j, Y), "holds real numbers, not complex128"),
        (lambda: similarity(X.astype(str), Y), "holds real numbers, not <U"),
        (lambda: spatial(np.ones((4, 4)), 4), "give .height, width."),  # type: ignore[arg-type]
        (lambda: spatial(np.full((4, 4), np.nan), (2, 2)), "NaN or infinity"),
        (lambda: represent.load("/nowhere.npz"), "there is no file /nowhere.npz"),
    ],
)
def test_bad_input(call: Any, says: str) -> None:
    with usage_error(says):
        call()


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(b"PK\x03\x04 no more")
    with usage_error("is no .npz; numpy.savez writes one"):
        represent.load(path)
    np.savez(path, z=np.ones(3))
    with usage_error("holds no array activity/"):
        represent.load(path)
    np.savez(path, **{"activity/block_1": np.array([{}], dtype=object)})
    with usage_error("holds Python objects; write arrays of numbers or texts"):
        represent.load(path)
    np.save(tmp_path / "x.npy", X)
    with usage_error("is no .npz; numpy.savez writes one"):
        represent.load(tmp_path / "x.npy")


def test_whole_takes_any_stack() -> None:
    encoder = Encoder.from_blocks([torch.nn.Sequential(torch.nn.Conv1d(2, 3, 3), torch.nn.ReLU())])
    found = represent.activities(encoder, torch.randn(5, 2, 9), whole=True)
    assert found["block_1"].shape == (5, 21)
