"""Prints the lowest versions that pyproject.toml allows as constraints for pip: ``make test-lower`` installs them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def constraints(requirements: list[str]) -> list[str]:
    """``["torch>=2.9", "localssl[onnx]"]`` to ``["torch==2.9"]``; anything else than a lower bound is refused."""
    lines: list[str] = []
    for requirement in requirements:
        if requirement.startswith("localssl["):
            continue
        match = re.fullmatch(r"([\w.-]+)(\[[\w,-]+\])?>=([\d.]+)", requirement)
        if match is None:
            raise ValueError(f"{requirement} in {PROJECT} has no plain lower bound")
        lines.append(f"{match[1]}=={match[3]}")
    return lines


def declared() -> list[str]:
    """All requirements of the project, those of its extras too."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    return [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]


if __name__ == "__main__":
    print("\n".join(constraints(declared())))
