"""Which engine ``--engine auto`` comes to: what can do the rule, and of the two that can what the step's size says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from localssl import encoders, engine, rules
from localssl.blocks import BlackBox
from localssl.encoders import Encoder
from localssl.engine import choice
from localssl.report import arithmetic
from localssl.runs.run import resolve

from .train_util import assert_same, encoder_bytes, last_state, run_tiny, tiny

VGG6 = ((3, 32, 32), (4, 4, 4, 2, 2, 1))
MLP, CNN1D, VGG5 = ((784,), None), ((1, 128), None), ((1, 16, 16), (4, 4, 2, 2, 1))


def slower(encoder: Encoder, sizes: tuple[Any, Any], images: int, rule: str = "clapp++both") -> bool:
    return engine.slower(encoder, rules.get(rule), *sizes, images)


def test_it_goes_by_units_and_weights() -> None:
    """vgg6 at width 0.25 has 168 thousand units of drive a sample; at width 1 its B have 3 × 10⁸ weights."""
    with torch.device("meta"):
        assert slower(encoders.vgg6(0.25), VGG6, 16)
        assert not slower(encoders.vgg6(0.25), VGG6, 32)
        assert not slower(encoders.vgg6(1), VGG6, 2)
        assert slower(encoders.mlp(widths=(512,) * 6), MLP, 32)
        assert not slower(encoders.mlp(widths=(2048,) * 6), MLP, 32)
        assert slower(encoders.cnn1d(1), CNN1D, 32)
        assert slower(encoders.cnn1d(1), CNN1D, 1024)


@pytest.mark.parametrize(
    ("encoder", "sizes"),
    [(encoders.vgg6(0.1), VGG6), (encoders.vgg5(0.5), VGG5), (encoders.mlp(widths=(32,) * 6), MLP)],
)
def test_units_are_those_of_the_drive(
    encoder: Encoder, sizes: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before every pool, of both views: one more than that is more than few."""
    patches = sizes[1] or [None] * len(encoder.blocks)
    units = 2 * 4 * sum(layer.a for layer in arithmetic.layers(encoder, sizes[0], patches))
    monkeypatch.setattr(choice, "FEW_UNITS", units + 1)
    assert slower(encoder, sizes, 4)
    monkeypatch.setattr(choice, "FEW_UNITS", units)
    assert not slower(encoder, sizes, 4)


def test_weights_are_those_of_blocks_and_b(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = encoders.vgg5(0.5)
    weights = arithmetic.step(encoder, rules.get("clapp++both"), *VGG5, 2).parameters
    monkeypatch.setattr(choice, "FEW_WEIGHTS", weights + 1)
    assert slower(encoder, VGG5, 2)
    monkeypatch.setattr(choice, "FEW_WEIGHTS", weights)
    assert not slower(encoder, VGG5, 2)


def test_nothing_is_asked_of_what_has_no_choice() -> None:
    """A rule or a block that the three factors cannot train, and hardware, whose answer may cost something."""

    def never(_: Any) -> Any:
        raise AssertionError

    assert not slower(encoders.vgg5(0.1), VGG5, 2, "lpl")
    assert not slower(Encoder.from_blocks([nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh())]), ((1, 16, 16), None), 2)
    box = nn.Sequential(BlackBox(never, (1, 16, 16)), nn.Conv2d(1, 2, 3), nn.ReLU())
    assert not slower(Encoder.from_blocks([box]), ((1, 16, 16), None), 2)


@pytest.mark.parametrize("rule", ["clapp++", "clapp++dfb"])
def test_a_small_step_is_autograds(rule: str, tmp_path: Path) -> None:
    """The run says so and is that of ``--engine autograd``; it goes on with it, whatever would be chosen then."""
    said: list[str] = []
    chosen = run_tiny(tmp_path / "auto", said, rule=rule, engine="auto", epochs=1)
    assert chosen.config.engine == "autograd"
    assert "engine: autograd (the faster one here; --engine hebbian takes the other)" in said
    quiet: list[str] = []
    typed = run_tiny(tmp_path / "typed", quiet, rule=rule, engine="autograd", epochs=1)
    assert encoder_bytes(chosen.path) == encoder_bytes(typed.path)
    assert_same(last_state(chosen.path)["optimizer"], last_state(typed.path)["optimizer"])
    assert not any("engine" in line for line in quiet)
    run_tiny(chosen.path, said, rule=rule, resume=True, epochs=2)
    assert "engine: autograd (as it was begun)" in said


@pytest.mark.parametrize(
    "changes",
    [{"engine": "hebbian"}, {"staleness": 1}, {"exchange": "matrices", "devices": 2}],
)
def test_what_autograd_cannot_do_is_the_engines(changes: dict[str, Any]) -> None:
    config, _ = resolve(tiny(Path("x"), rule="clapp++dfb", **{"engine": "auto", **changes}))
    assert config.engine == "hebbian"


def test_a_large_step_is_the_engines() -> None:
    config, _ = resolve(tiny(Path("x"), engine="auto", width=4.0, batch_size=64))
    assert config.engine == "hebbian"
