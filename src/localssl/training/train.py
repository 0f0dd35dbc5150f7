"""``train``: a run from its configuration to its folder. A failure costs minutes, not the run."""

from __future__ import annotations

import functools
import os
import zlib
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from localssl import own, testing
from localssl.data.readers import data_folder
from localssl.errors import RunError, UsageError, one_line
from localssl.parallel import Lost, Processes
from localssl.runs import flagfile
from localssl.runs.config import RunConfig, TrainConfig
from localssl.runs.limits import check
from localssl.runs.manifest import write_cost, write_manifest
from localssl.runs.resume import begin, check_folder, found_again
from localssl.runs.run import Run, manifest_of, open_run
from localssl.system import devices, interrupts
from localssl.system.files import Vanished, held, missing, sweep, write_text
from localssl.training import launch, pipeline
from localssl.training.loop import Loop


def train(config: TrainConfig, report: Callable[[str], None] = print) -> Run:
    """Train an encoder and leave everything in ``config.out``.

    Args:
        config: see ``TrainConfig``; ``--help`` of the command line shows the same text.
        report: receives one-line remarks for the user; under --devices the first process prints them instead.

    Returns:
        The finished run.

    Raises:
        UsageError: input that the user must mend; nothing was written or changed.
        RunError: the run cannot go on; the last checkpoint is whole.
        KeyboardInterrupt: stopped by Ctrl-C (or SIGTERM) after a checkpoint was written.
    """
    out = config.out
    if out is None:
        raise UsageError("train needs --out, the folder of the run, for instance --out runs/x")
    check(config)
    devices.choose(config.device)
    launch.check(config)
    if config.devices * config.nodes == 1:
        _set_threads(config)
        return _train(config, out, report, pipeline.ALONE)
    if config.nodes > 1 and not launch.started_by_others():
        here, first = (os.environ[name] for name in ("NODE_RANK", "MASTER_ADDR"))
        report(f"machine {here} of 0 to {config.nodes - 1}: begins when all have found {first}")
    try:
        with _tidied(config, out):
            launch.launch(config, functools.partial(_share, config, own.named(*config.own_files())))
    except KeyboardInterrupt as stopped:
        if str(stopped):
            report(str(stopped))
        raise
    except Lost as error:
        advice = _advice(config, out)
        raise error if advice in str(error) else Lost(f"{error}; {advice}") from error
    return open_run(out)


@contextmanager
def _tidied(config: TrainConfig, out: Path) -> Generator[None]:
    """Where the processes fail, remove the empty folders that they leave.

    The first to end has the others ended, by SIGTERM: the one that holds the run's folder perhaps before it has tidied
    up, or in the middle of that.
    """
    were_missing = missing(out)
    try:
        yield
    except BaseException:
        if launch.speaks(config.nodes) and were_missing and were_missing[-1].is_dir():
            with suppress(OSError, UsageError), held(out, were_missing):
                pass
        raise


def _share(config: TrainConfig, named: list[str], processes: Processes, number: int) -> None:
    """The part of one of several processes; the first one speaks and writes. ``named``: files whose code may run."""
    assert config.out is not None
    said: list[str] = []
    _set_threads(config)
    place = pipeline.place(processes, config.pipeline or 1, timedelta(minutes=config.patience))
    threads = processes.least(torch.get_num_threads())  # all stages choose alike
    if place.peers is not None:
        place.peers.exchange, place.peers.threads = config.exchange, threads
    try:
        with own.only_named(named):
            if place.stage == 0:
                _train(config, config.out, print if processes.rank == 0 else said.append, place, number)
                return
            with interrupts.ignored(), _explained(config, config.out):
                pipeline.work(place, number)
    except KeyboardInterrupt as stopped:
        raise KeyboardInterrupt("") from stopped


