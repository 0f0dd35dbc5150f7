"""Parts of a study in processes of their own: one that cannot begin fails alone; a study that is gone stays gone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import localssl

CANNOT_BEGIN = """
import os
import pathlib
import sys

if __name__ == "__mp_main__":  # in a process of a part
    try:
        os.close(os.open("ended", os.O_CREAT | os.O_EXCL))
        sys.exit(5)
    except FileExistsError:
        pass  # another one did

from localssl.experiments.apart import run_apart
from localssl.experiments.cells import Part, Settings


def work(settings, number):
    return {"number": number}


if __name__ == "__main__":
    parts = [Part(f"part{number}", work, (number,)) for number in range(2)]
    records = run_apart(parts, Settings(pathlib.Path("study"), threads=1))
    print([record.get("failed", record.get("number")) for record in records])
"""
GONE = """
import os
import pathlib

from localssl.errors import RunError
from localssl.experiments.apart import run_apart
from localssl.experiments.cells import Part, Settings


def work(settings, number):
    os.rename("study", "moved")
    return {}


if __name__ == "__main__":
    parts = [Part(f"part{number}", work, (number,)) for number in range(2)]
    try:
        run_apart(parts, Settings(pathlib.Path("study"), threads=1))
    except RunError as error:
        print(error)
"""


def said(program: str, folder: Path) -> tuple[list[str], str]:
    """Lines that a program prints, and what it says on the standard error; it ends well."""
    (folder / "script.py").write_text(program)
    environment = {**os.environ, "PYTHONPATH": str(Path(localssl.__file__).parents[1])}
    command = [sys.executable, "script.py"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), done.stderr


@pytest.mark.long
def test_a_process_that_cannot_begin_fails_alone(tmp_path: Path) -> None:
    """It is not for want of a guard, which would be so for all of them."""
    lines, errors = said(CANNOT_BEGIN, tmp_path)
    assert errors == ""
    assert "its process ended before it began (status 5; a program that calls compare needs a guard, " in lines[-1]
    assert lines[-1].endswith(", 1]")


@pytest.mark.long
def test_a_study_that_is_gone(tmp_path: Path) -> None:
    """Unmounted, perhaps: the next part would be begun on the disk below."""
    lines, errors = said(GONE, tmp_path)
    (line,) = errors.splitlines()
    assert line.startswith("localssl: part0: No such file or directory (study/cells/part0.json)")
    assert lines[-1] == "study/cells is gone: bring it back, and the same command goes on from here"
    assert not (tmp_path / "study").exists()
