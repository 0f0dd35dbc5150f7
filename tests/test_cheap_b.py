"""cheap-b: what it chooses, what it reuses and how it judges; the runs themselves are long."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from localssl.experiments import cheap_b, screening
from localssl.experiments.cells import Cell, Settings
from localssl.experiments.cheap_b import DENSE, TRIED

from .util import usage_error

ACCURACY = {DENSE: 58.0, "frozen 64": 57.8, "patch-local, frozen 256": 58.4, "low-rank 64": 57.9, "low-rank 16": 50.0}


def test_at_most_eight_and_all_are_trained_alike() -> None:
    assert len(TRIED) == 8
    settings = Settings(Path("x"))
    configs = [cheap_b._cell(settings, name, 0.25, 0, screening.measure).config for name in TRIED]
    assert len({json.dumps([c.lr, c.epochs, c.limit_images, c.patches, c.width, c.rule]) for c in configs}) == 1
    assert len({c.out for c in configs}) == len({c.rule_options for c in configs}) == 8


def test_finalists_are_small_and_the_most_accurate_of_their_kind() -> None:
    """ "patch-local, frozen 256" and "frozen 256", the most accurate, are too large; one kind may have none."""
    assert cheap_b.finalists({**ACCURACY, "frozen 256": 59.0}) == ["frozen 64", "low-rank 64"]
    assert cheap_b.finalists({**ACCURACY, "low-rank 16": 58.0})[1] == "low-rank 16"
    assert cheap_b.finalists({DENSE: 60.0, "low-rank 64": 59.0, "frozen 256": 61.0}) == ["low-rank 64"]


@pytest.mark.parametrize(
    ("losses", "verdict"),
    [
        ([0.1, 0.15, 0.05, 0.1, 0.12], "loses less than 0.3"),
        ([1.1, 1.0, 1.2, 1.1, 0.9], "loses 0.3 or more"),
        ([0.1, 0.9, -0.5, 0.3, 0.2], "not resolved"),
        ([0.1], "not resolved"),
    ],
)
def test_verdict_by_the_paired_interval(losses: list[float], verdict: str) -> None:
    dense = [60.0, 50.0, 55.0, 58.0, 62.0][: len(losses)]  # seeds differ by more than projections do
    found = cheap_b.compared([d - x for d, x in zip(dense, losses, strict=True)], dense)
    assert found[-2:] == [verdict, len(losses)]
    assert found[3] == pytest.approx(sum(losses) / len(losses), abs=1e-3)


def test_shares_of_the_dense_numbers() -> None:
    assert cheap_b.shares(DENSE, 0.25) == [100, 100, 100, 100]
    learnt, held, at_one, held_at_one = cheap_b.shares("frozen 64", 0.25)
    assert learnt < held < 2 * learnt + 1
    assert (at_one, held_at_one) == (pytest.approx(64 * 2 * 32768 / 335_544_320 * 100, abs=0.01), held_at_one)
    assert cheap_b.shares("patch-shared, low-rank 64", 1)[2] < cheap_b.shares("patch-local, low-rank 64", 1)[2]


def fake(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Cells that are not trained; returns the names of those that were asked for."""
    asked: list[str] = []
    settings.out.mkdir()

    def run(cells: list[Cell], _settings: Settings) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for cell in cells:
            asked.append(cell.name)
            name = next(
                n for n in (*TRIED, cheap_b.FACTORED) if screening.file_name(n) == cell.name.rpartition("-s")[0]
            )
            accuracy = ACCURACY.get(name, 40.0) + 0.01 * cell.config.seed
            options = dict(o.split("=") for o in cell.config.rule_options)
            seed, width = cell.config.seed, cell.config.width
            config = {
                "seed": seed,
                "width": width,
                "rule_options": options,
                "engine": "auto",
                "optimizer": cell.config.optimizer or "adam",
            }
            record = {"accuracy": accuracy, "cosines": [0.1] * 6, "protocol": "p", "notes": ["n"], "config": config}
            found.append(record)
        return found

    monkeypatch.setattr(cheap_b, "run_cells", run)
    return asked


def test_from_the_screening_to_the_final(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(tmp_path / "cheap-b", threads=1)
    asked = fake(settings, monkeypatch)
    cheap_b.screen(settings)
    assert len(asked) == len(set(asked)) == 8
    lines = (tmp_path / "cheap-b" / "screen.csv").read_text(encoding="utf-8").splitlines()
    assert [line.split(",")[0].strip('"') for line in lines[2:4]] == [DENSE, "low-rank 64"]
    asked.clear()
    (tmp_path / "cheap-b-final").mkdir()
    cheap_b.final(Settings(tmp_path / "cheap-b-final", threads=1, seeds=2))
    assert asked[:4] == [f"{n}-s{s}" for s in (0, 1) for n in ("frozen-64", "low-rank-64")]
    assert asked[4:] == ["dense-s0", "dense-s1"]
    text = (tmp_path / "cheap-b-final" / "final.csv").read_text(encoding="utf-8")
    assert "frozen 64,57.805" in text


def test_dense_cells_of_better_rule_are_read_where_all_else_is_equal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "better-rule-final" / "cells"
    folder.mkdir(parents=True)
    for seed, width in ((0, 0.25), (1, 0.5)):  # the second one is another run
        config = {
            "seed": seed,
            "width": width,
            "rule_options": {},
            "optimizer": "adam",
            "augmentation": {"kind": "simclr"},
        }
        record = {"accuracy": 70.0, "protocol": "p", "notes": ["n"], "config": config}
        (folder / f"clapp++both-s{seed}.json").write_text(json.dumps(record), encoding="utf-8")
    settings = Settings(tmp_path / "cheap-b-final", threads=1)
    asked = fake(settings, monkeypatch)
    found = cheap_b._records(settings, ["frozen 64"], 0.25, [0, 1], screening.measure_final, "better-rule-final")
    assert asked == ["frozen-64-s0", "frozen-64-s1", "dense-s1"]
    assert [r["accuracy"] for r in found[DENSE]] == [70.0, 58.01]
    asked.clear()
    cheap_b.moment(Settings(settings.out, threads=1, seeds=2))
    assert asked == ["dense-factored-second-moment-s0", "dense-factored-second-moment-s1", "dense-s1"]
    text = (settings.out / "factored-moment.csv").read_text(encoding="utf-8")
    assert '"dense, factored second moment",40.005' in text


def test_the_final_asks_for_the_screening(tmp_path: Path) -> None:
    with usage_error("run localssl reproduce cheap-b first"):
        cheap_b.final(Settings(tmp_path / "cheap-b-final"))