def _set_threads(config: TrainConfig) -> None:
    """Of this process: as many as were asked for, else its share of those that one would have."""
    here = config.together if config.devices * config.nodes > 1 else config.pipeline
    if config.threads is not None or here is not None:
        torch.set_num_threads(config.threads or max(1, torch.get_num_threads() // (here or 1)))


def _train(
    config: TrainConfig, out: Path, report: Callable[[str], None], place: pipeline.Place, number: int = 0
) -> Run:
    check_folder(out)
    with _explained(config, out), _held(out, place):
        config = found_again(config, out)
        resolved, images, state = begin(config, out, report)
        for note in images.notes:
            report(note)
        failed: str | None = None
        for part, name in resolved.own_files().items():
            before = manifest_of(out, part)
            changed = before.get("sha256") not in (None, own.fingerprint(name))
            if state is not None and changed:
                report(f"warning: {name} is not the file that {out} was begun with; it goes on with the new one")
            if part == "rule":
                unseen = state is None or changed
                failed = _check_own_rule(resolved, report) if unseen else before.get("failed_check")
        if place.peers is not None:
            _compare(place.peers, resolved, state, len(images))
        loop = Loop(config, resolved, images, state, report, place, number)
        if loop.speaks:
            sweep(out)
            write_text(out / "config.yaml", resolved.to_yaml())
            _keep_flags(config, out / flagfile.NAME)
            command, root = config.command() + (" --resume" if state is not None else ""), data_folder(config.data_root)
            processes = config.devices * config.nodes * (config.pipeline or 1)
            write_manifest(out, resolved, images, root, command, processes, state is not None, failed)
        finished = loop.run()
        if loop.speaks:
            write_cost(out)
    if not finished:
        report(f"stopped at step {loop.step}; go on with: {config.resume_command()}")
        if place.peers is not None:
            place.peers.any(False)  # the first to end ends all: nobody does before this is said
        raise KeyboardInterrupt
    return Run(out, resolved)


@contextmanager
def _held(out: Path, place: pipeline.Place) -> Generator[None]:
    """Hold the run's folder before anything in it is read; the process that speaks does, and the others wait for it."""
    with held(out) if place.speaks else nullcontext():
        if place.peers is not None:
            place.peers.any(False)
        yield


@contextmanager
def _explained(config: TrainConfig, out: Path) -> Generator[None]:
    """What no run can go on after, in one line with what the user can do.

    An exception in the user's own code stays what it is, and gets that as its note.
    """
    try:
        try:
            yield
        except Exception as error:
            if own.where(error):
                error.add_note(_advice(config, out))
            raise
    except Lost as error:
        raise Lost(f"{error}; {_advice(config, out)}") from error  # still less to say than whoever ended
    except BrokenPipeError:  # nobody reads what the run prints: no matter of its folder
        raise
    except Vanished as error:
        advice = "what is in it is untouched: bring it back, then give the same command again with --resume"
        raise RunError(f"{error.strerror}; {advice}") from error
    except OSError as error:
        if own.where(error):  # a file of the user's opened something
            raise
        raise RunError(f"{error.strerror or error} ({error.filename or out}); {_advice(config, out)}") from error
    except (MemoryError, RuntimeError) as error:
        if not devices.out_of_memory(error):
            raise
        advice = f"{_advice(config, out)}, or start anew with a smaller --batch-size or --width"
        raise RunError(f"out of memory; {advice}") from error


def _keep_flags(config: TrainConfig, path: Path) -> None:
    """Write what the user asked for; where a run goes on, on top of what was asked for before."""
    before = flagfile.read(path, TrainConfig) if config.resume and path.is_file() else {}
    flagfile.write(path, config, before)


def _compare(processes: Processes, config: RunConfig, state: dict[str, Any] | None, images: int) -> None:
    """Refuse processes that do not see the same run; nothing is written before all have looked.

    Raises:
        UsageError: they do not.
    """
    if not processes.agree(zlib.crc32(config.to_yaml().encode()), -1 if state is None else state["step"]):
        raise UsageError("the processes see different data or checkpoints: --out and the data must be shared by all")
    if not processes.agree(images):  # with --skip-bad: in memory bad images are left out, from disk replaced
        raise UsageError("the processes have different numbers of images: give all the same files and --memory")


def _check_own_rule(config: RunConfig, report: Callable[[str], None]) -> str | None:
    """Say which check a rule of the user's own fails, and return it; it trains all the same."""
    try:
        testing.check_rule(config.make_rule())
    except testing.CheckFailed as error:
        report(f"warning: {error}; it trains all the same, see docs/your-own-rule.md")
        return one_line(error)
    return None


def _advice(config: TrainConfig, out: Path) -> str:
    if not os.path.exists(out / "config.yaml"):  # nothing says yet what to go on with
        return "nothing was begun: mend that, then give the same command again"
    return f"the last checkpoint is untouched: mend that, then go on with: {config.resume_command()}"
