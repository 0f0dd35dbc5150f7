"""What Windows lacks or does otherwise, brought about here, where nobody has run localssl on it."""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
import platform
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from localssl import cli
from localssl.errors import in_shell
from localssl.system import devices, files

from .train_util import assert_same_run, run_tiny
from .util import usage_error

fcntl = pytest.importorskip("fcntl", reason="this is Windows: the other tests show it")


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """No locks, no /proc, no sysconf, no signal masks; and only files that are open for writing can be synced."""
    fsync, opened = os.fsync, builtins.open

    def sync(handle: int) -> None:
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        fsync(handle)

    def without_proc(file: Any, *arguments: Any, **options: Any) -> Any:
        if str(file).startswith("/proc"):
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", file)
        return opened(file, *arguments, **options)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(builtins, "open", without_proc)
    monkeypatch.setattr(io, "open", without_proc)  # pathlib's
    monkeypatch.setattr(files, "fcntl", None)
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.delattr(os, "sysconf")
    monkeypatch.delattr(signal, "pthread_sigmask")
    monkeypatch.delattr(signal, "sigtimedwait", raising=False)


def test_a_run_goes_on_as_elsewhere(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    whole = run_tiny(tmp_path / "whole").path
    request.getfixturevalue("windows")
    run_tiny(tmp_path / "x", epochs=1)
    again = run_tiny(tmp_path / "x", resume=True).path
    assert_same_run(again, whole)
    assert json.loads((again / "cost.json").read_text(encoding="utf-8"))["peak_memory_mib"] == 0  # not known
    assert devices.memory() is None


def test_the_owner_keeps_others_out(tmp_path: Path, windows: None) -> None:
    """Without locks by its file alone; whether it still lives is for the user to say."""
    with files.held(tmp_path):
        assert json.loads((tmp_path / "owner.json").read_text())["pid"] == os.getpid()
    owner = tmp_path / "owner.json"
    assert not owner.exists()
    owner.write_text(json.dumps({"pid": os.getppid(), "host": platform.node()}))
    with usage_error(f"process {os.getppid()} on .* is training in .* delete .*owner.json if it is gone"):
        run_tiny(tmp_path)
    owner.unlink()
    run_tiny(tmp_path)


def test_advice_is_for_its_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["probe", r"C:\my runs\x", "--own", "mine.py"]
    assert in_shell(words) == r"probe 'C:\my runs\x' --own mine.py"
    monkeypatch.setattr("localssl.errors.sys", SimpleNamespace(platform="win32"))
    assert in_shell(words) == r'probe "C:\my runs\x" --own mine.py'


def test_a_code_page_without_a_character(monkeypatch: pytest.MonkeyPatch) -> None:
    page = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(page, encoding="ascii", write_through=True))
    assert cli.main(["reproduce"]) == 0
    assert b"fig3b" in page.getvalue()
    print("α ≤ 1")
    assert page.getvalue().endswith(b"? ? 1\n")
