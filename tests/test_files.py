"""Atomic writes: the old file or the new one, and an error that names it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from localssl.files import write_atomic


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
