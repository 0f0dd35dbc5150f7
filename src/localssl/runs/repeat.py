"""Whether a run repeats another: what differs in its circumstances, and what in its numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from localssl.errors import UsageError
from localssl.runs import checkpoint, metrics
from localssl.runs.run import manifest_of, open_run

CLOCK = ("seconds", "images_per_second")  # columns of metrics.csv that differ between equal runs
SHOWN = 5  # differences of one kind that are told


@dataclass(frozen=True)
class Comparison:
    """Two runs, beside each other.

    Args:
        circumstances: settings, versions, data and machine that are not the same, a line each.
        numbers: rows of metrics.csv and weights that are not the same; empty where the run was repeated.
        rows, weights: how many were compared.
    """

    circumstances: list[str]
    numbers: list[str]
    rows: int
    weights: int


def compare(run: str | Path, expected: str | Path) -> Comparison:
    """Compare a run with the one that it should repeat, metrics and weights of the last checkpoint bit for bit.

    Raises:
        UsageError: one of them is no run, or has no checkpoint that can be read.
    """
    one, other = Path(run), Path(expected)
    rows = [metrics.read(folder) for folder in (one, other)]
    states = [_state(folder) for folder in (one, other)]
    numbers = [*_rows(*rows), *_weights(*states)]
    return Comparison(list(_circumstances(one, other)), numbers, len(rows[1]), len(states[1]["learner"]))


def told(found: Comparison, expected: Path) -> list[str]:
    """A comparison to read."""
    lines = [f"differs from {expected}: {line}" for line in found.circumstances]
    if found.numbers:
        more = len(found.numbers) - SHOWN
        lines += [f"not as in {expected}: {line}" for line in found.numbers[:SHOWN]]
        return lines + ([f"and {more} more"] if more > 0 else [])
    return [*lines, f"as in {expected}: {found.rows} rows of metrics, {found.weights} tensors, bit for bit"]


def _state(folder: Path) -> dict[str, Any]:
    state, _ = checkpoint.read_last(folder)
    if state is None:
        raise UsageError(f"{folder} has no checkpoint to compare with")
    return state


def _circumstances(one: Path, other: Path) -> Iterator[str]:
    for line in open_run(one).config.differences(open_run(other).config):
        yield f"setting {line}"
    for section in ("data", "environment"):
        mine, theirs = manifest_of(one, section), manifest_of(other, section)
        keys = {**theirs, **mine}
        if section == "environment" and ("cpu" in mine) != ("cpu" in theirs):  # one is from before packages were named
            keys = [key for key in keys if key in mine and key in theirs]
        for key in keys:
            if key not in ("root", "notes") and mine.get(key) != theirs.get(key):
                yield f"{section} {key} {mine.get(key)!r} (there: {theirs.get(key)!r})"
    mine, theirs = (_processes(folder) for folder in (one, other))
    if mine != theirs:
        yield f"processes {mine} (there: {theirs})"


def _processes(folder: Path) -> object:
    try:
        return json.loads((folder / "manifest.json").read_text(encoding="utf-8")).get("processes")
    except (OSError, ValueError, AttributeError):
        return None


def _rows(mine: list[dict[str, str]], theirs: list[dict[str, str]]) -> Iterator[str]:
    for row, other in zip_longest(mine, theirs):
        if row is None:
            yield f"step {other['step']}: no such row"
            continue
        if other is None:
            yield f"step {row['step']}: a row too many"
            continue
        for key in {**other, **row}:
            if key not in CLOCK and row.get(key) != other.get(key):
                yield f"step {other['step']}: {key} {row.get(key)} (there: {other.get(key)})"


def _weights(mine: dict[str, Any], theirs: dict[str, Any]) -> Iterator[str]:
    if mine["step"] != theirs["step"]:
        yield f"weights of step {mine['step']} (there: {theirs['step']})"
    one: dict[str, Tensor] = mine["learner"]
    other: dict[str, Tensor] = theirs["learner"]
    for name in sorted(one.keys() | other.keys()):
        a, b = one.get(name), other.get(name)
        if a is None or b is None or a.shape != b.shape or a.dtype != b.dtype:
            yield f"{name} {_form(a)} (there: {_form(b)})"
        elif not torch.equal(a, b):
            most = float((a.double() - b.double()).abs().max())
            yield f"{name} differs by up to {most:.1e}"


def _form(x: Tensor | None) -> str:
    return "missing" if x is None else f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}"
