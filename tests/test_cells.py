"""The parts of a study: run side by side, said where, stopped by failures and by Ctrl-C, gone on with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import localssl
from localssl.errors import RunError, UsageError
from localssl.experiments.cells import Cell, Settings, run_cells

from .train_util import tiny

MEASURES = """
import os
from localssl.errors import UsageError

def fine(run, settings):
    print("measured")
    return {"rule": run.config.rule}

def refused(run, settings):
    raise UsageError("nothing to measure")

def killed(run, settings):
    os._exit(9)
"""


@pytest.fixture
def measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Functions that other processes can import."""
    (tmp_path / "measures_of_cells.py").write_text(MEASURES)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("measures_of_cells", None)
    return import_module("measures_of_cells")


def cells(settings: Settings, measure: object, *names: str) -> list[Cell]:
    runs = settings.out / "runs"
    return [Cell(name, tiny(runs / name, epochs=0, resume=True), measure) for name in names]  # pyright: ignore


@pytest.mark.long
def test_side_by_side(measures: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    settings = Settings(tmp_path / "study", jobs=2, threads=1)
    made = cells(settings, measures.fine, "a", "b", "c")
    assert [record["cell"] for record in run_cells(made, settings)] == ["a", "b", "c"]
    said, errors = capfd.readouterr()
    assert errors == ""
    assert said.splitlines()[0] == "0 of 3 parts are done; running 3, 2 at a time"
    for name in "abc":
        log = settings.out / "runs" / f"{name}.log"
        assert f"{name}: begins, says more in {log}\n" in said
        assert f"\n{name}: done after " in said
        assert log.read_text().endswith("\nmeasured\n")
    assert "measured" not in said
    run_cells(made, settings)
    assert capfd.readouterr().out == ""


@pytest.mark.long
def test_a_failure_begins_nothing_new(measures: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    settings = Settings(tmp_path / "study", jobs=2, threads=1)
    made = [*cells(settings, measures.refused, "a", "b"), *cells(settings, measures.fine, "c", "d", "e", "f")]
    with pytest.raises(UsageError, match=r"^[ab]: nothing to measure$"):
        run_cells(made, settings)
    assert not (settings.out / "runs" / "f.log").exists()
    assert "a: begins" in capfd.readouterr().out


@pytest.mark.long
def test_a_killed_process_is_one_line(measures: ModuleType, tmp_path: Path) -> None:
    settings = Settings(tmp_path / "study", jobs=2, threads=1)
    with pytest.raises(RunError, match=r"^a process ended without a word [^\n]* see the logs in [^\n]*--jobs"):
        run_cells(cells(settings, measures.killed, "a"), settings)


SCRIPT = """
import multiprocessing, pathlib, sys, time
from localssl.runs.config import TrainConfig
from localssl.experiments.cells import Cell, Settings, run_cells

class Slow:  # unpickled in the other process, as its imports are
    def __setstate__(self, state):
        pathlib.Path("began").touch()
        time.sleep(60)
    def __getstate__(self):
        return {"a": 1}

if __name__ == "__main__":
    config = TrainConfig(rule="clapp", data="digits", out=pathlib.Path("study/runs/a"))
    try:
        run_cells([Cell("a", config, Slow())], Settings(pathlib.Path("study"), jobs=2))
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.mark.long
def test_ctrl_c_while_other_processes_start(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, "script.py"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(localssl.__file__).parents[1])},
        start_new_session=True,
    )
    while process.poll() is None and not (tmp_path / "began").exists():
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    said, errors = process.communicate()
    assert (process.returncode, errors) == (130, "")
    assert said.splitlines()[-1] == "stopped; the same command goes on from here"


FOLLOWER = """
import os, signal, sys, time
from localssl.system import interrupts

def saved(number, frame):
    open(sys.argv[1], "w").close()
    os._exit(0)

signal.signal(signal.SIGTERM, saved)
interrupts.follow(os.getppid())
print("follows", flush=True)
time.sleep(60)
"""


def test_a_worker_stops_when_its_parent_is_killed(tmp_path: Path) -> None:
    parent = (
        "import subprocess, sys, time\n"
        "subprocess.Popen([sys.executable, '-c', sys.argv[1], sys.argv[2]])\n"
        "time.sleep(60)\n"
    )
    command = [sys.executable, "-c", parent, FOLLOWER, str(tmp_path / "saved")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "follows\n"
        process.kill()
    end = time.monotonic() + 20
    while not (tmp_path / "saved").exists() and time.monotonic() < end:
        time.sleep(0.1)
    assert (tmp_path / "saved").exists()
