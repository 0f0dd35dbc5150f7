"""The examples run."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from localssl import rules
from localssl.config import TrainConfig
from localssl.train import train

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def test_own_rule(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "own_rule.py"))["main"](steps=21)
    printed = capsys.readouterr().out
    assert "step 20" in printed
    assert "block 5: cosine with backpropagation 1.00" in printed


def test_align_own(capsys: pytest.CaptureFixture[str]) -> None:
    rows = runpy.run_path(str(EXAMPLES / "align_own.py"))["main"](steps=5)
    printed = capsys.readouterr().out
    assert "Agree  block 3:  1.00" in printed
    assert {row.rule for row in rows} == {"Agree", "clapp"}


def test_my_rule(tmp_path: Path) -> None:
    said: list[str] = []
    name = f"{EXAMPLES / 'my_rule.py'}:MyRule"
    run = train(TrainConfig(rule=name, data="digits", out=tmp_path / "run", epochs=1, width=0.25), said.append)
    assert run.config.make_rule() == rules.get(name)
    assert not [line for line in said if "warning" in line]
