"""``train --expect``: a run is repeated bit for bit, and whatever differs is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from localssl.cli import main
from localssl.runs import checkpoint, repeat

from .train_util import run_tiny, steps

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return run_tiny(tmp_path / "x", rule="clapp++dfb", rule_options=("negatives=random",)).path


def said(capsys: Capture, line: str) -> tuple[int, list[str], str]:
    capsys.readouterr()
    status = main(line.split())
    shown = capsys.readouterr()
    return status, shown.out.splitlines(), shown.err


def test_repeated(run: Path, capsys: Capture) -> None:
    status, lines, errors = said(capsys, f"train --config {run}/config.yaml --expect {run}")
    assert (status, errors) == (0, "")
    count = len(checkpoint.read_last(run)[0]["learner"])  # pyright: ignore[reportOptionalSubscript]
    assert lines[-1] == f"as in {run}: 3 rows of metrics, {count} tensors, bit for bit"
    assert not [line for line in lines if line.startswith("differs")]
    again = run.with_name("x-again")
    assert (again / "config.yaml").read_text() == (run / "config.yaml").read_text()
    assert f"--config {run}/config.yaml" in json.loads((again / "manifest.json").read_text())["begun"]["commands"][0]
    status, _, errors = said(capsys, f"train --expect {run}")  # once more, into the same folder
    assert status == 2
    assert "x-again holds a run already" in errors


def test_another_seed_is_no_repetition(run: Path, tmp_path: Path, capsys: Capture) -> None:
    flags = f"--seed 1 --out {tmp_path / 'y'} --config {run}/config.yaml"
    status, lines, errors = said(capsys, f"train --expect {run} {flags}")
    assert status == 1
    assert f"differs from {run}: setting seed 1 (there: 0)" in lines
    assert any(line.startswith(f"not as in {run}: step 1: loss ") for line in lines)
    assert "does not repeat" in errors
    assert errors.count("\n") == 1


def test_circumstances_are_told_and_are_no_failure(run: Path, tmp_path: Path, capsys: Capture) -> None:
    file = run / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["environment"] |= {"torch": "2.0.0", "machine": "PDP-11", "torchvision": "0.1", "cpu": "KA11", "cores": 0}
    manifest["data"]["fingerprint"] = "other"
    manifest["processes"] = 4
    file.write_text(json.dumps(manifest))
    status, lines, _ = said(capsys, f"train --expect {run}")
    assert status == 0
    parts = ("torch '", "machine '", "torchvision '", "cpu '", "cores ")
    for text in (*(f"environment {part}" for part in parts), "data fingerprint '", "processes 1 (there: 4)"):
        assert any(line.startswith(f"differs from {run}: {text}") for line in lines), text


def test_a_manifest_from_before_packages_and_processors_were_named(run: Path, tmp_path: Path) -> None:
    other = run_tiny(tmp_path / "y", rule="clapp++dfb", rule_options=("negatives=random",)).path
    file = run / "manifest.json"
    manifest = json.loads(file.read_text())
    known = ("localssl", "python", "torch", "threads", "machine", "cuda", "git")
    manifest["environment"] = {key: manifest["environment"][key] for key in known} | {"torch": "2.0.0"}
    file.write_text(json.dumps(manifest))
    for one, expected in ((run, other), (other, run)):
        (line,) = repeat.compare(one, expected).circumstances
        assert line.startswith("environment torch '")


def test_a_package_that_only_one_has_is_told(run: Path, tmp_path: Path) -> None:
    other = run_tiny(tmp_path / "y", rule="clapp++dfb", rule_options=("negatives=random",)).path
    file = run / "manifest.json"
    manifest = json.loads(file.read_text())
    assert {"numpy", "torchvision", "lightning-fabric", "pillow", "safetensors"} <= manifest["environment"].keys()
    del manifest["environment"]["torchvision"]
    file.write_text(json.dumps(manifest))
    (line,) = repeat.compare(other, run).circumstances
    assert line.startswith("environment torchvision '")
    assert line.endswith("(there: None)")


def test_a_changed_weight_and_a_lost_row_are_seen(run: Path, tmp_path: Path) -> None:
    other = run_tiny(tmp_path / "y", rule="clapp++dfb", rule_options=("negatives=random",)).path
    assert repeat.compare(other, run).numbers == []
    state, _ = checkpoint.read_last(other)
    assert state is not None
    weight = state["learner"]["encoder.blocks.2.0.weight"]
    weight[0, 0, 0, 0] = torch.nextafter(weight[0, 0, 0, 0], torch.tensor(9.0))
    checkpoint.save(other, state)
    table = (other / "metrics.csv").read_text().splitlines(keepends=True)
    (other / "metrics.csv").write_text("".join(table[:-1]))
    numbers = repeat.compare(other, run).numbers
    assert numbers[0] == "step 8: no such row"
    assert numbers[1].startswith("encoder.blocks.2.0.weight differs by up to ")
    assert len(numbers) == 2


def test_refused(run: Path, tmp_path: Path, capsys: Capture) -> None:
    status, _, errors = said(capsys, f"train --expect {tmp_path}/nowhere")
    assert (status, "no run in" in errors) == (2, True)
    status, _, errors = said(capsys, f"train --config {run}/config.yaml --resume --out {run}")
    assert (status, "--config begins a run" in errors) == (2, True)
    status, _, errors = said(capsys, f"train --config {run}/nothing.yaml --out {tmp_path}/z")
    assert (status, "nothing.yaml: there is no such file" in errors) == (2, True)
    assert steps(run) == [4, 8]
