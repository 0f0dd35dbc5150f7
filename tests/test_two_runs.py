"""Two runs into one folder: the second one is refused before it has read or changed anything, at whatever moment."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from localssl.errors import UsageError
from localssl.system import files
from localssl.system.files import held
from localssl.training import train as training

from .train_util import assert_same_run, run_tiny
from .util import usage_error

fcntl = pytest.importorskip("fcntl", reason="Windows has no locks of this kind")
IN_USE = rf"^process {os.getpid()} on .* is training in .*; wait for it, or choose another --out$"


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def before(name: str, act: Callable[[], object], patch: pytest.MonkeyPatch) -> None:
    """Let ``act`` happen before, or with ``Loop`` after, a part of ``training`` is called the first time."""
    real, done = getattr(training, name), []

    def called(*args: Any, **options: Any) -> Any:
        found = real(*args, **options) if name == "Loop" else None
        if not done:
            done.append(act())
        return found if name == "Loop" else real(*args, **options)

    patch.setattr(training, name, called)


@pytest.mark.parametrize("moment", ["found_again", "begin", "Loop", "write_manifest", "write_cost"])
@pytest.mark.parametrize("resume", [False, True])
def test_the_second_one_is_refused_at_any_moment(
    moment: str, resume: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_tiny(tmp_path / "whole", epochs=2)
    if resume:
        run_tiny(tmp_path / "x", epochs=1)
    refused: list[str] = []

    def second() -> None:
        there = everything(tmp_path / "x")
        with usage_error(IN_USE):
            run_tiny(tmp_path / "x", seed=0 if resume else 5, epochs=2, resume=resume)
        assert everything(tmp_path / "x") == there
        refused.append(moment)

    before(moment, second, monkeypatch)
    first = run_tiny(tmp_path / "x", epochs=2, resume=resume)
    assert refused == [moment]
    assert_same_run(first.path, whole.path)
    assert not list((tmp_path / "x").rglob("damaged-*"))


def test_of_several_processes_none_reads_before_the_folder_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("localssl.training.launch.START", "fork")  # with what is patched here
    begin, out = training.found_again, tmp_path / "x"

    @contextmanager
    def late(folder: Path) -> Generator[None]:
        time.sleep(0.5)
        with held(folder):
            yield

    def reading(*given: Any) -> Any:
        assert (out / "owner.json").is_file(), "read before it was held"
        return begin(*given)

    monkeypatch.setattr(training, "held", late)
    monkeypatch.setattr(training, "found_again", reading)
    run_tiny(out, devices=2, epochs=1)


@pytest.mark.parametrize("devices", [1, 2])
def test_a_refused_run_leaves_nothing_behind(devices: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("localssl.training.launch.START", "fork")
    for changes in ({"data": f"images:{tmp_path / 'nowhere'}"}, {"limit_images": 3}, {"resume": True, "rule": None}):
        with pytest.raises(UsageError):
            run_tiny(tmp_path / "runs" / "mine" / "x", devices=devices, **changes)
        assert not list(tmp_path.iterdir())
    (tmp_path / "theirs").mkdir()  # an empty folder of the user's stays
    with pytest.raises(UsageError):
        run_tiny(tmp_path / "theirs" / "x", devices=devices, limit_images=3)
    assert list(tmp_path.rglob("*")) == [tmp_path / "theirs"]


@pytest.mark.parametrize("moment", ["reading", "x", "mine", "runs"])
def test_the_first_to_be_refused_has_the_others_ended(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that holds the folder is ended while it still reads, or before it has removed this folder of three."""
    monkeypatch.setattr("localssl.training.launch.START", "fork")
    attempt, begin, starting = files.attempt, training.begin, os.getpid()

    def slow(what: str, path: Path) -> None:
        attempt(what, path)
        if (what, path.name) == ("remove", moment) and os.getpid() != starting:
            time.sleep(2)

    def reading(*given: Any) -> Any:
        if moment == "reading" and dist.get_rank() == 0:
            time.sleep(2)
        return begin(*given)

    monkeypatch.setattr(files, "attempt", slow)
    monkeypatch.setattr(training, "begin", reading)
    with pytest.raises(UsageError, match="fewer than a batch"):
        run_tiny(tmp_path / "runs" / "mine" / "x", devices=2, limit_images=3)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_whole_is_not_made_in_part(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="File name too long"):
        files.make_folder(tmp_path / "a" / "b" / ("x" * 300))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_whoever_made_it_removes_in_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a run would hold a folder that is not there any more."""
    real, out, gone = fcntl.flock, tmp_path / "x", []

    def flock(handle: int, how: int) -> None:
        if len(gone) < 2:
            gone.append(out.rmdir())
        real(handle, how)

    monkeypatch.setattr(files.fcntl, "flock", flock)
    with held(out):
        with usage_error(IN_USE), held(out):
            pass
        assert (out / "owner.json").is_file()
    assert not out.exists()
