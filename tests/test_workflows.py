"""The workflow file asks for what there is: Pythons that are declared, make targets, files of tests."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def jobs(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]


def pythons(job: dict[str, Any]) -> list[str]:
    return job.get("strategy", {}).get("matrix", {}).get("python", [])


def test_every_python_and_system_has_its_tests() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = [c.rpartition(" ")[2] for c in project["classifiers"] if re.search(r":: 3\.\d+$", c)]
    found = jobs(ROOT / ".github" / "workflows" / "tests.yml")
    assert pythons(found["suite"]) == pythons(found["windows"]) == declared
    assert set(pythons(found["wheel"])) <= set(declared)
    systems = {*found["suite"]["strategy"]["matrix"]["system"], found["windows"]["runs-on"]}
    assert systems == {"ubuntu-latest", "macos-latest", "windows-latest"}
    assert project["requires-python"] == f">={declared[0]}"


def test_what_is_skipped_without_another_extra_has_a_job() -> None:
    """Tests name the extra that they miss; what ``dist`` brings is for the wheel's own job."""
    skipping = {}
    for file in (ROOT / "tests").glob("test_*.py"):
        if found := set(re.findall(r"here: pip install '\.\[(\w+)\]'", file.read_text(encoding="utf-8"))):
            skipping[f"tests/{file.name}"] = found - {"test", "dist"}
    wanted = {file: extras for file, extras in skipping.items() if extras}
    assert len(wanted) >= 2
    said = "\n".join(
        step.get("run", "") for step in jobs(ROOT / ".github" / "workflows" / "tests.yml")["extras"]["steps"]
    )
    (installed,) = re.findall(r'pip install -e "\.\[([\w,]+)\]"', said)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(installed.split(",")) == {"test"}.union(*wanted.values())
    assert set(installed.split(",")) <= set(project["optional-dependencies"])
    assert set(re.findall(r"tests/\w+\.py", said)) == set(wanted)


def test_what_needs_a_browser_has_a_job() -> None:
    needing = {
        f"tests/{file.name}"
        for file in (ROOT / "tests").glob("test_*.py")
        if re.search(r"^@needs_chromium$", file.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert len(needing) >= 3
    steps = jobs(ROOT / ".github" / "workflows" / "tests.yml")["browser"]["steps"]
    said = "\n".join(step.get("run", "") for step in steps)
    assert "install -y chromium chromium-driver" in said
    assert set(re.findall(r"tests/\w+\.py", said)) == needing


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_what_is_called_is_there(path: Path) -> None:
    steps = [step for job in jobs(path).values() for step in job["steps"]]
    said = "\n".join(step.get("run", "") for step in steps)
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    called = re.findall(r"\bmake ([\w-]+)", said)
    files = re.findall(r"\btests/\w+\.py", said)
    assert called or files
    assert set(called) <= targets
    assert [file for file in files if not (ROOT / file).is_file()] == []
    used = [step["uses"] for step in steps if "uses" in step]
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", name) for name in used)
