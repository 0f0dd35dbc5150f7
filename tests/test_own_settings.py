"""Peers in their own settings: passes train what they say, the probe is the published one, every command runs."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import localssl
from localssl import cli, encoders
from localssl.data.sources import Images, open_images
from localssl.data.specs import Augmentation
from localssl.data.views import Views, cropped
from localssl.errors import UsageError
from localssl.experiments import EXPERIMENTS, PAPER_SCALE, greedy, own_images, own_probe, own_recipes, own_settings
from localssl.experiments.cells import Settings
from localssl.experiments.greedy import Pass
from localssl.experiments.own_probe import OwnProbe
from localssl.learner import Learner

from .sources_util import real_root
from .util import assert_close_report, numpy


def digits(n: int = 40) -> Images:
    return open_images("digits", "train", image_size=16, limit=n)


def learner() -> Learner:
    torch.manual_seed(0)
    encoder = encoders.vgg5(width=0.25, norm="batch", paired=True)
    return Learner(encoder, localssl.rules.get("stochastic-ff", copies=2, channels=2), (1, 16, 16))


def views(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.float() / 255, x.float() / 255


@pytest.mark.parametrize("layer", [1, 3, 5, None])
def test_a_pass_trains_its_layer(layer: int | None) -> None:
    made = learner()
    before = copy.deepcopy(made)
    torch.manual_seed(1)
    losses = greedy.train(made, digits(), views, Pass(layer, 0.01, epochs=2), 8)
    assert len(losses) == 2
    for i, (one, other) in enumerate(zip(before.encoder.blocks, made.encoder.blocks, strict=True), start=1):
        moved = any(not torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))
        assert moved == (layer in (None, i)), f"block {i}"
    assert all(p.requires_grad for p in made.encoder.parameters())
    for one, other in zip(before.projections["channels"], made.projections["channels"], strict=True):
        assert torch.equal(one.weight, other.weight)  # pyright: ignore[reportArgumentType]


def test_a_pass_runs_no_layer_above() -> None:
    made = learner()
    part = greedy._up_to(made, 3)  # pyright: ignore[reportPrivateUsage]
    assert list(part.encoder.blocks) == list(made.encoder.blocks)[:3]
    x, _ = views(digits(8).batch(torch.arange(8)))
    torch.manual_seed(1)
    found = part.losses(x, x)
    torch.manual_seed(1)
    assert torch.equal(found, made.losses(x, x)[:3])


def test_the_rate_falls_batch_by_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[float] = []
    original = torch.optim.SGD.step

    def step(self: torch.optim.SGD, closure: None = None) -> None:
        used.append(self.param_groups[0]["lr"])
        original(self, closure)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    how = Pass(None, 0.1, factor=0.5, period=2, epochs=1, optimiser="plain-sgd")
    greedy.train(learner(), digits(33), views, how, 8)  # the 33rd image has no other in its batch
    assert used == [0.1, 0.05, 0.05, 0.025]


def test_the_probes_schedules_and_scores() -> None:
    halved = [OwnProbe(epochs=10).rate(epoch) for epoch in range(10)]
    assert halved == [1e-3 * 0.5**k for k in (0, 0, 1, 2, 2, 3, 4, 5, 6, 7)]
    assert OwnProbe(epochs=4, schedule="cosine").rate(2) == pytest.approx(5e-4)
    assert OwnProbe(epochs=4, schedule="constant").rate(3) == 1e-3
    x, head = torch.randn(3, 5, 7), nn.Linear(7, 2)
    found = own_probe._scores(head, x, OwnProbe(squared=True))  # pyright: ignore[reportPrivateUsage]
    want = np.zeros((3, 2))
    for i, c, k in np.ndindex(3, 2, 5):
        want[i, c] += float((numpy(head.weight)[c] @ numpy(x)[i, k] + numpy(head.bias)[c]) ** 2) / 4
    assert_close_report(numpy(found), want, 1e-5)


def test_the_probe_learns_what_is_linear() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(200, 4), torch.arange(200) % 2
    x[:, 0] += 6 * y
    how = OwnProbe(lr=0.1, epochs=10, batch=10, dropout=0.1)
    last, best = own_probe.accuracy(lambda i: x[i], y, lambda i: x[i], y, how, 0, every=1)
    assert best >= last > 95
    assert own_probe.accuracy(lambda i: x[i], y, lambda i: x[i], y, how, 0)[0] == last


@pytest.mark.parametrize("n", [400, 60])  # more images than pixels, and fewer
def test_whitening(n: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = digits(n)
    monkeypatch.setattr(own_images, "PART", 150)
    x = images.batch(torch.arange(n))
    kept = tmp_path / "zca.pt"
    white = own_images.whitening(images, 0.1, kept=kept)(x).flatten(1).double()
    pixels = x.flatten(1).double() / 255
    pixels = (pixels - pixels.mean(0)) / (pixels.std(0) + 1e-8)
    c = pixels.T @ pixels / (n - 1)
    expected = c @ torch.linalg.inv(c + 0.1 * torch.eye(len(c), dtype=torch.float64))  # pyright: ignore[reportUnknownMemberType]
    torch.testing.assert_close(white.T @ white / (n - 1), expected, rtol=1e-3, atol=1e-3)
    assert torch.linalg.norm(pixels - white) < torch.linalg.norm(pixels)  # it still looks like the images
    again = own_images.whitening(images, 0.1, kept=kept)(x).flatten(1).double()
    assert torch.equal(again, white)
    with pytest.raises(UsageError, match="two images"):
        own_images.whitening(digits(1))


def test_crops_and_flips() -> None:
    torch.manual_seed(0)
    x = torch.arange(2 * 3 * 6 * 6.0).view(2, 3, 6, 6) + 1
    flipped = cropped(x, 0)
    assert all(torch.equal(one, own) or torch.equal(one, own.flip(2)) for one, own in zip(flipped, x, strict=True))
    parts = cropped(x.repeat(20, 1, 1, 1), 2)
    assert parts.shape == (40, 3, 6, 6)
    assert (parts == 0).any()  # the padding
    inner = parts[:, :, 2:4, 2:4]
    assert (inner > 0).all()
    assert torch.equal((inner[:, 1] - inner[:, 0]).unique(), torch.tensor([36.0]))  # channels stay together


def test_crops_are_views() -> None:
    torch.manual_seed(0)
    x = torch.randint(0, 256, (40, 1, 6, 6), dtype=torch.uint8)
    still = Views(Augmentation(kind="crops"), [0.0], [1.0], 1, 6)(x)
    assert all(torch.equal(view, x.float() / 255) for view in still)
    a, b = Views(Augmentation(kind="crops", pad=2, flip=True), [0.5], [0.25], 1, 6)(torch.full_like(x, 255))
    assert {float(v) for v in (*a.unique(), *b.unique())} == {-2.0, 2.0}  # black behind white
    assert not torch.equal(a, b)
    assert torch.equal(a[:, :, 2:4, 2:4], torch.full((40, 1, 2, 2), 2.0))


def test_parts_of_images_and_black_borders() -> None:
    torch.manual_seed(0)
    x = torch.arange(6 * 6.0).view(1, 1, 6, 6).repeat(300, 1, 1, 1) + 1
    parts = cropped(x, 0, side=4)
    assert parts.shape == (300, 1, 4, 4)
    corners = {int(min(part[0, 0, 0], part[0, 0, -1])) for part in parts}  # of those that were flipped, the right one
    assert corners == {1, 2, 3, 7, 8, 9, 13, 14, 15}
    assert torch.equal(own_images.centre(x, 4), x[:, :, 1:5, 1:5])
    assert own_images.centre(x, None) is x
    white = torch.full((200, 3, 8, 8), 255, dtype=torch.uint8)
    recipe = own_recipes.RECIPES["scff-stl10"]
    normalise = own_settings._normalise(Settings(Path()), recipe)  # pyright: ignore[reportPrivateUsage]
    shown = own_settings._augmented(white, normalise, recipe)  # pyright: ignore[reportPrivateUsage]
    black = (0 - torch.tensor(recipe.mean)) / torch.tensor(recipe.std)
    torch.testing.assert_close(shown.amin((0, 2, 3)), black)


def test_every_setting_is_a_command() -> None:
    assert set(own_recipes.RECIPES) <= set(EXPERIMENTS)
    assert set(own_recipes.RECIPES) <= PAPER_SCALE


@pytest.mark.parametrize("name", [n for n, r in own_recipes.RECIPES.items() if r.data == "cifar10"])
def test_runs_and_is_marked(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for key, value in (("WIDTH", 0.0625), ("IMAGES", 48), ("PROBE_EPOCHS", 1), ("TEST_IMAGES", 40)):
        monkeypatch.setattr(own_settings, key, value)
    recipe = own_recipes.RECIPES[name]
    if "copies" in recipe.options:
        monkeypatch.setitem(own_recipes.RECIPES, name, replace(recipe, options={"copies": 3}))
    command = f"reproduce {name} --threads 1 --out {tmp_path} --data-root {real_root('cifar10')}"
    assert cli.main(command.split()) == 0
    said = capsys.readouterr().out
    assert "Not comparable: scale (width 0.0625, 48 images," in " ".join(said.split())
    cells = {f.stem: json.loads(f.read_text()) for f in (tmp_path / name / "cells").glob("*.json")}
    assert len(cells) == len(recipe.passes) + 2
    trained, untrained = cells["cpu-probe-s0"], cells["cpu-untrained-s0"]
    assert trained["features"] == untrained["features"]
    lines = (tmp_path / name / f"{name}-cpu.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines[1:]] == ["net", "trained", "untrained"]
    assert cli.main(command.split()) == 0  # everything is there
    assert "running" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("facts", "seeds", "says"),
    [
        ("CIFAR-10", 1, "One seed, −0.30 points, no interval to judge by"),
        ("CIFAR-10", 2, "Off by −0.30"),
        ("CIFAR-10 (JPEG)", 2, "Not comparable: CIFAR-10 (JPEG)"),
    ],
)
def test_a_setting_that_lacks_nothing_is_judged(facts: str, seeds: int, says: str, tmp_path: Path) -> None:
    """At the published sizes, from cells that are there: accuracies of 80.5 beside the published 80.8."""
    (tmp_path / "cells").mkdir()
    for seed in range(seeds):
        for what in ("pass1", "pass2", "pass3", "probe", "untrained"):
            cell: dict[str, object] = {"facts": [facts]}
            if not what.startswith("pass"):
                name = "trained" if what == "probe" else what
                cell |= {"name": name, "seed": seed, "accuracy": 80.5, "best_tested": 80.5, "features": 18_432}
            (tmp_path / "cells" / f"paper-{what}-s{seed}.json").write_text(json.dumps(cell))
    own_settings.run("scff-cifar10", Settings(tmp_path, seeds=seeds, threads=1, scale="paper"))
    assert f"{says}." in (tmp_path / "scff-cifar10-paper.csv").read_text(encoding="utf-8").splitlines()[0]


def test_stl10_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(f"reproduce scff-stl10 --out {tmp_path} --data-root {tmp_path}".split()) == 2
    assert "stl10" in capsys.readouterr().err
