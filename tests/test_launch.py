"""Training in several processes: a run's folder as of one, stopped, resumed, killed."""

from __future__ import annotations

import functools
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import util
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from localssl.errors import RunError, UsageError
from localssl.parallel import Processes
from localssl.training import launch
from localssl.training.train import train

from .train_util import encoder_bytes, last_state, rows, run_tiny, steps, tiny, weights

proc = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="asks /proc for a process's children")
FLAGS = "--rule clapp++dfb --data digits --width 0.25 --epochs 200 --threads 1 --batch-size 16 --devices 2"


@pytest.fixture(autouse=True)
def _forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that need not import everything anew; those of a command are started as always."""
    monkeypatch.setattr("localssl.training.launch.START", "fork")


def test_two_processes_and_then_one(tmp_path: Path) -> None:
    """Views and negatives are those of the run, in however many processes; resumed in as many it is the same run."""
    drawn: dict[str, Any] = {"rule_options": ("negatives=random",)}
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


@pytest.mark.long
def test_four_processes_and_then_two(tmp_path: Path) -> None:
    four = run_tiny(tmp_path / "x", devices=4, epochs=1)
    assert json.loads((four.path / "manifest.json").read_text())["processes"] == 4
    two = run_tiny(tmp_path / "x", devices=2, epochs=2, resume=True)
    assert steps(two.path) == [4, 8]
    assert [int(row["step"]) for row in rows(two.path)] == [1, 4, 8]
    assert all(torch.isfinite(w).all() for w in weights(two.path).values())


def test_each_process_by_itself(tmp_path: Path) -> None:
    apart = run_tiny(tmp_path / "apart", devices=2, across="process")
    together = run_tiny(tmp_path / "together", devices=2)
    for losses in ("loss_1", "loss_5"):
        assert rows(apart.path)[0][losses] != rows(together.path)[0][losses]
    assert all(torch.isfinite(w).all() for w in weights(apart.path).values())


def started(process: subprocess.Popen[str]) -> list[int]:
    """The processes of a run, as far as they are there."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(p) for p in children if "spawn_main" in Path(f"/proc/{p}/cmdline").read_text()]


def begun(out: Path, far: Callable[[subprocess.Popen[str]], object] | None = None) -> subprocess.Popen[str]:
    """A run in two processes that is well on its way, or as far as is asked for."""
    command = [sys.executable, "-m", "localssl", "train", *shlex.split(FLAGS), "--out", str(out)]
    threads = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}  # those of NumPy take signals, too
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, env=threads
    )
    while process.poll() is None and not (far(process) if far else rows(out)):
        time.sleep(0.05)
    return process


@pytest.mark.long
def test_ctrl_c(tmp_path: Path) -> None:
    process = begun(tmp_path / "x")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    said, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "")
    assert "go on with: " in said.splitlines()[-1]
    assert "--devices 2" in said.splitlines()[-1]
    assert last_state(tmp_path / "x")["step"] > 0


@pytest.mark.long
@proc
def test_ctrl_c_while_they_start(tmp_path: Path) -> None:
    process = begun(tmp_path / "x", lambda process: len(started(process)) == 2)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "")


@pytest.mark.long
@proc
def test_a_killed_process_ends_the_run(tmp_path: Path) -> None:
    process = begun(tmp_path / "x")
    processes = started(process)
    killed = time.monotonic()
    os.kill(processes[-1], signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - killed < 20  # seconds; a second or two where nothing else runs
    assert process.returncode == 1
    assert len(errors.splitlines()) == 1, errors
    assert "process 1, counted from 0 on this machine, was ended by SIGKILL (out of memory?); the last chec" in errors
    assert "go on with: " in errors
    last_state(tmp_path / "x")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"devices": 0}, "--devices 0: use a number of processes, 1 or more"),
        ({"devices": 3}, "--batch-size 16 is the whole batch: give a multiple of the 3 processes"),
        ({"devices": 16}, "--batch-size 16 is the whole batch: .* 2 images or more for each"),
        ({"patience": 0.0}, "--patience 0.0: use a positive number of minutes"),
        ({"patience": float("inf")}, "--patience inf: use a positive number of minutes"),
        ({"across": "process"}, "--across process goes with --devices"),
    ],
)
def test_refusals(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=says):
        train(tiny(tmp_path / "x", **changes))
    assert not (tmp_path / "x").exists()


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("localssl.system.devices.choose", torch.device)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    for changes, says in (({"devices": 4}, "--devices 4"), ({"pipeline": 2}, "--devices 2 times --pipeline 2")):
        with pytest.raises(UsageError, match=f"^{says}: every process needs a GPU of its own, this machine has 2"):
            train(tiny(tmp_path / "x", **{"devices": 2, "device": "cuda", **changes}))


TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
ADDRESS = {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("environment", "changes", "says"),
    [
        (TORCHRUN, {}, "torchrun started 2 processes, --devices times --nodes is 1"),
        (TORCHRUN, {"pipeline": 2}, "torchrun started 2 processes, --devices times --nodes is 1"),
        (TORCHRUN, {"devices": 4}, "torchrun started 2 processes, --devices times --nodes is 4"),
        (TORCHRUN, {"devices": 2, "pipeline": 2}, "started 2 .*, --devices times --nodes times --pipeline is 4"),
        (
            TORCHRUN | {"TORCHELASTIC_MAX_RESTARTS": "3", "TORCHELASTIC_USE_AGENT_STORE": "True"},
            {"devices": 2},
            "torchrun --max-restarts 3: .* TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its environment",
        ),
        ({"SLURM_NTASKS": "3"}, {"devices": 2}, "SLURM started 3 processes, --devices times --nodes is 2"),
        ({"SLURM_NTASKS": "2"}, {"devices": 2}, "SLURM must know .* --ntasks-per-node=2"),
        ({"SLURM_NTASKS": "6"}, {"devices": 2, "pipeline": 3}, "SLURM must know .* --ntasks-per-node=6"),
        ({}, {"nodes": 2}, "--nodes 2 needs MASTER_ADDR, MASTER_PORT, NODE_RANK"),
        (ADDRESS, {"nodes": 2}, "--nodes 2 needs NODE_RANK"),
        (ADDRESS | {"NODE_RANK": "2"}, {"nodes": 2}, "NODE_RANK=2: --nodes 2 are 0 to 1"),
        *[
            (ADDRESS | {"NODE_RANK": "0", "MASTER_PORT": port}, {"nodes": 2}, f"MASTER_PORT={port}: .* from 1 to 65535")
            for port in ("abc", "0", "99999", "-1", "29500.0", "\u0663")
        ],
        ({"MASTER_PORT": "abc"}, {"devices": 2}, "MASTER_PORT=abc: .* from 1 to 65535"),
        ({"MASTER_PORT": ""}, {"devices": 2}, "MASTER_PORT=: .* from 1 to 65535"),
    ],
)
def test_who_would_wait_for_ever(
    environment: dict[str, str], changes: dict[str, int], says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in (*TORCHRUN, *ADDRESS, "NODE_RANK"):  # other tests may have left some
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=says):
        train(tiny(tmp_path / "x", **changes))
    assert not (tmp_path / "x").exists()


def test_a_run_of_one_process_in_a_larger_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert steps(run_tiny(tmp_path / "x", epochs=1).path) == [0, 4]


def test_the_process_that_failed_is_the_one_that_says_why(tmp_path: Path) -> None:
    """Not the first one, which sees no more than that the other is gone."""
    (tmp_path / "own.py").write_text(
        "import torch.distributed as dist\n\n\ndef half(x):\n    return x[: len(x) // (1 + dist.get_rank())]\n"
    )
    with pytest.raises(UsageError, match=r"^view own\.py:half returned of shape"):
        run_tiny(tmp_path / "x", devices=2, views=f"{tmp_path / 'own.py'}:half")


BOX = """
import time

import torch.distributed as dist
from torch import nn

from localssl.blocks import BlackBox
from localssl.training import train

write = train.write_manifest


def slowly(*args, **kinds):
    time.sleep(1)
    return write(*args, **kinds)


train.write_manifest = slowly


def device(x):
    return x if dist.get_rank() == 0 or len(x) < 16 else x[:1]  # no batch, a trial: fine


def net(input_shape):
    box = BlackBox(device, (4, input_shape[1], input_shape[2]))
    return [nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU()), nn.Sequential(box, nn.Conv2d(4, 4, 1), nn.ReLU())]
"""


def test_a_black_box_that_fails_in_another_process(tmp_path: Path) -> None:
    """Only the first process writes, and it cannot any more: nothing is said to be saved."""
    (tmp_path / "own.py").write_text(BOX)
    encoder: dict[str, Any] = {"encoder": f"{tmp_path / 'own.py'}:net", "width": 1.0, "patches": (2, 2)}
    with pytest.raises(RunError, match=r"black box 'device' .* in step 1; the last checkpoint is untouched: "):
        run_tiny(tmp_path / "x", devices=2, **encoder)
    assert steps(tmp_path / "x") == [0]


def leaving(folder: str, processes: Processes, number: int) -> None:
    """A process's work: when it ends, the process says whether it still is in the group."""
    said = Path(folder) / str(processes.rank)
    util.Finalize(None, lambda: said.write_text(str(dist.is_initialized())), exitpriority=1)


def test_processes_leave_the_group(tmp_path: Path) -> None:
    """Or its threads, freeing what they sent while Python ends, may abort a process whose run is done."""
    before = os.environ.get("MASTER_PORT")
    launch.launch(tiny(tmp_path / "x", devices=2, device="cpu"), functools.partial(leaving, str(tmp_path)))
    assert os.environ.get("MASTER_PORT") == before  # or the next run would meet at a port that may not be free
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == ["False", "False"]
