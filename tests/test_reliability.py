"""The table of promises is made from the results that are committed, and its commands name what exists."""

from __future__ import annotations

import importlib
import json
import math
import re
from pathlib import Path
from types import ModuleType

import pytest

from . import test_vanished

ROOT = Path(__file__).parents[1]


@pytest.fixture
def reliability(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("reliability")


def test_up_to_date(reliability: ModuleType) -> None:
    text = reliability.PAGE.read_text(encoding="utf-8")
    assert reliability.updated(text) == text, "write it anew: python benchmarks/reliability.py"


def test_commands_name_what_exists(reliability: ModuleType) -> None:
    named = re.findall(r"(?:tests|benchmarks)/\w+\.py", " ".join(row[-1] for row in reliability.rows()))
    assert len(named) >= 9
    assert [file for file in named if not (ROOT / file).is_file()] == []


def test_every_case_of_a_vanished_folder_counts(reliability: ModuleType) -> None:
    (row,) = [row for row in reliability.rows() if "vanishes" in row[0]]
    assert "tests/test_vanished.py" in row[-1]
    tests = [test for name, test in vars(test_vanished).items() if name.startswith("test_")]
    sizes = [[len(mark.args[1]) for mark in getattr(test, "pytestmark", ())] for test in tests]
    assert row[2] == f"{sum(map(math.prod, sizes))} cases"


def test_results_are_read(reliability: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reliability, "HERE", tmp_path)
    assert reliability.kills() == ("not measured yet", "not measured yet")
    (tmp_path / "results").mkdir()
    found = {"kills": 7, "moments": {"between checkpoints": 7}, "finished": 3, "different": 1}
    (tmp_path / "results" / "kills.json").write_text(json.dumps(found))
    assert reliability.kills() == ("7 kills (7 between checkpoints)", "3 finished runs, 1 different")
    assert reliability.large_data() == ("not measured yet", "not measured yet")
    order = {"steps": 8, "stopped_at": 3, "as_ordered": True, "each_once": True, "growth_mib": 0.5}
    large = {"images": 64_000, "mib": 1024, "order": order, "rows": [{"size": 32, "ratio": 0.91}]}
    (tmp_path / "results" / "large_data.json").write_text(json.dumps(large))
    assert reliability.large_data() == (
        "64,000 images, 1,024 MiB, 8 steps, stopped at 3",
        "as ordered; memory +0.5 MiB from the tenth step on; speed of that in memory: 0.91 at 32 pixels",
    )
    order["as_ordered"] = False
    (tmp_path / "results" / "large_data.json").write_text(json.dumps(large))
    assert reliability.large_data()[1].startswith("**not as ordered**; ")


def test_what_takes_hours_is_in_make_soak(reliability: ModuleType) -> None:
    """Every benchmark of the table is, with its command."""
    soak = re.split(r"\n(?=\S)", (ROOT / "Makefile").read_text(encoding="utf-8").partition("\nsoak:")[2])[0]
    for row in reliability.rows():
        for script in re.findall(r"benchmarks/\w+\.py", row[-1]):
            assert script in soak, script
