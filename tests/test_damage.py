"""Bytes that change on a disk, in the middle of a weight: noticed, and the checkpoint before is taken."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from localssl.runs import checkpoint
from localssl.runs.run import open_run

from .train_util import assert_same_run, last_state, run_tiny, steps
from .util import usage_error


def flip(file: Path, part: bytes) -> None:
    """Twenty bytes from the middle of where ``part`` stands in a file."""
    data = bytearray(file.read_bytes())
    at = data.index(part) + len(part) // 2
    data[at : at + 20] = bytes(byte ^ 0xFF for byte in data[at : at + 20])
    file.write_bytes(data)


def in_a_weight(file: Path) -> None:
    weight = torch.load(file, weights_only=True)["learner"]["encoder.blocks.2.0.weight"]
    flip(file, bytes(weight.untyped_storage()))  # channels last: in another order than the numbers


def in_the_random_numbers(file: Path) -> None:
    flip(file, torch.load(file, weights_only=True)["rng"]["torch"].numpy().tobytes())


def compressed(file: Path) -> None:
    with zipfile.ZipFile(file) as whole:
        parts = {name: whole.read(name) for name in whole.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as small:
        for name, data in parts.items():
            small.writestr(name, data)


@pytest.mark.parametrize("damage", [in_a_weight, in_the_random_numbers, compressed])
def test_a_damaged_checkpoint(damage: Callable[[Path], None], tmp_path: Path) -> None:
    run = run_tiny(tmp_path / "x").path
    last = checkpoint.existing(run)[-1]
    damage(last)
    said: list[str] = []
    again = run_tiny(run, said, resume=True)
    assert said[0] == f"{last.name} cannot be read (BadZipFile: truncated or damaged); trying the one before"
    assert any(line.startswith(f"resuming {run} at step 4") for line in said)
    assert_same_run(again.path, run_tiny(tmp_path / "whole").path)
    for file in checkpoint.existing(run):
        in_a_weight(file)
    with usage_error("no checkpoint in .* can be read"):
        run_tiny(run, resume=True)


def test_a_damaged_encoder(tmp_path: Path) -> None:
    run = run_tiny(tmp_path / "x", epochs=1)
    file = run.path / "encoder.safetensors"
    weights = {name: w.clone() for name, w in load_file(file).items()}  # else they lie in the file
    flip(file, next(iter(weights.values())).numpy().tobytes())
    assert load_file(file).keys() == weights.keys()  # it alone does not notice
    with usage_error("encoder.safetensors is damaged: .*; resume the run to write it anew"):
        open_run(run.path).encoder()
    run_tiny(run.path, resume=True, epochs=1)
    assert all(torch.equal(w, weights[name]) for name, w in open_run(run.path).encoder().state_dict().items())
    save_file(weights, file)  # as it was written before there were sums
    open_run(run.path).encoder()
    assert steps(run.path) == [0, 4]
    assert last_state(run.path)["step"] == 4
