"""What the other commands left in a run's folder: CSV files whose first line says how the numbers were made."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localssl.runs import metrics

Row = dict[str, Any]


@dataclass(frozen=True)
class Measured:
    """One CSV file of the probe's or of alignment's.

    Args:
        name: of the file.
        protocol: its first line.
        rows: its rows, values as text.
    """

    name: str
    protocol: str
    rows: list[dict[str, str]]


PROBES = "probe-*.csv", frozenset({"encoder", "labels", "method", "layer", "accuracy", "low", "high"})
ALIGNMENTS = "align*.csv", frozenset({"block", "reference", "quantity", "mean", "low", "high", "null", "parameter"})


def found(run: Path, kind: tuple[str, frozenset[str]]) -> list[Measured]:
    """Every file of that kind that can be read, by name: ``PROBES`` or ``ALIGNMENTS``, its pattern and columns.

    A user's own table of such a name, without these columns, is none.
    """
    pattern, columns = kind
    result: list[Measured] = []
    for path in sorted(run.glob(pattern)):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        if not lines or not lines[0].startswith("# "):
            continue
        reader = csv.DictReader(lines[1:])
        if not columns <= set(reader.fieldnames or ()):
            continue
        rows = [row for row in reader if None not in row and None not in row.values()]
        result.append(Measured(path.name, lines[0].removeprefix("# "), rows))
    return result


def number(text: str | None) -> float | None:
    """A finite number; None for anything else, an empty cell among them."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def curves(run: Path) -> list[dict[str, float | None]]:
    """The rows of metrics.csv as numbers."""
    return [{key: number(value) for key, value in row.items()} for row in metrics.read(run)]


def blocks(rows: list[dict[str, float | None]], kind: str) -> list[int]:
    """The blocks that have a column ``kind_BLOCK`` with a value in one of the rows."""
    names = {key for row in rows for key, value in row.items() if value is not None}
    return sorted(int(name.removeprefix(f"{kind}_")) for name in names if name.removeprefix(f"{kind}_").isdigit())
