"""Training in several processes: a run's folder as of one, stopped, resumed, killed."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from localssl.errors import UsageError

from .train_util import encoder_bytes, last_state, rows, run_tiny, steps, tiny, weights

FLAGS = "--rule clapp++dfb --data digits --width 0.25 --epochs 200 --threads 1 --batch-size 16 --devices 2"


@pytest.fixture(autouse=True)
def _forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that need not import everything anew; those of a command are started as always."""
    monkeypatch.setattr("localssl.launch.START", "fork")


def test_two_processes_and_then_one(tmp_path: Path) -> None:
    """Views and negatives follow from seed, step and process alone, so a resumed run is the same run, bit for bit."""
    drawn = {"rule_options": ("negatives=random",)}
    whole = run_tiny(tmp_path / "whole", devices=2, **drawn)
    assert json.loads((whole.path / "manifest.json").read_text())["processes"] == 2
    assert steps(whole.path) == [4, 8]
    first = run_tiny(tmp_path / "x", devices=2, epochs=1, **drawn)
    assert rows(first.path) == [row for row in rows(whole.path) if int(row["step"]) <= 4]
    run_tiny(tmp_path / "x", devices=2, epochs=2, resume=True, **drawn)
    assert encoder_bytes(tmp_path / "x") == encoder_bytes(whole.path)
    assert rows(tmp_path / "x") == rows(whole.path)
    run_tiny(tmp_path / "x", epochs=3, resume=True, **drawn)  # another number of processes
    assert steps(tmp_path / "x") == [8, 12]


def test_each_process_by_itself(tmp_path: Path) -> None:
    apart = run_tiny(tmp_path / "apart", devices=2, across="process")
    together = run_tiny(tmp_path / "together", devices=2)
    for losses in ("loss_1", "loss_5"):
        assert rows(apart.path)[0][losses] != rows(together.path)[0][losses]
    assert all(torch.isfinite(w).all() for w in weights(apart.path).values())


def begun(out: Path) -> subprocess.Popen[str]:
    """A run in two processes that is well on its way."""
    command = [sys.executable, "-m", "localssl", "train", *shlex.split(FLAGS), "--out", str(out)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while process.poll() is None and not rows(out):
        time.sleep(0.05)
    return process


def test_ctrl_c(tmp_path: Path) -> None:
    process = begun(tmp_path / "x")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    said, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "")
    assert "go on with: " in said.splitlines()[-1]
    assert "--devices 2" in said.splitlines()[-1]
    assert last_state(tmp_path / "x")["step"] > 0


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="asks /proc for a process's children")
def test_a_killed_process_ends_the_run(tmp_path: Path) -> None:
    process = begun(tmp_path / "x")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    trains = [int(p) for p in children if "spawn_main" in Path(f"/proc/{p}/cmdline").read_text()]
    os.kill(trains[-1], signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert len(errors.splitlines()) == 1, errors
    assert "ended" in errors
    assert "go on with: " in errors or "SIGKILL" in errors
    last_state(tmp_path / "x")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"devices": 0}, "--devices 0: use a number of processes, 1 or more"),
        ({"devices": 3}, "--batch-size 16 is the whole batch: give a multiple of the 3 processes"),
        ({"devices": 16}, "--batch-size 16 is the whole batch: .* 2 images or more for each"),
        ({"devices": 2, "pipeline": 2}, "--pipeline and --devices do not go together"),
    ],
)
def test_refusals(changes: dict[str, int], says: str, tmp_path: Path) -> None:
    from localssl.training import train

    with pytest.raises(UsageError, match=says):
        train(tiny(tmp_path / "x", **changes))
    assert not (tmp_path / "x").exists()
