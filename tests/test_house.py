"""No program or page over 400 lines without a reason here; tables from one place; no file that git ignores."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MOST = 400
PLACES = ("src", "tests", "benchmarks", "examples", "website")
LONG = {  # to be split where they grow further
    "docs/engine.md": "one subject, the cost of a step, whose sections are compared with each other",
    "docs/hardware.md": "one way from a black box to integers to a rule as data; the file's format is listed whole",
    "docs/many-machines.md": "what changes with the number of processes, one thing with another; two tables are long",
    "tests/test_certificate.py": "one honest and one cheating rule after the other; most of it is those rules",
    "tests/test_check_rule.py": "one broken rule for every check; most of it is those rules",
    "tests/test_compare.py": "one study is trained once and looked at from all sides",
    "tests/test_integers.py": "the slow integer oracle stands beside what it is compared with",
    "tests/test_rules_goodness.py": "two rules with their slow references and one study in small",
    "tests/test_rules_peers.py": "three peers with their inputs, encoders and runs, in one form",
    "tests/test_theory.py": "every statement, and a wrong sign in every statement, on the same random cases",
    "tests/test_train.py": "what one run leaves behind, read from one run",
}


def lengths() -> dict[str, int]:
    """Lines of every Python file of this repository, and of every page of docs/."""
    files = [*(path for place in PLACES for path in (ROOT / place).rglob("*.py")), *(ROOT / "docs").glob("*.md")]
    return {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in files}


def test_no_file_is_too_long_without_a_reason() -> None:
    found = lengths()
    assert len(found) > 200
    assert {name for name, lines in found.items() if lines > MOST} == set(LONG)


def test_one_module_makes_tables_in_markdown() -> None:
    """The line between header and rows, in whatever dialect, stands in no other source."""
    files = (path for place in ("src", "benchmarks", "website") for path in (ROOT / place).rglob("*.py"))
    found = [path for path in files if re.search(r"---[|\"']", path.read_text(encoding="utf-8"))]
    assert [str(path.relative_to(ROOT)) for path in found] == ["src/localssl/markdown.py"]


def training_loops(source: str) -> bool:
    """Whether a source has a loop in which a learner's updates are made and an optimiser steps."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.For | ast.While):
            calls = [
                n.func.attr for n in ast.walk(node) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)
            ]
            if "step" in calls and {"updates", "accumulate_grads"} & set(calls):
                return True
    return False


def test_training_loops_are_those_that_architecture_names() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    section = text.partition("## Training loops")[2].partition("\n## ")[0]
    named = re.findall(r"^- `([\w/]+\.py)`: ", section, re.M)
    package = ROOT / "src" / "localssl"
    found = [p.relative_to(package).as_posix() for p in package.rglob("*.py") if training_loops(p.read_text("utf-8"))]
    assert sorted(found) == sorted(named)


def test_every_folder_of_the_package_is_one() -> None:
    """Without its __init__.py, which .gitignore once held back, a folder is missing from the site and the wheel."""
    folders = {path.parent for path in (ROOT / "src" / "localssl").rglob("*.py")}
    assert [str(folder.relative_to(ROOT)) for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []


@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git here")
def test_git_ignores_no_file_of_the_package() -> None:
    """Ruff passes over what .gitignore names, and the wheel is built without it."""
    files = [str(path.relative_to(ROOT)) for path in (ROOT / "src" / "localssl").rglob("*.py")]
    asked = ["git", "-C", str(ROOT), "check-ignore", "--no-index", *files]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    if done.returncode == 128:
        pytest.skip("this is no checkout")
    assert done.stdout == ""
