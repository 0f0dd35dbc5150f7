"""The pages of runs: those that are asked for, and the one of a run that is done."""

from __future__ import annotations

from pathlib import Path

from localssl.cli import flags
from localssl.cli.given import set_threads
from localssl.errors import RunError, UsageError
from localssl.runs.run import open_run


def report(command: flags.Report) -> list[Path]:
    """Write the page of every run."""
    from localssl.report import run_page  # here: what draws charts takes a second to import

    if not command.runs:
        raise UsageError("report needs the folder of a run, for instance localssl report runs/x")
    set_threads(command.threads)
    c = command
    options = run_page.Options(c.data, c.data_root, c.skip_bad, c.images, c.units)
    opened = [open_run(path) for path in c.runs]  # first: one may be misspelt
    pages: list[Path] = []
    for run in opened:
        pages.append(run_page.write(run, options))
        print(f"written: {pages[-1]} ({pages[-1].stat().st_size / 1e6:.1f} MB)")
    return pages


def write(run: Path, command: flags.Train) -> None:
    """The page of a run that is done: where it cannot be written, a line says why, and the run is done all the same."""
    try:
        report(flags.Report(runs=(run,), skip_bad=command.skip_bad))
    except (UsageError, RunError) as error:
        print(f"report.html is not written: {error}")
