"""Atomic writes: the old file or the new one, and an error that names it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from localssl.system import files
from localssl.system.files import held, write_atomic

from .util import usage_error


def test_a_file_that_is_cut_short_leaves_the_old_one(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    path = tmp_path / "z.npy"
    path.write_bytes(b"old")

    def save(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.save(file, np.zeros(100_000))

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
        with pytest.raises(OSError, match="is the disk full") as caught:
            write_atomic(path, save)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_no_permission_names_the_file_that_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "z.npy"
    with pytest.raises(FileNotFoundError) as caught:
        write_atomic(path, lambda temporary: temporary.write_bytes(b"new"))
    assert caught.value.filename == str(path)


def test_a_folder_is_let_go_of(tmp_path: Path) -> None:
    with held(tmp_path):
        assert json.loads((tmp_path / "owner.json").read_text()) == {"pid": os.getpid(), "host": platform.node()}
    assert not list(tmp_path.iterdir())


def test_a_folder_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There the file alone says who is at work; a dead process of this machine is not believed."""

    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    owner = tmp_path / "owner.json"
    for pid, host, refused in (
        (dead.pid, platform.node(), False),
        (os.getppid(), platform.node(), True),
        (dead.pid, "elsewhere", True),
    ):
        owner.write_text(json.dumps({"pid": pid, "host": host}))
        if refused:
            with (
                usage_error(f"process {pid} on {host} is training in .* delete .*owner.json if it is gone"),
                held(tmp_path),
            ):
                pass
            assert owner.exists()
        else:
            with held(tmp_path):
                assert json.loads(owner.read_text())["pid"] == os.getpid()
    owner.write_text("torn{")
    with held(tmp_path):
        pass
