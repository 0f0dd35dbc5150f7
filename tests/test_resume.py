"""A stopped or killed run goes on bit for bit as if nothing had happened."""

from __future__ import annotations

import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from localssl.errors import RunError
from localssl.runs.config import TrainConfig
from localssl.system.files import held
from localssl.training.train import train

from .train_util import (
    Hooked,
    assert_same_run,
    hooked,
    rows,
    run_tiny,
    send,
    steps,
    stop_at,
    tiny,
)
from .util import usage_error


@pytest.mark.parametrize(
    ("step", "number", "changes"),
    [
        (6, signal.SIGINT, {}),
        (1, signal.SIGTERM, {}),
        (4, signal.SIGINT, {}),  # the last step of an epoch
        (6, signal.SIGTERM, {"precision": "64-true"}),
        (6, signal.SIGINT, {"precision": "bf16-mixed", "optimizer": "sgd", "schedule": "cosine"}),
        (6, signal.SIGINT, {"rule_options": ("negatives=random", "f=softplus")}),
        (6, signal.SIGTERM, {"views": "patches"}),
    ],
)
def test_stop_and_go_on(step: int, number: signal.Signals, changes: dict[str, Any], tmp_path: Path) -> None:
    whole = hooked(tmp_path / "whole", {}, **changes)
    said = stop_at(step, tmp_path / "x", number, **changes)
    assert said[-1].startswith(f"stopped at step {step}; go on with: ")
    assert steps(tmp_path / "x")[-1] == step
    said.clear()
    run_tiny(tmp_path / "x", said, rule="hooked", resume=True, **changes)
    assert any(line.startswith(f"resuming {tmp_path / 'x'} at step {step}: hooked on digits") for line in said)
    assert_same_run(tmp_path / "x", whole.path)


def test_other_sources_of_randomness_go_on(tmp_path: Path) -> None:
    """A user's rule may draw from numpy and random, too: they are seeded and restored."""
    import numpy as np

    drawn: list[list[float]] = [[], []]

    def draw(into: list[float]) -> Callable[[], None]:
        return lambda: into.append(np.random.rand() + random.random())

    hooked(tmp_path / "whole", {step: draw(drawn[0]) for step in range(1, 9)})
    np.random.seed(5)

    def stop() -> None:
        draw(drawn[1])()
        send(signal.SIGINT)()

    with pytest.raises(KeyboardInterrupt):
        hooked(tmp_path / "x", {1: draw(drawn[1]), 2: draw(drawn[1]), 3: stop})
    np.random.seed(6)
    random.seed(6)
    hooked(tmp_path / "x", {step: draw(drawn[1]) for step in range(1, 6)}, resume=True)
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == 8


def test_stopped_again_and_again(tmp_path: Path) -> None:
    whole = hooked(tmp_path / "whole", {})
    for resume in range(3):
        with pytest.raises(KeyboardInterrupt):
            hooked(tmp_path / "x", {2: send(signal.SIGINT)}, resume=resume > 0)
    assert steps(tmp_path / "x")[-1] == 6
    half = tmp_path / "x" / "checkpoint" / ".step-000000007.pt.1.tmp"  # as a killed process may leave it
    half.write_bytes(b"half")
    hooked(tmp_path / "x", {}, resume=True)
    assert_same_run(tmp_path / "x", whole.path)
    assert not half.exists()


def test_a_signal_in_the_last_step_is_a_finished_run(tmp_path: Path) -> None:
    hooked(tmp_path / "x", {8: send(signal.SIGINT)})
    assert steps(tmp_path / "x")[-1] == 8


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    def twice() -> None:
        send(signal.SIGINT)()
        send(signal.SIGINT)()

    with pytest.raises(KeyboardInterrupt):
        hooked(tmp_path / "x", {6: twice})
    assert steps(tmp_path / "x") == [0, 4]
    hooked(tmp_path / "x", {}, resume=True)


def test_the_advice_is_one_line_on_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the bar of a narrow terminal would break over two lines could not be pasted."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setattr("localssl.training.progress.Console", lambda **how: Console(force_terminal=True, width=60))
    monkeypatch.setattr(Hooked, "at", {3: send(signal.SIGINT)})
    Hooked.seen.clear()
    with pytest.raises(KeyboardInterrupt):
        train(tiny(tmp_path / "x", rule="hooked"))
    said = capsys.readouterr().out
    assert "\x1b[2K" in said  # there was a bar
    assert said.splitlines()[-1].endswith(f"train --resume --out {tmp_path / 'x'} --threads 1")


def test_two_processes_at_once(tmp_path: Path) -> None:
    run = run_tiny(tmp_path / "x", epochs=1)
    with held(run.path), usage_error(f"process {os.getpid()} on .* is training in .*; wait for it"):
        run_tiny(tmp_path / "x", resume=True)
    assert len(rows(run.path)) == 2
    run_tiny(tmp_path / "x", resume=True)


@pytest.mark.long
def test_ctrl_c_and_the_command_that_it_prints(tmp_path: Path) -> None:
    """The real thing: a process, Ctrl-C, and its advice pasted into a shell, from a folder with a space."""
    out = tmp_path / "my runs" / "x"
    flags = "--rule clapp++ --data digits --width 0.25 --lr 0.01 --epochs 6 --threads 1 --limit-images 320"
    command = [sys.executable, "-m", "localssl", "train", *shlex.split(flags), "--out", str(out)]
    # Without the folder of scripts, so that the advice cannot lean on an installed command.
    environment = {**os.environ, "PATH": "/usr/bin:/bin"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    while process.poll() is None and not rows(out):  # the first comes within seconds
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate()
    assert (process.returncode, errors) == (130, "")
    advice = said.splitlines()[-1]
    assert "go on with: " in advice
    pasted = advice.split("go on with: ")[1]
    assert "--threads 1" in pasted
    done = subprocess.run(pasted, shell=True, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    last, page = done.stdout.splitlines()[-2:]
    assert last.startswith(f"done: {shlex.quote(str(out))}; next: ")
    assert page.startswith(f"written: {out / 'report.html'} (")
    whole = train(
        TrainConfig(
            rule="clapp++",
            data="digits",
            width=0.25,
            lr=0.01,
            epochs=6,
            threads=1,
            limit_images=320,
            out=tmp_path / "whole",
        )
    )
    assert_same_run(out, whole.path)


def test_no_checkpoint_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run_tiny(tmp_path / "whole")
    said: list[str] = []
    run_tiny(tmp_path / "new", said, resume=True)  # no folder at all
    assert f"no checkpoint in {tmp_path / 'new'} yet: starting from the beginning" in said
    assert_same_run(tmp_path / "new", whole.path)
    with usage_error("holds no checkpoint and no config.yaml to go on with; begin with --rule and --data"):
        train(TrainConfig(out=tmp_path / "none", resume=True), said.append)
    assert not (tmp_path / "none").exists()

    def die() -> None:
        raise MemoryError

    with monkeypatch.context() as patch:  # a large run that died before its first checkpoint
        patch.setattr("localssl.training.loop.SMALL", 0)
        with pytest.raises(RunError, match=r"^out of memory; .* smaller --batch-size"):
            hooked(tmp_path / "x", {3: die})
    assert steps(tmp_path / "x") == []
    assert len(rows(tmp_path / "x")) == 1
    said.clear()
    train(TrainConfig(out=tmp_path / "x", threads=1, resume=True), said.append)  # its settings are in the folder
    assert said[0] == f"no checkpoint in {tmp_path / 'x'} yet: starting from the beginning"
    assert_same_run(tmp_path / "x", hooked(tmp_path / "y", {}).path)
