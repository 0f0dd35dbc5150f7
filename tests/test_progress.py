"""The line that shows how far a run is: on terminals of all kinds, in pipes, logs and continuous integration."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHOWN = """
from localssl.training.progress import Progress
from localssl.report.tables import show

with Progress(0, 3, 8) as progress:
    for step in (1, 2, 3):
        progress.advance(step)
        progress.line(["loss 0.5 " * 9])
show("of numbers", ["block", "value"], [["1", "0.5"]])
"""
COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-9][0-9;]*m")
CI = {"CI": "true", "GITHUB_ACTIONS": "true", "FORCE_COLOR": "1", "TTY_COMPATIBLE": "1"}


def environment(**changes: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in (*CI, "NO_COLOR", "COLUMNS")}
    return {**kept, "PYTHONPATH": str(ROOT / "src"), "TERM": "xterm-256color", **changes}


def on_a_terminal(**changes: str) -> str:
    pty = pytest.importorskip("pty", reason="no pseudo terminals here")
    ours, theirs = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", SHOWN], stdout=theirs, stderr=theirs, env=environment(**changes)) as p:
        os.close(theirs)
        found = b""
        while True:
            try:
                piece = os.read(ours, 4096)
            except OSError:  # the other end is closed
                break
            if not piece:
                break
            found += piece
    os.close(ours)
    assert p.returncode == 0, found
    return found.decode()


@pytest.mark.parametrize("columns", ["40", "80", "200"])
def test_a_bar_on_one_line_of_a_terminal(columns: str) -> None:
    found = on_a_terminal(COLUMNS=columns)
    bar = found[: found.index("of numbers")]
    assert COLOUR.search(bar)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", bar)
    lines = [line for line in re.split(r"[\r\n]+", plain) if line]
    assert all(len(line) <= int(columns) for line in lines)
    assert "step 3/3" in lines[-1]


def test_no_colours_where_none_are_wanted() -> None:
    found = on_a_terminal(NO_COLOR="1")
    assert "step 3/3" in found
    assert not COLOUR.search(found)


def test_lines_on_a_terminal_that_cannot_move_its_cursor() -> None:
    found = on_a_terminal(TERM="dumb")
    assert "\x1b" not in found
    assert re.search(r"^step 3/3: 0 s left, ", found, re.MULTILINE)


@pytest.mark.parametrize("changes", [{}, CI], ids=["pipe", "ci"])
def test_lines_in_a_pipe(changes: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SHOWN], env=environment(**changes), capture_output=True, text=True, check=True
    )
    lines = [line for line in done.stdout.splitlines() if "step" in line]
    assert [line[:8] for line in lines] == ["step 1/3", "step 3/3"]
    assert not re.search(
        r"\r|\x1b(?!\[[0-9;]*m)", done.stdout
    )  # nothing moves a cursor; FORCE_COLOR may have its bold table
