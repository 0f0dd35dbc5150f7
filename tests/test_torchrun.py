"""Training in processes that torchrun starts: one that is killed, and the restart that goes on with the run."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .train_util import assert_same_run, run_tiny, steps

EPOCHS = 5
TORCHRUN = "-m torch.distributed.run --standalone --nproc-per-node 2 --max-restarts 1 -m localssl train"
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
FLAGS = "--rule clapp++ --data digits --width 0.25 --limit-images 64 --batch-size 16 --lr 0.01 --threads 1 --devices 2"


def workers(agent: int) -> list[int]:
    """The processes that torchrun has started, as far as they are there."""
    children = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
    return [int(p) for p in children if b"localssl" in Path(f"/proc/{p}/cmdline").read_bytes()]


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="asks /proc for a process's children")
def test_a_restart_goes_on_from_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And comes to the weights, optimiser and metrics of a run in which nobody was killed, bit for bit."""
    out, log = tmp_path / "x", tmp_path / "log"
    command = [sys.executable, *shlex.split(f"{TORCHRUN} {FLAGS} --epochs {EPOCHS} --resume"), "--out", str(out)]
    with log.open("w") as file:
        agent = subprocess.Popen(command, stdout=file, stderr=file, env=os.environ | ENVIRONMENT)
    try:
        deadline = time.monotonic() + 120
        while not any(steps(out)):
            assert agent.poll() is None and time.monotonic() < deadline, log.read_text()  # noqa: PT018
            time.sleep(0.02)
        begun = workers(agent.pid)
        assert len(begun) == 2
        os.kill(begun[1], signal.SIGKILL)
        agent.wait(timeout=120)
    finally:
        agent.terminate()  # and it ends those that it started
        agent.wait(timeout=60)
    said = log.read_text()
    assert agent.returncode == 0, said
    assert f"resuming {out} at step " in said
    monkeypatch.setattr("localssl.training.launch.START", "fork")
    assert_same_run(out, run_tiny(tmp_path / "undisturbed", devices=2, epochs=EPOCHS).path)
