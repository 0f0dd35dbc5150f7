"""LPL's published setting: its network, schedule and decay, a tiny run of it, stopped and gone on with."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from localssl import rules
from localssl.encoders import vgg11
from localssl.errors import RunError
from localssl.experiments import lpl_own
from localssl.experiments.cells import Settings
from localssl.experiments.lpl_own import SCALES, Scale, parameter_groups, rate, verdict
from localssl.learner import Learner

from .sources_util import stl10
from .train_util import folder

PAPER = SCALES["paper"]


def test_the_network() -> None:
    with torch.device("meta"):
        learner = Learner(vgg11(1.0), rules.get("lpl"), (3, 32, 32))
    assert [shape[0] for shape in learner.output_shapes] == [64, 128, 256, 256, 512, 512, 512, 512]
    assert [shape[1] for shape in learner.output_shapes] == [16, 8, 8, 4, 4, 2, 2, 1]
    weights, biases = (group["params"] for group in parameter_groups(learner))
    assert len(weights) == len(biases) == 8
    assert [group["weight_decay"] for group in parameter_groups(learner)] == [1.5e-6, 0.0]
    assert not any(isinstance(m, nn.BatchNorm2d) for m in learner.modules())


def test_the_schedule() -> None:
    rates = [rate(epoch, PAPER) for epoch in range(PAPER.epochs)]
    assert rates[0] == 0
    assert max(rates) == rates[9] == rates[10] == 1e-3
    assert rates[3] == pytest.approx(1e-3 / 3)
    assert rates[405] == pytest.approx((1e-3 + 1e-6) / 2)
    assert 1e-6 < rates[-1] < 1.1e-6
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert [rate(epoch, Scale(epochs=2, warm_up=1)) for epoch in range(2)] == [0, 1e-3]


def test_the_verdict() -> None:
    assert verdict([50.0], SCALES["cpu"]).startswith("not comparable: scale (width 0.25 instead of 1, batch size 256")
    assert verdict([59.0], PAPER) == "one seed, −0.40 points, no interval to judge by"
    assert verdict([59.35, 59.45], PAPER).startswith("reproduced")
    assert verdict([61.0, 61.1], PAPER) == "off by +1.65"
    assert verdict([57.0, 61.0], PAPER).startswith("not comparable: 2 seeds, an interval of ±")


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    data = f"imagefolder:{folder(tmp_path / 'images')}"
    small = Scale(data=data, width=0.05, batch_size=8, epochs=3, warm_up=1, held_out=12, probe_epochs=2)
    monkeypatch.setitem(SCALES, "cpu", small)
    return Settings(tmp_path / "out", threads=1)


def test_a_tiny_run(tiny: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    lpl_own.cifar10(tiny)
    lines = (tiny.out / "lpl-cifar10-cpu.csv").read_text().splitlines()
    assert "not comparable: scale" in lines[0]
    assert "published: 59.40 %" in lines[0]
    assert [line.split(",")[:2] for line in lines[2:]] == [["untrained", "0"], ["lpl", "0"]]
    assert "not comparable" in capsys.readouterr().out
    record = json.loads((tiny.out / "cells" / "cpu-lpl-s0.json").read_text())
    assert (record["labels"], record["features"], record["epochs"]) == (12, 26, 3)
    assert "20 images without labels" in record["protocol"]


def test_it_goes_on_where_it_stopped(tiny: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lpl_own.cifar10(tiny)
    whole = torch.load(tiny.out / "runs" / "cpu-lpl-s0.pt", weights_only=True)
    monkeypatch.setitem(SCALES, "cpu", dataclasses.replace(SCALES["cpu"], save_every=1))
    at = rate

    def fails(epoch: int, scale: Scale) -> float:
        if epoch == 2:
            raise RunError("power cut")
        return at(epoch, scale)

    other = Settings(tmp_path / "other", threads=1)
    monkeypatch.setattr(lpl_own, "rate", fails)
    with pytest.raises(RunError, match="power cut"):
        lpl_own.cifar10(other)
    monkeypatch.setattr(lpl_own, "rate", at)
    lpl_own.cifar10(other)
    again = torch.load(other.out / "runs" / "cpu-lpl-s0.pt", weights_only=True)
    assert all(torch.equal(value, again["learner"][name]) for name, value in whole["learner"].items())
    before = vgg11(0.05).state_dict()
    assert before.keys() == {name.removeprefix("encoder.") for name in again["learner"] if name.startswith("encoder.")}


def test_the_first_epoch_changes_nothing(tiny: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rate is 0: after one epoch the weights are those of the seed."""
    monkeypatch.setitem(SCALES, "cpu", dataclasses.replace(SCALES["cpu"], epochs=1, probe_epochs=1))
    lpl_own.cifar10(tiny)
    state = torch.load(tiny.out / "runs" / "cpu-lpl-s0.pt", weights_only=True)
    torch.manual_seed(0)
    start = vgg11(0.05).state_dict()
    assert all(torch.equal(start[name], state["learner"][f"encoder.{name}"]) for name in start)


def test_stl10_learns_from_unlabelled_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """95 % of those without labels, and labels of other images for the probe."""
    stl10(tmp_path, 24, 20, 10)
    full = SCALES["stl10-paper"]
    assert (full.published, full.held_out, full.left_out, full.epochs, full.batch_size) == (
        "stl10",
        4500,
        5000,
        800,
        1024,
    )
    small = {
        "width": 0.05,
        "batch_size": 8,
        "epochs": 1,
        "held_out": 10,
        "left_out": 4,
        "images": 16,
        "probe_epochs": 1,
    }
    monkeypatch.setitem(SCALES, "stl10-cpu", dataclasses.replace(full, **small))
    settings = Settings(tmp_path / "out", tmp_path, threads=1)
    lpl_own.stl10(settings)
    record = json.loads((settings.out / "cells" / "cpu-lpl-s0.json").read_text())
    assert (record["labels"], record["features"]) == (10, 26)
    assert "trained on 16 images without labels" in record["protocol"]
    assert "published: 63.20 %; not comparable: scale (" in (settings.out / "lpl-stl10-cpu.csv").read_text()
    assert "16 images" in " ".join(capsys.readouterr().out.split())
