"""Parts of a study in processes of their own: one that fails leaves the others alone and says why in one line."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import torch

import localssl
from localssl import own
from localssl.errors import RunError, UsageError, one_line
from localssl.experiments.cells import Part, Settings, output_to
from localssl.runs.manifest import environment
from localssl.system import guard, interrupts
from localssl.system.files import write_text

FAILED = "failed"  # key of a record that holds the reason and nothing else
ANEW = "anew"  # beside it: whether the failure was the rule's, so that its run begins again from the start


@dataclass(frozen=True)
class _Running:
    part: Part
    process: SpawnProcess
    ready: Event
    began: float


def run_apart(parts: Sequence[Part], settings: Settings) -> list[dict[str, Any]]:
    """The records of all parts, in order; those that are not there yet are run, ``settings.jobs`` at a time.

    A part that failed before is tried again. One that fails has the record {"failed": reason, "anew": bool}.

    Raises:
        UsageError: the processes cannot start, since the program that calls this has no guard.
        RunError: the folder is gone.
        KeyboardInterrupt: stopped; what runs has saved, and the same call goes on.
    """
    guard.leave_unguarded()
    folder = settings.out / "cells"
    folder.mkdir(parents=True, exist_ok=True)
    todo = [part for part in parts if _clear_failed(part, settings)]
    if todo:
        done = len(parts) - len(todo)
        print(f"{done} of {len(parts)} parts are done; running {len(todo)}, {settings.jobs} at a time", flush=True)
    lost: dict[str, str] = {}
    running: dict[int, _Running] = {}
    waiting = list(todo)
    try:
        while waiting or running:
            while waiting and len(running) < settings.jobs:
                if not folder.is_dir():  # what is begun now would go onto the disk below
                    raise RunError(f"{folder} is gone: bring it back, and the same command goes on from here")
                one = _start(waiting.pop(0), settings)
                running[one.process.sentinel] = one
            for sentinel in wait(list(running)):
                assert isinstance(sentinel, int)
                one = running.pop(sentinel)
                one.process.join()
                if one.process.exitcode == guard.UNGUARDED and not one.ready.is_set():
                    raise guard.unbegun()
                reason = _outcome(one, settings)
                if not _file(one.part, settings).is_file():
                    lost[one.part.name] = reason or "?"
    except BaseException as error:
        _stop(list(running.values()))
        if isinstance(error, KeyboardInterrupt):
            print("stopped; the same command goes on from here", flush=True)
        raise
    return [
        {FAILED: lost[part.name], ANEW: False} if part.name in lost else read(settings.out, part.name) for part in parts
    ]


def read(out: Path, name: str) -> dict[str, Any]:
    """The record of a part that has run.

    Raises:
        UsageError: the file is damaged, or of a study of another kind.
    """
    file = out / "cells" / f"{name}.json"
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        record = None
    if not isinstance(record, dict) or not isinstance(record.get("task"), list):  # pyright: ignore
        raise UsageError(f"{file} is no cell of this study; delete it, or choose another --out")
    return record  # pyright: ignore[reportUnknownVariableType]


def _file(part: Part, settings: Settings) -> Path:
    return settings.out / "cells" / f"{part.name}.json"


def _clear_failed(part: Part, settings: Settings) -> bool:
    """Whether a part is to be run; what a failure left is taken away where going on with it makes no sense."""
    file = _file(part, settings)
    if not file.is_file():
        return True
    record = read(settings.out, part.name)
    if FAILED not in record:
        return False
    if record[ANEW]:
        shutil.rmtree(settings.out / "runs" / part.name, ignore_errors=True)
    file.unlink()
    return True


def _log(part: Part, settings: Settings) -> Path:
    return settings.out / "runs" / f"{part.name}.log"


def _start(part: Part, settings: Settings) -> _Running:
    log = _log(part, settings)
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"{part.name}: begins, says more in {log}", flush=True)
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    arguments = (part, settings, os.getpid(), own.named(), ready)
    process = context.Process(target=_work, args=arguments)
    with interrupts.blocked():  # inherited: Ctrl-C is this process's business, which sends SIGTERM to the others, once
        process.start()
    return _Running(part, process, ready, time.monotonic())


def _stop(running: Sequence[_Running]) -> None:
    """Let training runs save; a second Ctrl-C does not wait for that."""
    for one in running:
        one.process.terminate()
    try:
        for one in running:
            one.process.join()
    except KeyboardInterrupt:
        for one in running:
            one.process.kill()


def _outcome(one: _Running, settings: Settings) -> str | None:
    """Say how a part ended; the reason where it failed."""
    name = one.part.name
    if _file(one.part, settings).is_file():
        reason = read(settings.out, name).get(FAILED)
    else:
        code, log = one.process.exitcode, _log(one.part, settings)
        reason = f"its process ended without a word (status {code}; out of memory?), see {log}"
        if (code or 0) > 0 and not one.ready.is_set():
            reason = f"its process ended before it began (status {code}; {guard.hint('compare')}?)"
    seconds = time.monotonic() - one.began
    print(f"{name}: {f'failed: {reason}' if reason else f'done after {seconds:.0f} s'}", flush=True)
    return reason


def _work(part: Part, settings: Settings, parent: int, named: list[str], ready: Event) -> None:
    """In the process of the part, whose output goes to a log; of the user's files those run that are ``named``."""
    ready.set()
    interrupts.follow(parent)
    torch.set_num_threads(settings.threads_per_job())
    with output_to(_log(part, settings)), own.only_named(named):
        try:
            record = part.work(settings, *part.arguments)
        except KeyboardInterrupt:
            sys.exit(130)
        except Exception as error:
            traceback.print_exc()
            record = {FAILED: reason_of(error), ANEW: not isinstance(error.__cause__ or error, OSError | MemoryError)}
    record = {"cell": part.name, **record, "task": list(part.arguments), "environment": environment()}
    try:
        write_text(_file(part, settings), json.dumps(record, indent=1) + "\n")
    except OSError as error:
        sys.exit(f"localssl: {part.name}: {error.strerror} ({error.filename})")


def reason_of(error: Exception) -> str:
    """An error in one line: of ours what happened; of others their kind and the place in the user's own code.

    How to go on with the run alone is not said: whoever compares gives the same command again.
    """
    text = one_line(error.what if isinstance(error, RunError) else error)
    if isinstance(error, UsageError | RunError):
        return text
    package = str(Path(localssl.__file__).parent)
    frames = traceback.extract_tb(error.__traceback__)
    mine = [f for f in frames if not f.filename.startswith((package, "<")) and not _installed(f.filename)]
    place = (mine or frames)[-1:]
    where = f" ({place[0].filename}:{place[0].lineno})" if place else ""
    return f"{type(error).__name__}{': ' if text else ''}{text}{where}"


def _installed(file: str) -> bool:
    return any(part in ("site-packages", "dist-packages") for part in Path(file).parts) or file.startswith(
        str(Path(os.__file__).parent)
    )
