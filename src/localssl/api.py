"""Every command as a function for programs and notebooks: the flags by keyword, the result returned.

    run = localssl.train(rule="clapp++dfb", data="digits", out="runs/x")
    run                      # in a notebook: losses, accuracies, where the files are
    run.probe(labels=("10", "all"))
    run.report()

Keywords are the flags with "_" for "-" (``localssl train --help-all``, or ``help`` of the class in
``localssl.cli.flags``), with the same defaults. What the command line prints is printed here, too. Bad input raises
``localssl.errors.UsageError``.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from localssl.certificate import Certificate
from localssl.checkup import Finding
from localssl.cli import commands, flags, pages
from localssl.errors import UsageError, unknown
from localssl.evaluate import AlignResult
from localssl.own import check_files, named, only_named
from localssl.probe import ProbeResult
from localssl.report.comparison import Line
from localssl.runs import flagfile
from localssl.runs import run as runs
from localssl.runs.config import TrainConfig
from localssl.runs.kinds import check_kinds
from localssl.runs.run import Run
from localssl.theory.checks import Outcome
from localssl.training import launch, rehearsal
from localssl.training.train import train as train_run

T = TypeVar("T")
P = ParamSpec("P")


def _takes(kind: type[Any], without: str = "") -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Make of a function a command: the signature of its flags, and code runs only where the call names its file.

    ``without``: a flag that is no keyword.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        own = [p for p in inspect.signature(function).parameters.values() if p.kind != p.VAR_KEYWORD]
        names = {p.name for p in own} | {without}
        given = [
            inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type)
            for f in dataclasses.fields(kind)
            if f.name not in names
        ]

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            with only_named((*named(), *_words([*args, *kwargs.values()]))):
                return function(*args, **kwargs)

        call.__signature__ = inspect.Signature([*own, *given])  # pyright: ignore[reportAttributeAccessIssue]
        return call

    return decorate


class TrainedRun(Run):
    """A run's folder, opened, with the commands that go on from it, and a card in a notebook."""

    @_takes(flags.Probe, "run")
    def probe(self, **options: Any) -> dict[str, ProbeResult]:
        """As ``probe``."""
        return probe(self.path, **options)

    @_takes(flags.Align, "run")
    def align(self, **options: Any) -> AlignResult:
        """As ``align``."""
        return align(self.path, **options)

    @_takes(flags.Report, "runs")
    def report(self, **options: Any) -> Path:
        """As ``report``; the page."""
        return report(self.path, **options)[0]

    @_takes(flags.Export, "run")
    def export(self, **options: Any) -> Path:
        """As ``export``; the file."""
        return export(self.path, **options)

    def __repr__(self) -> str:
        """One line; ``config`` has all of it."""
        c = self.config
        return f"TrainedRun({str(self.path)!r}: {c.rule} on {c.data}, {c.epochs} epochs)"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from localssl.report import card  # here: what draws charts takes a second to import

        return card.html(self)


def _words(values: Iterable[object]) -> list[str]:
    """What a call names, as the words of a command line."""
    words: list[str] = []
    for value in values:
        if isinstance(value, Mapping):
            words += _words(value.values())
        elif isinstance(value, list | tuple):
            words += _words(value)
        elif isinstance(value, str | Path):
            words.append(str(value))
    return words


def _flags(kind: type[T], given: Mapping[str, Any]) -> T:
    """The flags of a command from keywords: texts for paths, lists for tuples and dictionaries for NAME=VALUE will do.

    Keywords win over the file that ``config`` names.

    Raises:
        UsageError: a keyword that the command has no flag for, a value that the flag does not take, a file that cannot
            be taken.
    """
    fields = {field.name: str(field.type) for field in dataclasses.fields(kind)}  # pyright: ignore[reportArgumentType]
    values: dict[str, Any] = {}
    if given.get("config") is not None and "config" in fields:
        values = flagfile.read(Path(given["config"]), kind)  # pyright: ignore[reportArgumentType]
    for name, value in given.items():
        if name not in fields:
            raise unknown(f"option of {kind.__name__.lower().removesuffix('config')}", name, fields)
        if isinstance(value, str) and "Path" in fields[name]:
            value = Path(value)
        elif isinstance(value, Mapping):
            value = tuple(f"{key}={json.dumps(item)}" for key, item in value.items())
        elif isinstance(value, list):
            paths = "Path" in fields[name]
            value = tuple(Path(item) if paths and isinstance(item, str) else item for item in value)
        values[name] = value
    made = kind(**values)
    check_kinds(made)  # pyright: ignore[reportArgumentType]
    check_files(getattr(made, "own", ()))
    return flagfile.taken(made) if isinstance(made, TrainConfig | flags.Compare) else made


