"""``localssl reproduce demo``: one command leaves three small encoders that ``localssl.load`` opens. Here in small."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch

import localssl
from localssl import evaluate
from localssl.cli import main
from localssl.experiments import demo
from localssl.runs.config import TrainConfig


def test_three_encoders_from_one_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    align_options = evaluate.AlignOptions
    small = {"epochs": 1, "width": 0.25, "batch_size": 16, "limit_images": 64}
    monkeypatch.setattr(demo, "TrainConfig", functools.partial(TrainConfig, **small))
    monkeypatch.setattr(evaluate, "ProbeOptions", functools.partial(evaluate.ProbeOptions, limit=200, draws=2))
    monkeypatch.setattr(evaluate, "AlignOptions", lambda batches: align_options(batches=2))
    assert main(["reproduce", "demo", "--out", str(tmp_path), "--threads", "1"]) == 0
    folder = tmp_path / "demo"
    assert sorted(path.name for path in (folder / "runs").iterdir()) == sorted(f"{rule}-s0" for rule in demo.RULES)
    images = torch.randint(256, (2, 1, 16, 16), dtype=torch.uint8)
    last = []
    for rule in demo.RULES:
        encoder = localssl.load(folder / "runs" / f"{rule}-s0")
        assert not encoder.training
        outputs = encoder(encoder.preprocess(images))
        assert len(outputs) == 5
        assert all(output.isfinite().all() for output in outputs)
        last.append(outputs[-1])
    assert not any(torch.equal(last[i], last[i - 1]) for i in range(3))  # three rules, three encoders
    assert {path.name for path in folder.iterdir()} >= {"demo.png", "probe.csv", "align.csv", "cells"}
