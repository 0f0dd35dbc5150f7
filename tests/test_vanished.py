"""A run's folder that vanishes under it: one line, nothing written into what is in its place, and a way on."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from localssl import cli
from localssl.errors import RunError
from localssl.system import files
from localssl.training import train as training

from .train_util import Hooked, assert_same_run, hooked, last_state, mounted, run_tiny, steps, weights

SAYS = (
    r"^{} is no longer the folder that this run holds \(unmounted, moved or deleted\?\); what is in it is untouched: "
    r"bring it back, then give the same command again with --resume$"
)
AT_ONCE: dict[str, Any] = {"checkpoint_every": 1e-9}  # a checkpoint after every step: before any row


def move(out: Path) -> None:
    out.rename(out.parent / "moved")


def replace(out: Path) -> None:
    move(out)
    out.mkdir()


def with_those_above(out: Path) -> None:
    out.parent.rename(out.parent.parent / "elsewhere")


@pytest.mark.parametrize("often", [{}, AT_ONCE], ids=["row first", "checkpoint first"])
@pytest.mark.parametrize(
    ("vanish", "where"), [(move, "runs/moved"), (replace, "runs/moved"), (with_those_above, "elsewhere/x")]
)
def test_a_folder_that_is_renamed(
    vanish: Callable[[Path], None], where: str, often: dict[str, Any], tmp_path: Path
) -> None:
    whole, out = hooked(tmp_path / "whole", {}), tmp_path / "runs" / "x"
    with pytest.raises(RunError, match=SAYS.format(out)):
        hooked(out, {6: lambda: vanish(out)}, **often)
    assert not list(out.glob("**/*"))
    assert out.exists() == (vanish is replace)
    assert out.parent.exists() == (vanish is not with_those_above)
    last_state(tmp_path / where)
    weights(tmp_path / where)
    assert steps(tmp_path / where)[-1] == (5 if often else 4)
    hooked(tmp_path / where, {}, resume=True)
    assert_same_run(tmp_path / where, whole.path)


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "x"
    Hooked.seen.clear()
    Hooked.at.update({3: lambda: replace(out)})
    sizes = "--data digits --width 0.25 --epochs 2 --threads 1 --limit-images 64 --batch-size 16"
    try:
        assert cli.main(["train", "--rule", "hooked", *sizes.split(), "--out", str(out)]) == 1
    finally:
        Hooked.at.clear()
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"localssl: {out} is no longer the folder that this run holds")
    assert not list(out.iterdir())


def test_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the data are read, which may take long."""
    out, begin = tmp_path / "x", training.begin

    def late(*given: Any) -> Any:
        replace(out)
        return begin(*given)

    monkeypatch.setattr(training, "begin", late)
    with pytest.raises(RunError, match=SAYS.format(out)):
        run_tiny(out)
    assert not list(out.iterdir())


def test_in_the_middle_of_a_file(tmp_path: Path) -> None:
    """Whatever the system says of it then."""
    out = tmp_path / "x"

    def write(temporary: Path) -> None:
        temporary.write_bytes(b"half")
        replace(out)

    with pytest.raises(files.Vanished, match="no longer the folder"), files.held(out):
        files.write_atomic(out / "a", write)
    assert not list(out.iterdir())
    assert not (tmp_path / "moved" / "a").exists()


@pytest.mark.parametrize("often", [{}, AT_ONCE], ids=["row first", "checkpoint first"])
@pytest.mark.parametrize("below", ["", "x", "runs/x"], ids=["the mount itself", "a folder of it", "deeper"])
def test_a_disk_that_is_unmounted(below: str, often: dict[str, Any], tmp_path: Path) -> None:
    """For good (``umount -l``); another mount of it shows what is there."""
    whole = hooked(tmp_path / "whole", {})
    with mounted(tmp_path / "disk", "64m") as disk:
        other = tmp_path / "other"
        other.mkdir()
        subprocess.run(["mount", "--bind", str(disk), str(other)], check=True)
        try:
            with pytest.raises(RunError, match=SAYS.format(disk / below)):
                hooked(disk / below, {6: lambda: subprocess.run(["umount", "-l", str(disk)], check=True)}, **often)
            assert not list(disk.iterdir())
            last_state(other / below)
            weights(other / below)
            hooked(other / below, {}, resume=True)
            assert_same_run(other / below, whole.path)
        finally:
            subprocess.run(["umount", "-l", str(other)], check=True)


def test_a_folder_that_nothing_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows, where numbers of files may be 0: whether there is one, and nothing is made anew."""
    out = tmp_path / "runs" / "x"
    monkeypatch.setattr(files, "fcntl", None)
    with pytest.raises(RunError, match=SAYS.format(out)):
        hooked(out, {6: lambda: with_those_above(out)}, **AT_ONCE)
    assert not out.parent.exists()
