"""The tables of the documentation that are made from the code are up to date."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from localssl.report import docs_tables

from .train_util import BUILT_IN

DOCS = Path(__file__).resolve().parents[1] / "docs"


@pytest.mark.parametrize("name", [name for name in docs_tables.TABLES if name != "certificates"])
def test_up_to_date(name: str) -> None:
    """All but the certificates, which ``test_certificate.py`` holds against the page rule by rule."""
    text = (DOCS / docs_tables.TABLES[name][0]).read_text(encoding="utf-8")
    assert docs_tables.updated(text, name) == text, "write it anew: python -m localssl.report.docs_tables docs"


def test_rules_from_their_declarations() -> None:
    table = docs_tables.rules_table()
    lines = {line.split("`")[1]: line for line in table.splitlines()[2:]}
    assert sorted(BUILT_IN) == list(lines)
    assert lines["clapp++both"].startswith(
        "| `clapp++both` | local | lateral: own layer, feedback: last layer | trained | hinge; type 2 | two views |  | "
    )
    assert lines["bp-infonce"].startswith("| `bp-infonce` | backprop | other view, with gradient | HᵀH, H trained | ")
    assert lines["clapp++both"].count("](results/") >= 3
    for line in lines.values():
        linked = re.findall(r"\]\(([^)]+)\)", line)
        assert linked[0].startswith("../src/localssl/rules/")
        assert all((DOCS / link).exists() for link in linked), line
        assert (len(linked) == 1) == line.endswith("| not yet |")
    assert "| local | ξ, fixed and random | I | softplus(−θx), z of length one; type 1 | " in lines["phyll"]
    place = docs_tables.HEADER.index("f, type") + 1
    for name, line in lines.items():
        assert line.split(" | ")[place - 1].strip(), name  # no rule leaves it open
    assert all(line.replace("\\|", "").count("|") == len(docs_tables.HEADER) + 1 for line in lines.values())


def test_studies_of_a_rule_are_those_of_its_own_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of the untrained encoder, whose cell names the rule that it was built under, nor of a trial."""
    results = tmp_path / "results"
    cells = DOCS / "results" / "compare-cifar10" / "cells"
    trial = next(path.name for path in cells.glob("search-clapp++dfb-lr*.json"))
    for study, name in (("a", "untrained-s0.json"), ("b", trial), ("c", "clapp++-s0.json")):
        (results / study / "cells").mkdir(parents=True)
        shutil.copy(cells / name, results / study / "cells")
    for study in ("scff-mnist", "scff-cifar10"):
        (results / study).mkdir()
        (results / study / "x.csv").touch()
    (results / "lpl-cifar10").mkdir()  # begun, no numbers yet
    monkeypatch.setattr(docs_tables.study_tables, "RESULTS", results)
    found = docs_tables._results()  # pyright: ignore[reportPrivateUsage]
    assert found == {"scff": ["scff-mnist", "scff-cifar10"], "clapp++": ["c"]}


def test_written_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {name: docs_tables.TABLES[name] for name in ("rules", "checks", "step", "memory")}
    monkeypatch.setattr(docs_tables, "TABLES", few)
    for page, _ in docs_tables.TABLES.values():
        shutil.copy(DOCS / page, tmp_path / page)
    page = tmp_path / "rules.md"
    whole = page.read_text(encoding="utf-8")
    page.write_text(whole.replace("| `clapp++both` | local |", "| `gone` | local |"), encoding="utf-8")
    docs_tables.main(tmp_path)
    assert page.read_text(encoding="utf-8") == whole
    with pytest.raises(ValueError, match="no marks"):
        docs_tables.updated("nothing", "rules")


def test_how_many_rules_there_are() -> None:
    """Pages and README say it in words."""
    n = len(BUILT_IN)
    root = Path(__file__).resolve().parents[1]
    said = {
        "README.md": f"[{n} rules]",
        "docs/rules.md": f"There are {n};",
        "docs/certificate.md": f"of the {n} built-in",
    }
    assert [name for name, text in said.items() if text not in (root / name).read_text(encoding="utf-8")] == []
