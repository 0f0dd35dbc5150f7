"""The study of similarity and alignment, tiny: its cells go on, its tables hold what they say."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from localssl import represent
from localssl.experiments import EXPERIMENTS, brain
from localssl.experiments.cells import Settings


def table(path: Path) -> list[dict[str, str]]:
    comment, *lines = path.read_text(encoding="utf-8").splitlines()
    assert comment.startswith("# digits")
    return list(csv.DictReader(lines))


def test_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(brain, "RULES", ("clapp", "clapp++both"))
    monkeypatch.setattr(brain, "BATCHES", 2)
    monkeypatch.setattr(brain, "FIT_BATCHES", 2)
    settings = Settings(tmp_path, None, 2, 1, 1)
    brain.study(settings, "digits", 128, 1, 40, width=0.25)
    rows = table(tmp_path / "similarity.csv")
    assert len(rows) == 2 * 2 * 2 * 5
    one = next(r for r in rows if (r["rule"], r["seed"], r["block"], r["measure"]) == ("clapp", "1", "2", "cka"))
    x, y = (represent.load(tmp_path / "activities" / f"{n}-s1.npz") for n in ("clapp", "bp-clapp++"))
    assert float(one["similarity"]) == pytest.approx(represent.cka(x["block_2"], y["block_2"]), abs=1e-5)
    assert float(one["low"]) <= float(one["similarity"]) <= float(one["high"])
    other = represent.load(tmp_path / "activities" / "bp-clapp++-s0.npz")
    assert float(one["between_twins"]) == pytest.approx(represent.cka(y["block_2"], other["block_2"]), abs=1e-5)
    assert float(one["dimension"]) == pytest.approx(represent.participation_ratio(x["block_2"]), abs=1e-3)
    assert all(-1 <= float(r["cosine"]) <= 1 for r in rows)
    answer = table(tmp_path / "answer.csv")
    found = [(r["measure"], r["over"], r["points"]) for r in answer[:2]]
    assert found == [("cka", "all", "16"), ("cka", "depth removed", "16")]
    mine = [r for r in rows if r["measure"] == "cka" and r["block"] != "5"]
    from scipy import stats

    expected = stats.spearmanr([float(r["cosine"]) for r in mine], [float(r["similarity"]) for r in mine]).statistic
    assert float(answer[0]["correlation"]) == pytest.approx(expected, abs=1e-3)
    maps = table(tmp_path / "spatial.csv")
    assert {(r["rule"], r["projection"]) for r in maps} == {("clapp++both", "lateral"), ("clapp++both", "feedback")}
    assert {r["seeds"] for r in maps} == {"2"}
    assert np.mean([float(r["strength"]) for r in maps]) == pytest.approx(1, abs=0.3)
    assert (tmp_path / "brain.png").stat().st_size > 10_000
    before = (tmp_path / "similarity.csv").read_bytes()
    capsys.readouterr()
    brain.study(settings, "digits", 128, 1, 40, width=0.25)
    assert "running" not in capsys.readouterr().out  # every cell is there
    assert (tmp_path / "similarity.csv").read_bytes() == before


def test_it_is_listed() -> None:
    assert EXPERIMENTS["brain"] is brain.run
