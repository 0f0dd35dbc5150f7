"""Every single write of a run fails in turn, for every reason a disk can have: one line, and the run can go on."""

from __future__ import annotations

import errno
import multiprocessing
import os
import time
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from localssl.cli import main
from localssl.errors import RunError
from localssl.system import files

from .train_util import ENGINE, assert_same_run, last_state, mounted, run_tiny, steps, weights

REASONS = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EIO)
SMALL = {"epochs": 1, "limit_images": 32, "probe_every": 0}


def failing(at: int, number: int, done: list[tuple[str, Path]]) -> Callable[[str, Path], None]:
    """From the ``at``-th on, every attempt fails: a disk that is full or gone stays so."""

    def attempt(what: str, path: Path) -> None:
        done.append((what, path))
        if len(done) > at:
            raise OSError(number, os.strerror(number), str(path))

    return attempt


def turns(folder: Path, patch: pytest.MonkeyPatch) -> list[tuple[str, Path]]:
    """What a run does to the disk, in order."""
    done: list[tuple[str, Path]] = []
    patch.setattr(files, "attempt", failing(10**9, 0, done))
    patch.setattr("localssl.runs.metrics.attempt", files.attempt)
    run_tiny(folder, **SMALL)
    return done


def ended(out: Path) -> str | None:
    """How a run ends that cannot write; None where it comes to its end."""
    try:
        run_tiny(out, **SMALL)
    except RunError as error:
        return str(error)
    return None


def chosen(done: list[tuple[str, Path]]) -> list[int]:
    """All attempts, but of the many pieces of one file only the first and the last."""
    pieces = [i > 0 and i + 1 < len(done) and done[i - 1] == done[i] == done[i + 1] for i in range(len(done))]
    return [i for i, between in enumerate(pieces) if not between]


@pytest.mark.long
def test_each_write_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run_tiny(tmp_path / "whole", **SMALL)
    with monkeypatch.context() as patch:
        done = turns(tmp_path / "counted", patch)
    kinds = {what for what, _ in done}
    assert {"folder", "open", "write", "sync", "replace", "append", "remove"} <= kinds
    assert {path.name for _, path in done} >= {"config.yaml", "manifest.json", "metrics.csv", "encoder.safetensors"}
    for turn, at in enumerate(chosen(done)):
        for number in REASONS:
            with monkeypatch.context() as patch:
                patch.setattr(files, "attempt", failing(at, number, []))
                patch.setattr("localssl.runs.metrics.attempt", files.attempt)
                out = tmp_path / f"{at}-{number}"
                said = ended(out)
            if said is None:
                assert done[at][1].name == "owner.json", done[at]  # nobody needs it
            else:
                assert said.startswith(os.strerror(number)), done[at]
                assert "\n" not in said
                assert "mend that, then" in said
            if steps(out):
                last_state(out)
            if (out / "encoder.safetensors").exists():
                weights(out)
            assert not list(out.rglob(".*")), done[at]
        out = tmp_path / f"{at}-{REASONS[turn % len(REASONS)]}"  # what is left does not depend on the reason
        run_tiny(out, resume=True, **SMALL)
        assert_same_run(out, whole.path)


@pytest.fixture
def tmpfs(tmp_path: Path) -> Generator[Path]:
    """A real file system of one megabyte."""
    with mounted(tmp_path / "small", "1m") as place:
        yield place


def test_a_disk_that_is_really_full(tmpfs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ballast = tmpfs / "ballast"
    room = os.statvfs(tmpfs)
    ballast.write_bytes(b"\0" * (room.f_bavail * room.f_frsize - 300_000))
    with pytest.raises(RunError, match=r"^No space left on device \([^\n]*go on with: [^\n]*$"):
        run_tiny(tmpfs / "x", resume=True, epochs=4, **ENGINE)
    capsys.readouterr()
    flags = (
        "--rule clapp++ --data digits --epochs 4 --limit-images 64 --batch-size 16 --width 0.25 --lr 0.01 --threads 1 "
        "--engine hebbian"
    )
    assert main(["train", *flags.split(), "--resume", "--out", str(tmpfs / "x")]) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("localssl: No space left on device (")
    assert errors.count("\n") == 1
    if steps(tmpfs / "x"):
        last_state(tmpfs / "x")
    ballast.unlink()
    run_tiny(tmpfs / "x", resume=True, epochs=4, **ENGINE)
    assert_same_run(tmpfs / "x", run_tiny(tmp_path / "whole", epochs=4, **ENGINE).path)


def test_the_process_that_writes_ends_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which waits for it in the middle of a step."""
    monkeypatch.setattr("localssl.training.launch.START", "fork")  # with what is patched here
    whole, failed = run_tiny(tmp_path / "whole", devices=2).path, tmp_path / "failed"
    for number, what, name, last in (
        (errno.ENOSPC, "write", "step-000000008.pt", 4),
        (errno.EIO, "append", "metrics.csv", 0),
    ):
        out = tmp_path / name

        def attempt(done: str, path: Path, number: int = number, failing: tuple[str, str] = (what, name)) -> None:
            if (done, path.name) == failing:
                failed.write_text(str(time.monotonic()))
                raise OSError(number, os.strerror(number), str(path))

        with monkeypatch.context() as patch:
            patch.setattr(files, "attempt", attempt)
            says = rf"^{os.strerror(number)} \([^\n]*{name}\); the last checkpoint is untouched: mend that, [^\n]*$"
            with pytest.raises(RunError, match=says):
                run_tiny(out, devices=2)
        assert time.monotonic() - float(failed.read_text()) < 10
        assert not multiprocessing.active_children()
        assert steps(out)[-1] == last
        last_state(out)
        weights(out)
        assert not list(out.rglob(".*"))
        run_tiny(out, devices=2, resume=True)
        assert_same_run(out, whole)
