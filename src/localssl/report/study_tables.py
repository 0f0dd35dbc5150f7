"""Tables of the documentation that are made from the committed results of studies, ``docs/results``."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from localssl.stats import t_interval

RESULTS = Path(__file__).parents[3] / "docs" / "results"
Row = dict[str, str]


def brain() -> str:
    """CKA of every block with the twin's, mean over seeds, and what it may be held against."""
    rows = [r for r in _read("brain", "similarity.csv") if r["measure"] == "cka"]
    rules = list(dict.fromkeys(r["rule"] for r in rows))
    lines: list[Sequence[str]] = []
    for block in dict.fromkeys(r["block"] for r in rows):
        mine = [r for r in rows if r["block"] == block]
        cells = [_mean(r["similarity"] for r in mine if r["rule"] == rule) for rule in rules]
        cosines = [_mean(r["cosine"] for r in mine if r["rule"] == rule) for rule in rules]
        beside = [_mean(r[key] for r in mine) for key in ("between_twins", "untrained")]
        lines.append([block, *(f"{c} ({k})" for c, k in zip(cells, cosines, strict=True)), *beside])
    return _table(["block", *(f"`{rule}`" for rule in rules), "twins of two seeds", "twin and its start"], lines)


def brain_answer() -> str:
    """The rank correlation of similarity and cosine."""
    rows = _read("brain", "answer.csv")
    lines: list[Sequence[str]] = []
    for r in rows:
        value, low, high = (f"{float(r[key]):.2f}" for key in ("correlation", "low", "high"))
        lines.append([r["measure"].upper(), r["over"], f"{value} ({low} to {high})", r["points"]])
    return _table(["measure", "over", "Spearman (95 %)", "points"], lines)


def _read(study: str, file: str) -> list[Row]:
    text = (RESULTS / study / file).read_text(encoding="utf-8")
    return list(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))


def _mean(values: Iterable[str]) -> str:
    return f"{t_interval([float(v) for v in values])[0]:.2f}"


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
