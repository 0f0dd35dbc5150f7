"""Runs whose B is sharded over processes: the same numbers and the same files as without, resumable either way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from localssl import sharding
from localssl.errors import RunError, UsageError
from localssl.run import build, open_run, resolve
from localssl.training import train

from .train_util import last_state, rows, run_tiny, steps, tiny

EXACT: dict[str, Any] = {"rule": "clapp++both", "precision": "64-true", "align_every": 1}


@pytest.fixture(autouse=True)
def _forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that need not import everything anew."""
    monkeypatch.setattr("localssl.launch.START", "fork")


def alike(found: Any, expected: Any, where: str = "state") -> None:
    """The same keys, types and shapes, and numbers that differ in their last digits only."""
    assert type(found) is type(expected), where
    if isinstance(expected, torch.Tensor):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9, msg=lambda m: f"{where}: {m}")
    elif isinstance(expected, dict):
        assert list(found) == list(expected), where
        for key in expected:
            alike(found[key], expected[key], f"{where}/{key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), where
        for i, pair in enumerate(zip(found, expected, strict=True)):
            alike(*pair, f"{where}/{i}")
    elif where != "state/seconds":
        assert found == expected, where


def alike_runs(found: Path, expected: Path) -> None:
    assert steps(found) == steps(expected)
    alike(last_state(found), last_state(expected))
    for mine, theirs in zip(rows(found), rows(expected), strict=True):
        assert mine.keys() == theirs.keys()
        for name, number in theirs.items():
            assert mine[name] == number or float(mine[name]) == pytest.approx(float(number), rel=1e-5), name


def test_same_run_same_files_and_resumed_with_one_process_and_back(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = run_tiny(tmp_path / "whole", devices=2, **EXACT).path
    sharded = run_tiny(tmp_path / "sharded", devices=2, shard_b=True, **EXACT).path
    assert "B sharded over 2 processes: " in capfd.readouterr().out
    assert (sharded / "config.yaml").read_text() == (whole / "config.yaml").read_text()
    alike_runs(sharded, whole)
    for run, devices in ((whole, {"devices": 2}), (sharded, {"devices": 2, "shard_b": True})):
        run_tiny(run, epochs=3, resume=True, **EXACT)
        run_tiny(run, epochs=4, resume=True, **devices, **EXACT)
    alike_runs(sharded, whole)
    learner, step = open_run(sharded).trained_learner()
    assert step == 16
    assert len(learner.projections["lateral"][0].weight) == learner.projections["lateral"][0].weight.shape[1]
