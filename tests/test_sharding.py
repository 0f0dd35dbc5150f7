"""Runs whose B is sharded over processes: the same numbers and the same files as without, resumable either way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from localssl.errors import RunError, UsageError
from localssl.projections import Dense
from localssl.runs.run import open_run
from localssl.training.loop import Loop
from localssl.training.train import train

from .test_divergence import spoil
from .train_util import last_state, rows, run_tiny, steps, tiny

EXACT: dict[str, Any] = {"rule": "clapp++both", "precision": "64-true", "align_every": 1, "optimizer": "adam-factored"}


@pytest.fixture(autouse=True)
def _forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that need not import everything anew."""
    monkeypatch.setattr("localssl.training.launch.START", "fork")


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
    whole = run_tiny(tmp_path / "whole", devices=2, epochs=1, **EXACT).path
    sharded = run_tiny(tmp_path / "sharded", devices=2, epochs=1, shard_b=True, **EXACT).path
    assert "B sharded over 2 processes: " in capfd.readouterr().out
    assert (sharded / "config.yaml").read_text() == (whole / "config.yaml").read_text()
    alike_runs(sharded, whole)
    few: dict[str, Any] = {**EXACT, "align_every": 0, "probe_every": 0}
    for run, devices in ((whole, {"devices": 2}), (sharded, {"devices": 2, "shard_b": True})):
        run_tiny(run, epochs=2, resume=True, **few)
        run_tiny(run, epochs=3, resume=True, **devices, **few)
    alike_runs(sharded, whole)
    learner, step = open_run(sharded).trained_learner()
    assert step == 12
    assert isinstance(learner.parts["lateral"][0], Dense)


def test_matrices_in_place_of_rows(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    few: dict[str, Any] = {**EXACT, "align_every": 0, "optimizer": "adam", "devices": 2}
    rows_ = run_tiny(tmp_path / "rows", exchange="rows", **few).path
    matrices = run_tiny(tmp_path / "matrices", exchange="matrices", **few).path
    said = capfd.readouterr().out
    assert "changes of B: rows for all blocks, " in said
    assert "changes of B: matrices for all blocks, " in said
    alike_runs(matrices, rows_)


def test_a_run_of_processes_apart_is_not_sharded_later(tmp_path: Path) -> None:
    run_tiny(tmp_path / "x", devices=2, across="process", epochs=1)
    stored = {"rule": None, "data": None, "width": 1.0, "lr": None, "batch_size": 64, "limit_images": None}
    with pytest.raises(UsageError, match=r"--shard-b: every process compares its own samples \(--across\)"):
        run_tiny(tmp_path / "x", devices=2, shard_b=True, resume=True, **stored)


def test_a_batch_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """The state before it is whole, and whoever goes back goes back with its rows."""
    changes: dict[str, Any] = {"devices": 2, "shard_b": True, "engine": "autograd", "probe_every": 0}
    with monkeypatch.context() as patch:
        spoil(patch, {6: 3})
        with pytest.raises(RunError, match=r"^step 6, block 3: its activity, [^\n]*nan/step-000000005.pt"):
            run_tiny(tmp_path / "x", **changes)
    kept = tmp_path / "x" / "nan" / "step-000000005.pt"
    kept.rename(tmp_path / "x" / "checkpoint" / kept.name)
    assert open_run(tmp_path / "x").trained_learner()[1] == 5
    with monkeypatch.context() as patch:
        spoil(patch, {6: 3})
        run_tiny(tmp_path / "y", **changes, on_nan="rollback")
    assert "left out, weights as of step 4" in capfd.readouterr().out
    assert steps(tmp_path / "y") == [4, 8]


def test_all_save_when_one_clock_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Loop.train

    def train_by_another_clock(self: Loop, *rest: Any) -> None:
        self.checkpoint_seconds = 0 if self.speaks else 1e9
        original(self, *rest)

    monkeypatch.setattr(Loop, "train", train_by_another_clock)
    run_tiny(tmp_path / "x", devices=2, shard_b=True, epochs=1)
    assert steps(tmp_path / "x") == [3, 4]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"devices": 1}, "--shard-b goes with --devices and --across all"),
        ({"across": "process"}, "--shard-b goes with --devices and --across all"),
        ({"pipeline": 2}, "(--shard-b goes with .*, without --pipeline)|(do not go together)"),
        ({"exchange": "matrices"}, "--exchange matrices: of a sharded B they are made from rows only"),
        ({"rule": "ff"}, "--shard-b: rule 'ff' does not compare samples across processes"),
        ({"rule": "lpl"}, "--shard-b: rule 'lpl' has no B of a score"),
        ({"rule_options": ("projection=low-rank", "rank=1")}, "no B of projection 'low-rank' is a dense matrix"),
        (
            {"shard_b": False, "exchange": "rows", "across": "process"},
            "--exchange rows goes with --devices and --across",
        ),
        (
            {"shard_b": False, "exchange": "rows", "rule": "ff"},
            "--exchange rows: every process compares its own samples",
        ),
        ({"shard_b": False, "exchange": "matrices", "engine": "autograd"}, "engine 'autograd' makes changes of B from"),
        ({"optimizer": "shift-sgd"}, "--shard-b: optimizer 'shift-sgd' looks at the whole of B"),
    ],
)
def test_refusals(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=says):
        train(tiny(tmp_path / "x", **{"devices": 2, "shard_b": True, **changes}))
    assert not (tmp_path / "x").exists()


def test_to_go_on_with_it() -> None:
    command = tiny(Path("x"), devices=2, shard_b=True).resume_command()
    assert command.endswith("train --resume --out x --threads 1 --devices 2 --shard-b")
