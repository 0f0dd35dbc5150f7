"""The page from the paper to the code names only what is there."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

from localssl.experiments import EXPERIMENTS

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")


FIGURES = "1A 1B 1C 1D 1E 2 3A 3B 4A 4B 4C 5 A1 A2"  # of the paper, all of them
TABLES = "1 2 A1 A2 A3 A4"
EQUATIONS = range(1, 12)
STATEMENTS = ("Theorem 3.1", "Corollary 3.2", "Theorem 3.3", "Definition 3.4")


def _counted(page: str, what: str) -> set[str]:
    """What the table's first column says it is about: "equations 5 and 7", "Figure 1A to 1C", one by one."""
    found: set[str] = set()
    for cell in re.findall(r"^\| ([^|]+) \|", page, re.MULTILINE):
        for first, between, last in re.findall(rf"\b{what}s? (A?\d+[A-E]?)(?: (to|and) (\d+[A-E]?))?", cell):
            found |= {first, last} - {""}
            if between == "to" and first.isdigit():
                found |= {str(number) for number in range(int(first), int(last))}
            elif between == "to":
                found |= {first[:-1] + chr(letter) for letter in range(ord(first[-1]), ord(last[-1]))}
    return found


def _found(name: str) -> bool:
    """Whether ``localssl.a.b`` is a module or an attribute of one."""
    module, _, attribute = name.rpartition(".")
    try:
        return hasattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError:
        return False


def test_every_equation_figure_and_table_of_the_paper() -> None:
    assert set(FIGURES.split()) == _counted(PAGE, "Figure")
    assert set(TABLES.split()) == _counted(PAGE, "Table")
    assert {str(number) for number in EQUATIONS} == _counted(PAGE, "equation")
    assert [name for name in STATEMENTS if f"| {name}" not in PAGE] == []
    assert _counted("| Figure 9A to 9C | x |\n| C, equations 9 to 11 |\n", "Figure") == {"9A", "9B", "9C"}


def test_files() -> None:
    names = re.findall(r"`((?:src|tests)/[^`]+)`", PAGE)
    assert len(names) > 20
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_names() -> None:
    names = re.findall(r"`(localssl\.[^`]+)`", PAGE)
    assert len(names) > 10
    assert [name for name in names if not _found(name)] == []
    assert not _found("localssl.losses.no_such_name")


def test_commands_and_links() -> None:
    commands = set(re.findall(r"`reproduce ([A-Za-z0-9-]+)`", PAGE)) - {"X"}
    assert len(commands) > 8
    assert commands <= set(EXPERIMENTS)
    links = re.findall(r"\]\(([^)]+)\)", PAGE)
    assert [link for link in links if not (ROOT / "docs" / link.partition("#")[0]).exists()] == []
