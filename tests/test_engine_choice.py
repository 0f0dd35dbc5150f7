"""What ``--engine auto`` comes to where both engines can train: autograd for small steps of one process on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from localssl import encoders, engine, rules
from localssl.encoders import Encoder
from localssl.engine import choice
from localssl.learner import Learner
from localssl.report import arithmetic
from localssl.runs.resume import begin
from localssl.system import devices

from .train_util import assert_same, encoder_bytes, last_state, run_tiny, tiny

VGG6 = ((3, 32, 32), (4, 4, 4, 2, 2, 1))
MLP, CNN1D, VGG5 = ((784,), None), ((1, 128), None), ((1, 16, 16), (4, 4, 2, 2, 1))
SMALL = "engine: autograd (the faster one for so small a step; --engine hebbian takes the other)"


def small(encoder: Encoder, sizes: tuple[Any, Any], images: int) -> bool:
    learner = Learner(encoder, rules.get("clapp++both"), *sizes)
    weights = sum(p.numel() for p in learner.parameters())
    return engine.autograd_is_faster(encoder, learner.output_shapes, weights, images)


def test_it_goes_by_units_and_weights() -> None:
    """vgg6 at width 0.25 has 168 thousand units of drive a sample; at width 1 its B have 3 × 10⁸ weights."""
    with torch.device("meta"):
        assert small(encoders.vgg6(0.25), VGG6, 16)
        assert not small(encoders.vgg6(0.25), VGG6, 32)
        assert not small(encoders.vgg6(1), VGG6, 2)
        assert small(encoders.mlp(widths=(512,) * 6), MLP, 32)
        assert not small(encoders.mlp(widths=(2048,) * 6), MLP, 32)
        assert small(encoders.cnn1d(1), CNN1D, 32)
        assert not small(encoders.cnn1d(1), CNN1D, 512)


@pytest.mark.parametrize(
    ("encoder", "sizes"),
    [
        (encoders.vgg6(0.1), VGG6),
        (encoders.vgg5(0.5), VGG5),
        (encoders.cnn1d(0.5), CNN1D),
        (encoders.mlp(widths=(32,) * 6), MLP),
    ],
)
def test_units_are_those_of_the_drive(
    encoder: Encoder, sizes: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before every pool, of both views: one more than that is more than few."""
    patches = sizes[1] or [None] * len(encoder.blocks)
    units = 2 * 4 * sum(layer.a for layer in arithmetic.layers(encoder, sizes[0], patches))
    monkeypatch.setattr(choice, "FEW_UNITS", units + 1)
    assert small(encoder, sizes, 4)
    monkeypatch.setattr(choice, "FEW_UNITS", units)
    assert not small(encoder, sizes, 4)


def test_weights_are_those_of_blocks_and_b(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = encoders.vgg5(0.5)
    weights = arithmetic.step(encoder, rules.get("clapp++both"), *VGG5, 2).parameters
    monkeypatch.setattr(choice, "FEW_WEIGHTS", weights + 1)
    assert small(encoder, VGG5, 2)
    monkeypatch.setattr(choice, "FEW_WEIGHTS", weights)
    assert not small(encoder, VGG5, 2)


@pytest.mark.parametrize("rule", ["clapp++", "clapp++dfb"])
def test_a_small_step_is_autograds(rule: str, tmp_path: Path) -> None:
    """The run says so, is that of ``--engine autograd``, and goes on with it without another word."""
    said: list[str] = []
    chosen = run_tiny(tmp_path / "auto", said, rule=rule, epochs=1)
    assert chosen.config.engine == "autograd"
    assert said.count(SMALL) == 1
    quiet: list[str] = []
    typed = run_tiny(tmp_path / "typed", quiet, rule=rule, engine="autograd", epochs=1)
    assert encoder_bytes(chosen.path) == encoder_bytes(typed.path)
    assert_same(last_state(chosen.path)["optimizer"], last_state(typed.path)["optimizer"])
    assert run_tiny(chosen.path, quiet, rule=rule, resume=True, epochs=2).config.engine == "autograd"
    again = run_tiny(tmp_path / "again", quiet, rule=None, data=None, lr=None, config=typed.path / "config.yaml")
    assert again.config.engine == "autograd"
    assert not any("engine" in line for line in quiet)


def test_what_was_begun_under_the_engine_goes_on_under_it(tmp_path: Path) -> None:
    said: list[str] = []
    begun = run_tiny(tmp_path / "x", said, engine="hebbian", epochs=1)
    assert run_tiny(begun.path, said, resume=True, epochs=2).config.engine == "hebbian"
    config = begun.path / "config.yaml"
    again = run_tiny(tmp_path / "again", said, rule=None, data=None, lr=None, config=config)
    assert again.config.engine == "hebbian"
    assert not any("engine" in line for line in said)


@pytest.mark.parametrize(
    "changes",
    [
        {"engine": "hebbian"},
        {"rule": "clapp++dfb", "staleness": 1},
        {"devices": 2},
        {"nodes": 2},
        {"width": 4.0, "batch_size": 64},
    ],
    ids=str,
)
def test_otherwise_it_is_the_engines(changes: dict[str, Any], tmp_path: Path) -> None:
    said: list[str] = []
    resolved, _, _ = begin(tiny(tmp_path / "x", **changes), tmp_path / "x", said.append)
    assert resolved.engine == "hebbian"
    assert not any("engine" in line for line in said)


def test_on_another_device_nothing_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "choose", lambda _: torch.device("cuda"))
    resolved, _, _ = begin(tiny(tmp_path / "x"), tmp_path / "x", lambda _: None)
    assert resolved.engine == "hebbian"
