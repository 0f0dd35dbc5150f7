"""Imports point one way: the paragraph in ARCHITECTURE.md against the imports that are written in the source."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import localssl

PACKAGE = Path(localssl.__file__).parent
ARCHITECTURE = Path(__file__).parents[1] / "ARCHITECTURE.md"
OPEN = {"__init__", "__main__"}  # what users enter by: it imports whatever it offers


def module_names() -> list[str]:
    """Every module below the package: "train", "rules", "rules.base"."""
    paths = [path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py")]
    return sorted(".".join(path.parts).removesuffix(".__init__") for path in paths)


MODULES = module_names()


def layers() -> dict[str, int]:
    """The first part of every module's name, and how far from the left it stands in the paragraph."""
    paragraph = re.search(r"Imports point one way: `([^`]+)`", ARCHITECTURE.read_text(encoding="utf-8"))
    assert paragraph is not None
    places = [re.findall(r"[\w.]+", place) for place in paragraph[1].split("→")]
    return {name: depth for depth, names in enumerate(places) for name in names}


def layers_inside() -> dict[str, dict[str, int]]:
    """The same of packages that have a line of their own: "training": {"train": 0, "rehearsal": 0, "loop": 1, …}."""
    lines = re.findall(r"^- of (\w+): `([^`]+)`", ARCHITECTURE.read_text(encoding="utf-8"), re.M)
    places = {package: [re.findall(r"\w+", place) for place in way.split("→")] for package, way in lines}
    return {
        package: {name: depth for depth, names in enumerate(places[package]) for name in names} for package in places
    }


def imports(source: str) -> Iterator[str]:
    """The modules of this package that a source text imports anywhere, in functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (a.name.removeprefix("localssl.") for a in node.names if a.name.startswith("localssl."))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import: write it from localssl on"
            package, _, module = (node.module or "").partition(".")
            if package == "localssl":
                for name in (".".join(filter(None, (module, a.name))) for a in node.names):
                    yield name if name in MODULES else module


def wrong(module: str, source: str) -> list[str]:
    """The imports of a module that do not point to the right of it."""
    place, own = layers(), module.partition(".")[0]
    found = [name for name in imports(source) if name and name.partition(".")[0] != own]
    if own == "oracle":
        return [name for name in found if name != "errors"]
    outside = [name for name in found if place.get(name.partition(".")[0], -1) <= place[own]]
    return outside + wrong_inside(module, source)


def wrong_inside(module: str, source: str) -> list[str]:
    """The imports of a module from its own package that do not point to the right there."""
    package, _, rest = module.partition(".")
    place = layers_inside().get(package)
    if place is None:
        return []
    own = rest.partition(".")[0] or package  # what the package's own file holds has the package's name
    found = [name.split(".")[1] for name in imports(source) if name.startswith(f"{package}.")]
    return [f"{package}.{name}" for name in found if name != own and place.get(name, -1) <= place.get(own, 99)]


def test_every_module_has_a_place() -> None:
    assert {name.partition(".")[0] for name in MODULES} - OPEN - {"oracle"} == set(layers())
    assert set(layers_inside()) == {"cli", "training", "runs"}
    for package, place in layers_inside().items():
        assert {name.split(".")[1] for name in MODULES if name.startswith(f"{package}.")} == set(place) - {package}


@pytest.mark.parametrize("module", [name for name in MODULES if name not in OPEN])
def test_imports_point_to_the_right(module: str) -> None:
    path = PACKAGE.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    assert not wrong(module, file.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("module", "source", "found"),
    [
        ("rules.clapp", "from localssl.training.train import train", ["training.train"]),
        ("rules.clapp", "from localssl import training", ["training"]),
        ("rules.clapp", "def later():\n    import localssl.learner", ["learner"]),
        ("rules.clapp", "from localssl.rules.base import Rule", []),
        ("export", "from localssl.report import page", ["report.page"]),  # neighbours do not know each other
        ("training.loop", "from localssl.training.train import train", ["training.train"]),
        ("training.pipeline.worker", "from localssl.training.loop import Loop", ["training.loop"]),
        ("training.pipeline.worker", "from localssl.training.pipeline.stage import Stage", []),
        ("runs.checkpoint", "from localssl.runs import config, run", ["runs.run"]),
        ("readout", "from localssl.oracle import result", ["oracle.result"]),
        ("oracle.scores", "from localssl.rules import get", ["rules"]),
        ("oracle.scores", "from localssl.losses import hinge", ["losses"]),
    ],
)
def test_a_wrong_import_is_seen(module: str, source: str, found: list[str]) -> None:
    assert wrong(module, source) == found


ALONE = """
import importlib, os, sys
import altair, kornia, lightning_fabric, matplotlib.pyplot, scipy.stats, sklearn, torch  # once, for all that is forked
for unit in sys.argv[1:]:
    package, *modules = unit.split(",")
    importlib.import_module(package)
    rest = [module for module in modules if module not in sys.modules]
    for module in rest:
        if (child := os.fork()) == 0:
            importlib.import_module(module)
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            sys.exit(f"{module} cannot be imported first")
    for module in rest:
        importlib.import_module(module)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks a process for every module")
def test_modules_import_alone() -> None:
    """No module leans on another of its package having been imported first: none is part of a circle.

    What stands to the right of a package is there already. It has been loaded without the package, so that no circle
    leads through both.
    """
    units: dict[str, list[str]] = {}
    for name in sorted(MODULES, key=lambda name: -layers().get(name.partition(".")[0], 0)):
        if name not in OPEN:
            unit = name.partition(".")[0]
            units.setdefault(unit, [f"localssl.{unit}"]).append(f"localssl.{name}")
    assert {"experiments", "training", "oracle"} <= set(units)
    words = [",".join(names) for names in units.values()]
    done = subprocess.run([sys.executable, "-c", ALONE, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
