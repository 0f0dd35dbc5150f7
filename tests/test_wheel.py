"""Wheel and sdist: built, checked, installed and used elsewhere. Skipped where what builds them is not installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from .wheel import SOURCE, check, lacks, needed


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for name in ("build", "hatchling", "twine"):
        pytest.importorskip(name, reason=f"no {name} here: pip install '.[dist]', or make dist")
    out = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(SOURCE.parent)]
    subprocess.run(build, check=True, capture_output=True)
    return out


def test_both_are_whole_and_an_index_would_take_them(dist: Path) -> None:
    files = sorted(dist.iterdir())
    assert [path.suffix for path in files] == [".whl", ".gz"]
    assert {"localssl/py.typed", "localssl/report/templates/page.html"} <= needed()
    assert [lacks(path) for path in files] == [set(), set()]
    checked = [sys.executable, "-m", "twine", "check", "--strict", *map(str, files)]
    subprocess.run(checked, check=True, capture_output=True)


def test_a_file_that_is_not_there_is_seen(dist: Path, tmp_path: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as whole, zipfile.ZipFile(tmp_path / wheel.name, "w") as part:
        for name in whole.namelist():
            if not name.endswith("page.css"):
                part.writestr(name, whole.read(name))
    shutil.copy(next(dist.glob("*.tar.gz")), tmp_path)
    with pytest.raises(SystemExit, match=r"lacks localssl/report/templates/page\.css"):
        check(tmp_path)


def test_the_wheel_works_where_the_repository_is_not(dist: Path) -> None:
    check(dist)
