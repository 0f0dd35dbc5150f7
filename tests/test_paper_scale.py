"""``reproduce --scale paper`` of the tables: data that are missing are met before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from localssl import cli
from localssl.experiments import tables

from .sources_util import stl10, write_cifar10


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The data sets whose comparison is begun, in which nothing is trained."""
    begun: list[str] = []

    def compare(study: tables.Study, *_: object) -> list[tables.Compared]:
        begun.append(study.data)
        raise KeyboardInterrupt

    monkeypatch.setattr(tables, "compare", compare)
    return begun


@pytest.mark.parametrize("name", ["table2", "tableA3", "fig5"])
def test_missing_data_are_met_first(
    name: str, compared: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """CIFAR-10 is there, and would be trained on for days before STL-10 is asked for."""
    root = tmp_path / "data"
    write_cifar10(root / "cifar-10-batches-bin")
    command = ["reproduce", name, "--scale", "paper", "--out", str(tmp_path / "out"), "--data-root", str(root)]
    assert cli.main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("localssl: stl10 not found: looked for unlabeled_X.bin in ")
    assert compared == []
    assert not (tmp_path / "out").exists()


def test_every_part_of_every_data_set_is_asked_for(
    compared: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of what has cells, which may be all of them, none: a table is made anew without its images."""
    root, out = tmp_path / "data", tmp_path / "out"
    write_cifar10(root / "cifar-10-batches-bin")
    stl10(root, 2, 2, 2)
    command = ["reproduce", "table2", "--scale", "paper", "--out", str(out), "--data-root", str(root)]
    assert cli.main(command) == 2
    assert "tiny-imagenet not found" in capsys.readouterr().err
    (root / "stl10_binary" / "test_X.bin").unlink()
    assert cli.main(command) == 2
    assert "stl10 not found: looked for test_X.bin" in capsys.readouterr().err
    for data in ("stl10", "tiny-imagenet"):
        cells = out / "table2" / "paper" / data / "cells"
        cells.mkdir(parents=True)
        (cells / "untrained-s0.json").write_text("{}", encoding="utf-8")
    assert compared == []
    assert cli.main(command) == 130
    assert compared == ["cifar10"]
