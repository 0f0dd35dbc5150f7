"""metrics.csv: a row per logged step, written at once, cut back to the checkpoint on resume. Trackers beside it."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning_fabric.loggers.tensorboard import TensorBoardLogger

from localssl.runs import trackers
from localssl.system.files import Vanished, append, attempt, check_held, write_text


class Metrics:
    """Append-only metrics of a run.

    Args:
        run: the run's folder.
        columns: the CSV's columns, the first of them "step".
        resume_step: keep rows up to this step and drop later ones (they will be written again); None: a new file.
        beside: trackers that get the same, see ``trackers.make``.
        about: the run's configuration, for those of them that keep it.
    """

    def __init__(
        self,
        run: Path,
        columns: list[str],
        resume_step: int | None = None,
        beside: Sequence[str] = ("tensorboard",),
        about: Mapping[str, Any] | None = None,
    ):
        self.path = run / "metrics.csv"
        self.columns = columns
        rows = [] if resume_step is None else [row for row in read(run) if int(row["step"]) <= resume_step]
        lines = [",".join(columns)] + [",".join(row.get(c) or "" for c in columns) for row in rows]
        write_text(self.path, "\n".join(lines) + "\n")
        self.beside = trackers.make(beside, run, resume_step)
        for tracker in self.beside:
            if about and resume_step is None and not isinstance(tracker, TensorBoardLogger):  # curves alone
                tracker.log_hyperparams(dict(about))

    def log(self, row: dict[str, float]) -> None:
        """Write one row now; columns without a value stay empty."""
        line = io.StringIO()
        csv.DictWriter(line, self.columns, lineterminator="\n").writerow(row)
        append(self.path, line.getvalue())
        attempt("append", self.path.with_name("tensorboard"))
        values = {key: value for key, value in row.items() if key != "step"}
        for tracker in self.beside:
            tracker.log_metrics(values, step=int(row["step"]))
            if isinstance(tracker, TensorBoardLogger):
                tracker.experiment.flush()  # here, or a full disk would be met by its thread, with a traceback

    def close(self) -> None:
        """Finish the trackers' files, where the run's folder is still there."""
        with suppress(Vanished):  # whoever writes into it says so
            check_held(self.path)
            for tracker in self.beside:
                tracker.finalize("success")


def read(run: Path) -> list[dict[str, str]]:
    """All rows of a run's metrics.csv, values as text; none where there is no file. A torn last row is left out."""
    path = run / "metrics.csv"
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    rows = csv.DictReader(line for line in lines if line.endswith("\n"))
    return [row for row in rows if None not in row.values() and (row.get("step") or "").isdigit()]
