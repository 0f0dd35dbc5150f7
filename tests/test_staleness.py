"""The study of staleness, on a few digits."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from localssl.experiments import EXPERIMENTS, Settings, staleness
from localssl.report import study_tables


def test_it_runs_and_pairs_by_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = staleness.Study("digits", 64, 0.25, 0.01, 16, epochs=1, labels=64, staleness=(0, 2))
    monkeypatch.setattr(staleness, "STUDY", tiny)
    monkeypatch.setattr(staleness, "RULES", ("clapp++both",))
    EXPERIMENTS["staleness"](Settings(tmp_path, seeds=2, threads=1))
    lines = (tmp_path / "staleness.csv").read_text().splitlines()
    assert lines[0].startswith("# digits, 64 images, width 0.25, batches of 16, epochs 1; cosine")
    rows = list(csv.reader(lines[1:]))
    assert rows[0] == staleness.HEADER
    assert [row[1:3] for row in rows[1:]] == [["0", "accuracy"], ["0", "cosine"], ["2", "accuracy"], ["2", "cosine"]]
    assert all(float(row[6]) == 0 for row in rows[1:3])  # itself
    assert float(rows[4][6]) == pytest.approx(float(rows[4][3]) - float(rows[2][3]), abs=1.1e-4)
    assert float(rows[4][6]) != 0


def test_the_table_is_made_of_the_cells_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_tables, "RESULTS", tmp_path)
    assert study_tables.staleness() == "Not measured yet: `localssl reproduce staleness`."
    cells = tmp_path / "staleness" / "cells"
    cells.mkdir(parents=True)
    config = {"rule": "clapp++dfb", "data": "digits", "limit_images": 64, "batch_size": 16, "epochs": 1}
    found = {(0, 0): (50.0, 0.3), (0, 1): (52.0, 0.4), (1, 0): (49.0, 0.2), (1, 1): (51.0, 0.3), (5, 1): (40.0, 0.1)}
    for (d, seed), (accuracy, cosine) in found.items():
        cell = {"accuracy": accuracy, "cosine": cosine, "config": {**config, "staleness": d, "seed": seed}}
        (cells / f"{d}-{seed}.json").write_text(json.dumps(cell))
    lines = study_tables.staleness().splitlines()
    assert lines[2] == "| `clapp++dfb` | 0 | 51.00 ± 12.71 |  | 0.350 ± 0.635 |  | 2 |"
    assert lines[3] == "| `clapp++dfb` | 1 | 50.00 ± 12.71 | −1.00 ± 0.00 | 0.250 ± 0.635 | −0.100 ± 0.000 | 2 |"
    assert lines[4] == "| `clapp++dfb` | 5 | 40.00 | −12.00 | 0.100 | −0.300 | 1 |"


def test_the_page_says_what_the_table_has() -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "engine.md").read_text(encoding="utf-8")
    prose = " ".join(page.partition("<!-- end of table staleness -->")[2].partition("\n\n")[2].split())
    lost = {tuple(line.split(" | ")[:2]): line.split(" | ")[3] for line in study_tables.staleness().splitlines()[2:7]}
    for row, said in {
        ("| `clapp++dfb`", "1"): "have lost {} points on average",
        ("| `clapp++dfb`", "5"): "it loses {} points",
        ("| `clapp++both`", "1"): "which lost {} points",
    }.items():
        assert said.format(lost[row].partition(" ± ")[0].removeprefix("−")) in prose
