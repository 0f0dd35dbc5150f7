"""The study of staleness, on a few digits."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from localssl.experiments import EXPERIMENTS, Settings, staleness


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
