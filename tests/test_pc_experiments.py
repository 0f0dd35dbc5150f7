"""pc-mnist and tableA4: what they choose and what they hold out; the runs themselves are long."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import localssl
from localssl import encoders
from localssl.data.sources import drawn
from localssl.evaluate import to_csv
from localssl.experiments import pc_mnist, table_a4, tables
from localssl.experiments.cells import Settings
from localssl.learner import Learner


def test_pc_mnist_tests_every_rule_at_its_best_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[Any, ...]] = []

    def train(settings: Settings, rule: str, lr: float, seed: int, search: bool) -> dict[str, Any]:
        asked.append((rule, lr, seed, search))
        accuracy = 90 + 1000 * lr if search else {"bp": 98.0, "pc": 97.1, "ipc": 96.9}[rule]
        return {"accuracy": accuracy, "images": 1, "seconds": 0.0}

    monkeypatch.setattr(pc_mnist, "train", train)
    pc_mnist.run(Settings(tmp_path, threads=1))
    finals = [call for call in asked if not call[3]]
    assert finals == [(r, max(rates), s, False) for r, rates in pc_mnist.RATES.items() for s in (0, 1)]
    assert {len(rates) for rates in pc_mnist.RATES.values()} == {3}
    shown = capsys.readouterr().out
    assert "yes" in next(line for line in shown.splitlines() if "pc" in line and "97.1" in line)
    assert "no" in next(line for line in shown.splitlines() if "ipc" in line and "96.9" in line)
    asked.clear()
    pc_mnist.run(Settings(tmp_path, threads=1))  # all parts are there
    assert asked == []


@pytest.mark.parametrize("objective", table_a4.OBJECTIVES)
def test_with_one_step_eta_h_does_nothing(objective: str) -> None:
    """Weights learn from the states as they are before their first step; so the grid runs T = 1 once."""
    weights: list[list[torch.Tensor]] = []
    for steps, eta_h in ((1, 0.01), (1, 0.5), (2, 0.01), (2, 0.5)):
        torch.manual_seed(0)
        rule = localssl.rules.get("ipc", objective=objective, steps=steps, eta_h=eta_h)
        learner = Learner(encoders.vgg5(width=0.25), rule, (1, 16, 16))
        optimiser = torch.optim.Adam(learner.parameters(), lr=1e-3)
        for _ in range(3):
            a, b = torch.rand(2, 8, 1, 16, 16)
            for _ in learner.updates(a, b, labels=torch.arange(8)):
                optimiser.step()
                optimiser.zero_grad()
        weights.append([p.detach() for p in learner.parameters()])
    same = [all(map(torch.equal, *pair)) for pair in (weights[:2], weights[2:])]
    assert same == [True, False]


def test_table_a4_runs_one_step_once_and_tells_its_best(tmp_path: Path) -> None:
    assert [point[0] for point in table_a4.points()] == [1, 9, 9, 9, 17, 17, 17]
    assert table_a4.weight_steps("clapp", 9) == 4 * 312 * 9
    assert table_a4.winners(tmp_path) == {}
    rows: list[list[object]] = [["untrained", "", "", 0, 99.0]]
    rows += [[o, t, e, 1, a] for o in table_a4.OBJECTIVES for t, e, a in ((1, "any", 50.0), (9, 0.5, 40.0))]
    rows += [["lpl", 17, 0.1, 1, 60.0]]
    to_csv(tmp_path / table_a4.GRID, ["objective", "T", "eta_h", "weight_steps", "accuracy"], rows, "a comment")
    one = {"steps": 1}
    assert table_a4.winners(tmp_path) == {"ce": one, "clapp": one, "lpl": {"steps": 17, "eta_h": 0.1}}


def test_table_a3_takes_what_table_a4_found_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: dict[str, Any] = {}
    monkeypatch.setattr(tables, "_beside", lambda name, rows, *rest: taken.update(rows))  # pyright: ignore[reportUnknownArgumentType, reportUnknownLambdaType]
    tables.table_a3(Settings(tmp_path / "tableA3", threads=1))
    assert taken["CLAPP objective, PC"].label == "ipc"
    found: list[list[object]] = [[o, 9, 0.5, 1, 40.0] for o in table_a4.OBJECTIVES]
    header = ["objective", "T", "eta_h", "weight_steps", "accuracy"]
    (tmp_path / "tableA4").mkdir()
    to_csv(tmp_path / "tableA4" / table_a4.GRID, header, found, "a comment")
    tables.table_a3(Settings(tmp_path / "tableA3", threads=1))
    assert taken["CLAPP objective, PC"].label == "ipc eta_h=0.5 steps=9"
    assert taken["CLAPP objective, BP"].label == "bp-clapp++"


def test_table_a4s_held_out_images_were_not_trained_on() -> None:
    total, trained, held = table_a4.TOTAL, table_a4.IMAGES, table_a4.HELD_OUT
    more = drawn(total, trained + held)
    assert np.isin(drawn(total, trained), more).all()
    assert len(more) - trained == held
