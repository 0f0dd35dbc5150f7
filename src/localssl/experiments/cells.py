"""Cells of a study: a training run and its measurements, one small JSON file each, so that it can stop and go on."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import torch

from localssl.errors import RunError, UsageError
from localssl.runs.config import TrainConfig
from localssl.runs.manifest import environment
from localssl.runs.run import Run, open_run
from localssl.system import allocator, guard, interrupts
from localssl.system.files import write_atomic, write_text
from localssl.training.train import train

# of a run's folder; the last one marks it whole
KEPT = ("encoder.json", "encoder.safetensors", "manifest.json", "metrics.csv", "config.yaml")


@dataclass(frozen=True)
class Settings:
    """Where and how an experiment runs.

    Args:
        out: folder for its runs, cells, table and figure.
        data_root: folder that holds the data sets, or None.
        seeds: number of seeds, or None for the experiment's own.
        jobs: cells that run at the same time, each in its own process.
        threads: CPU threads of each; None shares the machine's among the jobs.
        scale: "cpu", "paper" for the paper's own sizes where an experiment has both, or "kept" for those of the
            comparison that lies in ``out``.
    """

    out: Path
    data_root: Path | None = None
    seeds: int | None = None
    jobs: int = 1
    threads: int | None = None
    scale: str = "cpu"

    def threads_per_job(self) -> int:
        """Threads for one cell."""
        return self.threads or max(1, (os.cpu_count() or 1) // self.jobs)


@dataclass(frozen=True)
class Cell:
    """One training run of a study and what is measured on it.

    Args:
        name: file name of the cell, without ".json".
        config: the training run; epochs=0 leaves the encoder untrained.
        measure: a module-level function of (run, settings) that returns plain JSON values.
        keep: keep a copy of the encoder as it is then in ``encoders/NAME`` and measure that; for runs that go on later.
    """

    name: str
    config: TrainConfig
    measure: Callable[[Run, Settings], dict[str, Any]]
    keep: bool = False


@dataclass(frozen=True)
class Part:
    """A piece of a study that is no training run of ``localssl train``.

    Args:
        name: file name of the cell, without ".json".
        work: a module-level function of (settings, *arguments) that returns plain JSON values.
        arguments: plain values; kept in the cell.
    """

    name: str
    work: Callable[..., dict[str, Any]]
    arguments: tuple[Any, ...] = ()


def run_cells(cells: Sequence[Cell | Part], settings: Settings) -> list[dict[str, Any]]:
    """Run the cells that are not there yet; return all, in order. Training resumes where a stopped run left off.

    Cells that share a run's folder (the same run after more epochs) are done one after the other.

    Raises:
        UsageError, RunError: a cell's; processes of ``settings.jobs`` above 1 that cannot start, since the program that
            calls this has no guard.
    """
    folder = settings.out / "cells"
    folder.mkdir(parents=True, exist_ok=True)
    todo = [cell for cell in cells if not (folder / f"{cell.name}.json").is_file()]
    if todo:
        done = len(cells) - len(todo)
        print(f"{done} of {len(cells)} parts are done; running {len(todo)}, {settings.jobs} at a time", flush=True)
    try:
        if settings.jobs == 1:
            for cell in todo:
                _run(cell, settings, print)
        elif todo:
            _run_in_processes(todo, settings)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", flush=True)
        raise
    return [json.loads((folder / f"{cell.name}.json").read_text(encoding="utf-8")) for cell in cells]


def _run_in_processes(todo: Sequence[Cell | Part], settings: Settings) -> None:
    guard.leave_unguarded()
    groups: dict[Path | str | None, list[Cell | Part]] = {}
    for cell in todo:
        groups.setdefault(cell.config.out if isinstance(cell, Cell) else cell.name, []).append(cell)
    waiting = list(groups.values())
    running: set[Future[str]] = set()
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    with ProcessPoolExecutor(settings.jobs, context, initializer=_begin, initargs=(os.getpid(), ready)) as pool:
        while waiting or running:
            # never more than can run: what the pool has taken it begins, even after Ctrl-C or a failure
            while waiting and len(running) < settings.jobs:
                running.add(pool.submit(_run_group, waiting.pop(0), settings))
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                try:
                    print(future.result(), flush=True)
                except BrokenProcessPool as error:
                    if not ready.is_set():
                        raise guard.unbegun() from None
                    raise RunError(
                        f"a process ended without a word (out of memory?); see the logs in {settings.out / 'runs'}; "
                        f"the same command goes on, with fewer --jobs it needs less"
                    ) from error


def _begin(parent: int, ready: Event) -> None:
    """First of all in a process of the pool."""
    ready.set()
    interrupts.follow(parent)


def _run_group(group: list[Cell | Part], settings: Settings) -> str:
    """In a process of its own, whose output goes to a log."""
    names = ", ".join(cell.name for cell in group)
    log = settings.out / "runs" / f"{group[0].name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"{names}: begins, says more in {log}", flush=True)
    began = time.monotonic()
    interrupts.interrupt()
    try:
        with output_to(log):
            for cell in group:
                _run(cell, settings, lambda line: print(line, flush=True))
    except (UsageError, RunError) as error:
        raise type(error)(f"{names}: {error}") from error
    finally:
        interrupts.leave()
    return f"{names}: done after {time.monotonic() - began:.0f} s"


@contextmanager
def output_to(log: Path) -> Generator[None]:
    """Send what this process prints to the end of a file, what libraries in C print too."""
    own = [os.dup(1), os.dup(2)]
    with log.open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        for number, handle in enumerate(own, start=1):
            os.dup2(handle, number)
            os.close(handle)


def _run(cell: Cell | Part, settings: Settings, report: Callable[[str], None]) -> None:
    torch.set_num_threads(settings.threads_per_job())
    if isinstance(cell, Part):
        measured = cell.work(settings, *cell.arguments)
        config: object = list(cell.arguments)
    else:
        run = _trained(cell, settings, report)
        measured = cell.measure(run, settings)
        config = json.loads(json.dumps(dataclasses.asdict(run.config)))
    record = {"cell": cell.name, **measured, "config": config, "environment": environment()}
    write_text(settings.out / "cells" / f"{cell.name}.json", json.dumps(record, indent=1) + "\n")
    allocator.give_back()  # the next cell begins with training


def _trained(cell: Cell, settings: Settings, report: Callable[[str], None]) -> Run:
    kept = settings.out / "encoders" / cell.name
    if cell.keep and (kept / KEPT[-1]).is_file():
        return open_run(kept)
    run = train(cell.config, report)
    if not cell.keep:
        return run
    kept.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        text = (run.path / name).read_bytes()
        write_atomic(kept / name, lambda temporary, text=text: temporary.write_bytes(text))
    return open_run(kept)
