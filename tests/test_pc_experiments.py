"""pc-mnist and tableA4: what they choose and what they hold out; the runs themselves are long."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localssl.data.sources import drawn
from localssl.experiments import pc_mnist, table_a4
from localssl.experiments.cells import Settings


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


def test_table_a4s_held_out_images_were_not_trained_on() -> None:
    total, trained, held = table_a4.TOTAL, table_a4.IMAGES, table_a4.HELD_OUT
    more = drawn(total, trained + held)
    assert np.isin(drawn(total, trained), more).all()
    assert len(more) - trained == held
