"""Tiny training runs for the tests: a few dozen digits, a narrow encoder, one thread."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file

from localssl import rules
from localssl.rules.clapp_pp import ClappPPDfb
from localssl.runs import checkpoint, metrics
from localssl.runs.config import TrainConfig
from localssl.runs.run import Run
from localssl.training.train import train

from .sources_util import encoded, pictures, write_files

SMALL_VGG: dict[str, Any] = {"rule": "clapp", "width": 0.02, "limit_images": None, "batch_size": 8, "epochs": 1}
TIMES = ("seconds", "images_per_second")  # columns that differ between equal runs
BUILT_IN = [name for name in rules.names() if type(rules.get(name)).__module__.startswith("localssl.rules.")]


ENGINE = {"engine": "hebbian"}  # which auto takes of steps that are not as small as these


def tiny(out: Path, **changes: Any) -> TrainConfig:
    """Two epochs of four steps."""
    given: dict[str, Any] = {"rule": "clapp++", "data": "digits", "epochs": 2, "limit_images": 64, "batch_size": 16}
    return TrainConfig(**{**given, "width": 0.25, "lr": 0.01, "threads": 1, "out": out, **changes})


def run_tiny(out: Path, said: list[str] | None = None, **changes: Any) -> Run:
    return train(tiny(out, **changes), report=(said if said is not None else []).append)


def rows(run: Path) -> list[dict[str, str]]:
    """The run's metrics without what a clock says."""
    return [{key: value for key, value in row.items() if key not in TIMES} for row in metrics.read(run)]


def steps(run: Path) -> list[int]:
    """Steps of the run's checkpoints."""
    return [int(path.stem.removeprefix("step-")) for path in checkpoint.existing(run)]


def encoder_bytes(run: Path) -> bytes:
    return (run / "encoder.safetensors").read_bytes()


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "encoder.safetensors")


def last_state(run: Path) -> dict[str, Any]:
    state, notes = checkpoint.read_last(run)
    assert state is not None
    assert not notes
    return state


def assert_same(a: Any, b: Any, where: str = "state") -> None:
    """Nested values are equal, tensors bit for bit."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), where  # noqa: PT018
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, pair in enumerate(zip(a, b, strict=True)):
            assert_same(*pair, f"{where}/{i}")
    else:
        assert a == b, where


def assert_same_run(a: Path, b: Path) -> None:
    """Weights, optimiser, random numbers and metrics are equal, apart from what a clock says."""
    assert encoder_bytes(a) == encoder_bytes(b)
    assert rows(a) == rows(b)
    states = [{k: v for k, v in last_state(run).items() if k != "seconds"} for run in (a, b)]
    assert_same(*states)


@dataclass(frozen=True, kw_only=True)
class Hooked(ClappPPDfb):
    """A rule that lets a test act in the middle of a given step (counted from 1 in every call of ``train``)."""

    name: ClassVar[str] = "hooked"
    at: ClassVar[dict[int, Callable[[], object]]] = {}
    seen: ClassVar[list[int]] = []

    def losses(self, batch: rules.Batch, projections: rules.Projections) -> torch.Tensor:
        self.seen.append(1)
        self.at.get(len(self.seen), lambda: None)()
        return super().losses(batch, projections)


rules.register("hooked", Hooked)


def hooked(out: Path, at: dict[int, Callable[[], object]], said: list[str] | None = None, **changes: Any) -> Run:
    """A tiny run that calls ``at[step]()`` in the middle of that step."""
    Hooked.seen.clear()
    Hooked.at.clear()
    Hooked.at.update(at)
    try:
        return run_tiny(out, said, **{"rule": "hooked", **changes})
    finally:
        Hooked.at.clear()


@contextmanager
def mounted(place: Path, size: str) -> Generator[Path]:
    """A real file system in memory, mounted at a new folder; the test is skipped where that is not permitted."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    try:
        made = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if made.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {made.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], capture_output=True, check=False)


def send(number: signal.Signals) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def stop_at(step: int, out: Path, number: signal.Signals = signal.SIGINT, **changes: Any) -> list[str]:
    """Stop a tiny run by a signal in the middle of a step; returns what it said."""
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        hooked(out, {step: send(number)}, said, **changes)
    return said


def folder(path: Path, count: int = 40) -> Path:
    """Two classes of random images without a test part: 32 of 40 are trained on."""
    images = pictures(count)
    return write_files(path, {f"train/{'ab'[i % 2]}/{i:02d}.png": encoded(images[i]) for i in range(count)})


def stopped_on_the_command_line(rule: str, flags: str, out: Path) -> None:
    """The real thing: processes that import everything, and Ctrl-C, which reaches all of them."""
    sizes = "--data digits --width 0.25 --epochs 500 --threads 1 --limit-images 64 --batch-size 16"
    command = f"{sys.executable} -m localssl train {rule} {sizes} {flags} --out {out}"
    process = subprocess.Popen(
        shlex.split(command), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    end = time.monotonic() + 240  # four processes import everything, perhaps on a busy machine
    while not rows(out) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    said, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (130, "")
    assert said.splitlines()[-1].endswith(flags)  # the command that goes on
    assert last_state(out)["step"] > 0
