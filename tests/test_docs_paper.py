"""The page from the paper to the code names only what is there."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

from localssl.experiments import EXPERIMENTS

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")


def _found(name: str) -> bool:
    """Whether ``localssl.a.b`` is a module or an attribute of one."""
    module, _, attribute = name.rpartition(".")
    try:
        return hasattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError:
        return False


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
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []
