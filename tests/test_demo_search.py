"""The demo's search: what it runs again, and what it writes; the runs themselves are made up."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from localssl.data.specs import spec_for
from localssl.experiments import demo, demo_search
from localssl.experiments.cells import Cell, Settings


def test_the_best_two_choices_are_repeated_with_every_rule_at_its_best_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    best = {str(rule): lr for rule, lr in zip(demo.RULES, demo_search.RATES, strict=True)}

    def run_cells(cells: Sequence[Cell], settings: Settings) -> list[dict[str, Any]]:
        asked.append([cell.name for cell in cells])
        records: list[dict[str, Any]] = []
        for cell in cells:
            c = cell.config
            assert c.view_strength is not None
            assert c.epochs is not None
            gain = c.epochs * c.view_strength - 1000 * abs(c.lr - best[str(c.rule)]) if c.epochs else 0
            views = spec_for("digits").augmentation.scaled(c.view_strength)
            config = {"rule": c.rule, "seed": c.seed, "lr": c.lr, "epochs": c.epochs}
            accuracy = {"1": 50.0 + 0.5 * gain, "10": 40.0 + gain}
            augmentation = dataclasses.asdict(views)
            records.append(
                {"accuracy": accuracy, "protocol": "how", "config": {**config, "augmentation": augmentation}}
            )
        return records

    monkeypatch.setattr(demo_search, "run_cells", run_cells)
    demo_search.run(Settings(tmp_path))
    grid, again = asked
    assert len(grid) == 1 + len(demo.RULES) * 2 * 3 * 2
    assert grid[0] == "untrained-s100"
    rates = {rule: f"{rate:g}" for rule, rate in best.items()}
    choices = [("0.5", 40), ("1", 40)]  # 20 epochs of full views gain as much as 40 of weaker ones: the first met
    assert again[0] == "untrained-s101"
    assert again[1:] == [f"{rule}-v{v}-lr{rates[rule]}-s101-e{e}" for v, e in choices for rule in demo.RULES]
    lines = (tmp_path / "search.csv").read_text().splitlines()
    assert lines[:2] == ["# how", "seed,rule,view_strength,epochs,lr,accuracy_1,margin_1,accuracy_10,margin_10"]
    assert len(lines) == 2 + 36 + 6
    assert lines[-3] == "101,clapp++,1.0,40,0.0005,70.0,20.0,80.0,40.0"
