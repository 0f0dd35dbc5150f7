"""Training as a job of SLURM: where one is at hand, a cluster of a single machine will do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .train_util import encoder_bytes, rows

COMMAND = (sys.executable, "-m", "localssl", "train", "--rule", "clapp++dfb", "--data", "digits", "--width", "0.25")
FLAGS = ("--limit-images", "256", "--threads", "1", "--devices", "2")
NAME = f"localssl-{os.getpid()}"
SRUN = ("srun", "--quiet", f"--job-name={NAME}", "--nodes=1", "--ntasks-per-node=2")


def cluster() -> bool:
    found = shutil.which("sinfo") and subprocess.run(["sinfo", "--noheader"], capture_output=True, check=False)
    return bool(found) and found.returncode == 0


pytestmark = pytest.mark.skipif(not cluster(), reason="no SLURM answers here (sinfo)")


def started(out: Path, epochs: int, tasks: tuple[str, ...] = SRUN) -> subprocess.Popen[str]:
    command = [*tasks, *COMMAND, *FLAGS, "--epochs", str(epochs), "--resume", "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )


def test_two_tasks_are_two_processes(tmp_path: Path) -> None:
    job = started(tmp_path / "job", 2)
    said, _ = job.communicate(timeout=180)
    assert job.returncode == 0, said
    assert said.count("done: ") == 1
    plain = started(tmp_path / "plain", 2, ())
    plain.communicate(timeout=180)
    assert encoder_bytes(tmp_path / "job") == encoder_bytes(tmp_path / "plain")
    assert rows(tmp_path / "job") == rows(tmp_path / "plain")


def test_a_cancelled_job_goes_on(tmp_path: Path) -> None:
    job = started(tmp_path / "x", 400)
    deadline = time.monotonic() + 60
    while not (tmp_path / "x" / "checkpoint").exists():
        assert time.monotonic() < deadline
        time.sleep(0.2)
    subprocess.run(["scancel", f"--name={NAME}"], check=True)
    said, _ = job.communicate(timeout=60)
    assert "stopped at step" in said, said
    again = started(tmp_path / "x", 400)
    lines: list[str] = []
    for line in again.stdout or ():
        lines.append(line)
        if line.startswith("step "):  # trains: what is cancelled before has nothing to save
            break
    subprocess.run(["scancel", f"--name={NAME}"], check=True)
    rest, _ = again.communicate(timeout=60)
    assert any(line.startswith(f"resuming {tmp_path / 'x'} at step ") for line in lines), lines
    assert "stopped at step" in rest, rest


def test_another_number_of_tasks(tmp_path: Path) -> None:
    job = started(tmp_path / "x", 1, (*SRUN[:-1], "--ntasks-per-node=1"))
    said, _ = job.communicate(timeout=60)
    assert "localssl: SLURM started 1 processes, --devices times --nodes is 2; give as many" in said
    assert not (tmp_path / "x").exists()