@_takes(flags.Train, without="dry_run")
def train(*, report: Callable[[str], None] = print, **options: Any) -> TrainedRun:
    """Train an encoder and leave everything in the folder ``out``: ``localssl train``.

    Args:
        report: receives one-line remarks; with ``devices`` above 1 the first process prints them instead.
        options: rule, data, out, and what ``localssl.cli.flags.Train`` has besides, but for dry_run, which is a
            function of its own, and report, a method of what is returned; ``localssl train --help-all`` says what each
            means. There are no callbacks: ``metrics.csv`` in the folder grows while the run goes on, and a loop of your
            own is a few lines (docs/networks.md).

    Returns:
        The finished run.

    Raises:
        UsageError: input that has to be mended; nothing was written or changed.
        RunError: the run cannot go on; the last checkpoint is whole. Or it is done and does not repeat ``expect``.
        KeyboardInterrupt: stopped, after a checkpoint was written.
    """
    if not callable(report):
        raise UsageError(
            "train's report receives remarks, for instance print; for the page call report() of what it returns"
        )
    command = _flags(flags.Train, options)
    if command.dry_run:
        raise UsageError("train has no dry_run here; call localssl.dry_run with the other options")
    finished = train_run(commands.repeated(command), report)
    if command.expect is not None and launch.speaks(command.nodes):
        commands.expect(finished.path, command.expect, report)
    return TrainedRun(finished.path, finished.config)


@_takes(TrainConfig)
def dry_run(**options: Any) -> rehearsal.Estimate:
    """What a run would take: ``localssl train --dry-run``. Options and errors as ``train``; nothing is written."""
    return rehearsal.rehearse(_flags(TrainConfig, options))


def open_run(path: str | Path) -> TrainedRun:
    """The run in a folder.

    Raises:
        UsageError: there is none, or its configuration cannot be read.
    """
    found = runs.open_run(path)
    return TrainedRun(found.path, found.config)


@_takes(flags.Probe)
def probe(run: str | Path, **options: Any) -> dict[str, ProbeResult]:
    """Accuracy by layer of a run and of its untrained encoder, kept as CSV in its folder: ``localssl probe``.

    Raises:
        UsageError: no run, data that are not here, options that do not go together.
    """
    return commands.probe(_flags(flags.Probe, {"run": str(run), **options}))


@_takes(flags.Align)
def align(run: str | Path, **options: Any) -> AlignResult:
    """Similarity of a run's updates with backpropagation's, kept as CSV in its folder: ``localssl align``.

    Raises:
        UsageError: no run or checkpoint, data that are not here, an unknown reference.
    """
    return commands.align(_flags(flags.Align, {"run": str(run), **options}))


@_takes(flags.Compare)
def compare(**options: Any) -> list[Line]:
    """Rules side by side, kept in the folder ``out``: ``localssl compare``. A row a rule.

    Each row and seed is a process, which imports the program that calls this: guard it by
    ``if __name__ == "__main__":``.

    Raises:
        UsageError: an unknown rule, data that cannot be read, cells of other settings in ``out``, no guard.
        RunError: a row failed; the others are written.
    """
    return commands.compare(_flags(flags.Compare, options))


@_takes(flags.Certify)
def certify(*rules: str, **options: Any) -> list[Certificate]:
    """What the updates of rules read: ``localssl certify``.

    Args:
        rules: names, or PATH.py:CLASS; none: all built-in ones.
        options: see ``localssl.cli.flags.Certify``.

    Raises:
        UsageError: an unknown rule or option.
    """
    return commands.certify(_flags(flags.Certify, {"rule": [(name,) for name in rules], **options}))


@_takes(flags.Theory)
def theory(**options: Any) -> list[Outcome]:
    """The paper's statements, checked on random networks: ``localssl theory``.

    Raises:
        RunError: a statement failed.
    """
    return commands.theory(_flags(flags.Theory, options))


@_takes(flags.Reproduce)
def reproduce(*names: str, **options: Any) -> None:
    """Experiments of the paper and of the documentation by name, none lists them: ``localssl reproduce``.

    Many start processes, which import the program that calls this: guard it by ``if __name__ == "__main__":``.

    Raises:
        UsageError: an unknown experiment, no guard.
    """
    commands.reproduce(_flags(flags.Reproduce, {"names": list(names), **options}))


@_takes(flags.Report, without="runs")
def report(*runs: str | Path, **options: Any) -> list[Path]:
    """One page about every run, ``report.html`` in its folder: ``localssl report``. Returns the pages.

    Raises:
        UsageError: no run there.
    """
    return pages.report(_flags(flags.Report, {"runs": [Path(run) for run in runs], **options}))


@_takes(flags.Export)
def export(run: str | Path, **options: Any) -> Path:
    """The frozen encoder as ONNX or NIR, embeddings as an array, or the rule as data: ``localssl export``.

    Returns the file.

    Raises:
        UsageError: no run, data that are not here, a package that is missing.
    """
    return commands.export_run(_flags(flags.Export, {"run": str(run), **options}))


@_takes(flags.Doctor)
def doctor(**options: Any) -> list[Finding]:
    """What this machine has for localssl: ``localssl doctor``.

    Raises:
        RunError: localssl cannot work here.
    """
    return commands.doctor(_flags(flags.Doctor, options))
