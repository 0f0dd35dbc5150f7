"""train --dry-run: sizes to the number, memory and time from real steps, nothing left behind."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from localssl.cli import main
from localssl.errors import RunError
from localssl.learner import Learner
from localssl.training import rehearsal
from localssl.training.loop import Loop

from .sources_util import pictures, write_files
from .train_util import rows, run_tiny, tiny

Capture = pytest.CaptureFixture[str]


def quiet(line: str) -> None: ...


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files, to be found empty."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path


@pytest.mark.parametrize("precision", ["32-true", "64-true"])
def test_sizes_are_those_of_the_run(apart: Path, precision: str) -> None:
    run = run_tiny(apart / "x", epochs=1, precision=precision)
    found = rehearsal.rehearse(tiny(apart / "y", epochs=1, precision=precision), quiet)
    assert found.config == run.config
    learner = run.learner()
    assert [shape for shape, _ in found.blocks] == [tuple(shape) for shape in learner.output_shapes]
    assert sum(n for _, n in found.blocks) == sum(p.numel() for p in learner.encoder.parameters())
    assert found.rule == {"lateral": sum(p.numel() for p in learner.projections.parameters())}
    assert found.steps == int(rows(run.path)[-1]["step"])
    file = max((run.path / "checkpoint").glob("*.pt"))
    assert found.checkpoint_bytes == pytest.approx(file.stat().st_size, rel=0.25)
    assert found.encoder_bytes == pytest.approx((run.path / "encoder.safetensors").stat().st_size, rel=0.25)
    assert not (apart / "y").exists()
    assert list((apart / "temporary").iterdir()) == []


def test_time_is_that_of_the_steps(apart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that says what everything takes: 2 s a step, 10 s a monitor, 20 s alignment, 1 s a checkpoint."""
    clock = [0.0]

    def taking(seconds: float) -> object:
        def work(*arguments: object) -> None:
            clock[0] += seconds

        return work

    monkeypatch.setattr(rehearsal.time, "monotonic", lambda: clock[0])
    for name, seconds in (("train_step", 2.0), ("observe", 10.0), ("align", 20.0), ("save", 1.0)):
        monkeypatch.setattr(Loop, name, taking(seconds))
    found = rehearsal.rehearse(tiny(apart / "y", epochs=12, probe_every=2, align_every=3, batch_size=8), quiet)
    assert found.steps == 12 * 8
    assert (found.timed, found.step_seconds) == (5, 2.0)
    assert found.seconds == 2 * 12 * 8 + 10 * 6 + 20 * 4 + 1 * 12


def test_slow_steps_are_said_and_few(apart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, said = [0.0], list[str]()

    def step(*arguments: object) -> None:
        clock[0] += 24.0

    monkeypatch.setattr(rehearsal.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(Loop, "train_step", step)
    found = rehearsal.rehearse(tiny(apart / "y", probe_every=0, epochs=12), said.append)
    assert (found.timed, found.step_seconds, clock[0]) == (2, 24.0, 3 * 24.0)
    assert "a step takes 24 s; the estimate comes after a few more" in said


@pytest.mark.parametrize("epochs", [0, 1])
def test_short_runs(epochs: int, capsys: Capture) -> None:
    """Of four steps, the last is timed; of none, none."""
    flags = f"--rule clapp++ --data digits --epochs {epochs} --limit-images 64 --batch-size 16 --width 0.25 --threads 1"
    assert main(["train", "--dry-run", *flags.split()]) == 0
    said = capsys.readouterr().out
    assert f"64 images, {epochs} epoch{'' if epochs == 1 else 's'}, batches of 16, {4 * epochs} steps" in said
    assert "lateral: 14,336 parameters" in said
    assert re.search(r"memory: [\d,]+ MiB", said)
    assert ("time: no step to run" in said) == (epochs == 0)
    assert ("from 1 step on this" in said) == (epochs == 1)


def test_epochs_of_one_step_are_timed(apart: Path) -> None:
    found = rehearsal.rehearse(tiny(apart / "y", epochs=6, batch_size=64, limit_images=64), quiet)
    assert found.steps == 6
    assert 1 <= found.timed <= 3  # of those after the first three


def test_what_train_refuses_is_refused(apart: Path, capsys: Capture) -> None:
    run_tiny(apart / "x", epochs=1)
    before = {path: path.read_bytes() for path in (apart / "x").rglob("*") if path.is_file()}
    capsys.readouterr()
    for flags, says in (
        (f"--rule clapp++ --data digits --out {apart / 'x'}", "holds a run already"),
        ("--rule clap --data digits", "unknown rule 'clap'"),
        ("--data digits", "train needs --rule and --data"),
        ("--rule clapp++ --data digits --batch-size 1", "a batch of one image"),
        ("--rule clapp++ --data digits --devices 2 --device cpu", "leave out --devices, --nodes and --pipeline"),
        ("--rule clapp++ --data digits --resume", "--resume goes on with the run in --out"),
        ("--rule clapp++ --data digits --limit-images 20", "fewer than a batch"),
    ):
        assert main(["train", "--dry-run", *flags.split()]) == 2, flags
        said = capsys.readouterr().err
        assert says in said
        assert said.count("\n") == 1
    assert before == {path: path.read_bytes() for path in (apart / "x").rglob("*") if path.is_file()}


def test_a_run_that_goes_on(apart: Path) -> None:
    """Only what is left."""
    run_tiny(apart / "x", epochs=1)
    found = rehearsal.rehearse(tiny(apart / "x", epochs=3, resume=True), quiet)
    assert found.steps == 8


def test_a_run_that_goes_on_finds_its_data(apart: Path) -> None:
    """Where they were, as training does."""
    write_files(apart / "data" / "stl10_binary", {"unlabeled_X.bin": pictures(4, 96, 96).tobytes()})
    given: dict[str, Any] = {"data": "stl10", "batch_size": 2, "width": 0.02, "limit_images": None, "image_size": 32}
    run_tiny(apart / "x", epochs=0, data_root=apart / "data", **given)
    found = rehearsal.rehearse(tiny(apart / "x", epochs=1, resume=True, **given), quiet)
    assert (found.images, found.steps) == (4, 2)


def test_a_full_memory(apart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Learner, "updates", full)
    with pytest.raises(RunError, match="smaller --batch-size"):
        rehearsal.rehearse(tiny(apart / "y"), quiet)
    assert list((apart / "temporary").iterdir()) == []
