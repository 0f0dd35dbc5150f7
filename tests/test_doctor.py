"""localssl doctor: what it finds, what it advises, and its exit status."""

from __future__ import annotations

import importlib.metadata
import os
import tomllib
from pathlib import Path

import pytest

from localssl import checkup, rules
from localssl.cli import main
from localssl.learner import Learner
from localssl.system import devices

from .sources_util import pictures, write_idx

Capture = pytest.CaptureFixture[str]


def found(about: str, root: Path | None = None) -> dict[str, checkup.Finding]:
    return {f.name: f for f in checkup.look(root, speed=about == "speed") if f.about == about}


def test_a_machine_that_can_work(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOCALSSL_DATA", raising=False)
    assert main(["doctor", "--quick"]) == 0
    said = capsys.readouterr().out
    for heading in ("versions:", "devices:", "rules:", "data:", "disk:", "what to do:"):
        assert f"\n{heading}" in f"\n{said}"
    assert "clapp++dfb" in said
    assert f"{devices.cores()} core" in said
    assert f"torch: {importlib.metadata.version('torch')}" in said
    assert "digits: found, 1,297 training images" in said
    assert "\n   cifar10: localssl train --rule clapp --data cifar10 --download --dry-run\n" in said
    assert said.endswith("localssl can work here\n")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs a machine that keeps processes to some cores")
def test_cores_are_those_that_may_be_used() -> None:
    mine = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(mine)})
        assert found("devices")["cpu"].found.startswith("1 core, PyTorch uses")
    finally:
        os.sched_setaffinity(0, mine)


def test_data_that_are_there(tmp_path: Path) -> None:
    write_idx(tmp_path / "MNIST" / "raw", "train", pictures(12, 28, 28)[..., 0], [i % 10 for i in range(12)])
    data = found("data", tmp_path)
    assert data["mnist"].found == "found, 12 training images"
    assert data["mnist"].advice == ""
    assert not data["cifar10"].broken


def test_a_package_that_is_too_old(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.0" if name == "torch" else real(name))
    assert main(["doctor", "--quick"]) == 1
    said = capsys.readouterr()
    assert " ! torch: 1.0, needed is >=2.9" in said.out
    assert "torch: pip install 'torch>=2.9'" in said.out
    assert said.err == "localssl: localssl cannot work as it is: torch\n"


def test_packages_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name in ("onnxruntime", "kornia"):
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    versions = found("versions")
    assert versions["kornia"].broken
    assert not versions["onnxruntime"].broken  # an extra
    assert versions["onnxruntime"].advice == "pip install 'localssl[onnx]', for localssl export --onnx"


def test_a_rule_that_is_broken(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    real = rules.get

    def get(name: str) -> rules.Rule:
        if name == "lpl":
            raise RuntimeError("no such luck")
        return real(name)

    monkeypatch.setattr(rules, "get", get)
    (rule,) = found("rules").values()
    assert rule.broken
    assert rule.found == "lpl: RuntimeError: no such luck"


def test_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup, "SECONDS", 0.01)
    monkeypatch.setattr(checkup, "WIDTH", 0.02)
    monkeypatch.setattr(checkup, "BATCH", 2)
    assert all(float(f.found.split(" images/s")[0]) > 0 for f in found("speed").values())

    def broken(*arguments: object) -> None:
        raise RuntimeError("illegal instruction")

    monkeypatch.setattr(Learner, "updates", broken)
    (finding,) = found("speed").values()
    assert finding.broken
    assert "illegal instruction" in finding.found


def test_bad_input(tmp_path: Path, capsys: Capture) -> None:
    assert main(["doctor", "--data-root", str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err == f"localssl: --data-root {tmp_path / 'nowhere'} is no folder\n"


def test_every_extra_is_known() -> None:
    """One that is not would be taken for something that localssl cannot do without."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(checkup.EXTRAS) == set(project["optional-dependencies"])
