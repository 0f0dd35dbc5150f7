"""Files of format 1, as the first version and a later one wrote them, are read for ever (tests/fixtures/format-1)."""

from __future__ import annotations

import hashlib
import json
import runpy
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import localssl
from localssl.cli import main
from localssl.runs import checkpoint, flagfile, metrics
from localssl.runs.config import RunConfig, TrainConfig
from localssl.runs.manifest import environment
from localssl.runs.run import manifest_of

from .train_util import assert_same, rows, steps, weights

FILES = Path(__file__).parent / "fixtures" / "format-1"
READS = runpy.run_path(str(FILES.parents[2] / "examples" / "rule_interpreter.py"))
SUMS = {  # files that a test may fail on, but that nobody writes anew
    "first": "bcf7589687db99adf747fca3090a61d470aeb145bd4c400e2b6191f15076be1b",
    "later": "e16e3c7ec9283c6df99cf5d876034db3c898150a07130d1764c644687b616b7f",
    "rule.json": "58a83363be093534fe1d748fd1528608a1618306dbe7afe101f1f4acde915b06",
}
runs = pytest.mark.parametrize("name", ["first", "later"])


def copy(name: str, folder: Path) -> Path:
    """A run's folder to write into."""
    return Path(shutil.copytree(FILES / name, folder / name))


@pytest.mark.parametrize("name", SUMS)
def test_the_files_are_what_they_were(name: str) -> None:
    found = hashlib.sha256()
    for path in sorted([FILES / name, *(FILES / name).rglob("*")]):
        if path.is_file():
            found.update(path.relative_to(FILES).as_posix().encode() + b"\0" + path.read_bytes())
    assert found.hexdigest() == SUMS[name], "format 1 never changes: put the files back, and mend the reader"


@runs
def test_configuration(name: str) -> None:
    config = localssl.open_run(FILES / name).config
    assert (config.rule, config.data, config.epochs, config.batch_size) == ("clapp++dfb", "digits", 2, 16)
    assert (config.lr, config.optimizer, config.seed, config.limit_images) == (0.01, "adam", 0, 64)
    assert config.encoder == {"name": "vgg5", "width": [1, 2, 2, 3, 3], "in_channels": 1}
    assert (config.patches, config.input_shape, config.mean) == ((4, 4, 4, 2, 1), (1, 16, 16), (0.3106,))
    assert (config.augmentation.kind, config.augmentation.scale) == ("affine", (0.8, 1.2))
    assert config.engine == {"first": "autograd", "later": "hebbian"}[name]
    assert RunConfig.from_yaml(config.to_yaml(), "written anew") == config


@runs
def test_encoder(name: str) -> None:
    encoder = localssl.load(FILES / name)
    assert_same(dict(encoder.state_dict()), load_file(FILES / name / "encoder.safetensors"))
    assert encoder.preprocess is not None
    z = encoder(encoder.preprocess(torch.full((2, 1, 16, 16), 79, dtype=torch.uint8)))
    assert [tuple(each.shape[:2]) for each in z] == [(2, 1), (2, 2), (2, 2), (2, 3), (2, 3)]


@runs
def test_checkpoint(name: str) -> None:
    state, notes = checkpoint.read_last(FILES / name)  # with weights_only=True
    assert state is not None
    assert (state["format"], state["step"], notes) == (1, 4, [])
    learner, step = localssl.open_run(FILES / name).trained_learner()
    assert step == 4
    assert_same(dict(learner.state_dict()), dict(state["learner"]))


@runs
def test_metrics(name: str) -> None:
    found = metrics.read(FILES / name)
    assert [(row["step"], row["epoch"]) for row in found] == [("1", "0.25"), ("4", "1.0"), ("8", "2.0")]
    assert [row["knn"] for row in found] == ["", "64.0625", "62.5"]


@runs
def test_going_on(name: str, tmp_path: Path) -> None:
    """From the checkpoint of step 4 to the weights and rows of step 8 that are there already."""
    run = copy(name, tmp_path)
    assert main(["train", "--resume", "--out", str(run), "--threads", "1"]) == 0
    assert steps(run) == [4, 8]
    assert [row["step"] for row in rows(run)] == ["1", "4", "8"]
    if environment()["machine"] != manifest_of(FILES / name, "environment")["machine"]:
        return  # the last digits differ there, and grow from step to step
    expected = load_file(FILES / name / "encoder.safetensors")
    for key, value in weights(run).items():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=1e-3)
    last, then = metrics.read(run)[-1], metrics.read(FILES / name)[-1]
    assert float(last["loss"]) == pytest.approx(float(then["loss"]), abs=1e-5)
    assert main(["train", "--resume", "--out", str(run), "--epochs", "3", "--threads", "1"]) == 0
    assert steps(run) == [8, 12]


@runs
def test_commands(name: str, tmp_path: Path) -> None:
    run = copy(name, tmp_path)
    for command in (
        f"probe {run} --limit-images 100 --threads 1",
        f"align {run} --batches 2 --batch-size 8",
        f"report {run} --images 20",
        f"export {run} --rule --out {tmp_path / 'rule.json'}",
        f"export {run} --embeddings --data digits --out {tmp_path / 'z.npy'}",
        f"train --config {run / 'config.yaml'} --epochs 0 --threads 1 --out {tmp_path / 'again'}",
    ):
        assert main(command.split()) == 0, command
    again, config = localssl.open_run(tmp_path / "again").config, localssl.open_run(run).config
    assert again.differences(config) == ["epochs 0 (there: 2)"]


def test_flags(tmp_path: Path) -> None:
    assert flagfile.read(FILES / "later", TrainConfig) == {
        **{"rule": "clapp++dfb", "data": "digits", "epochs": 2, "width": 0.05, "lr": 0.01},
        **{"batch_size": 16, "limit_images": 64, "threads": 1},
    }
    out = tmp_path / "x"
    assert main(["train", "--config", str(FILES / "later"), "--epochs", "0", "--out", str(out)]) == 0
    assert localssl.open_run(out).config.batch_size == 16


def test_rule() -> None:
    rule = json.loads((FILES / "rule.json").read_text(encoding="utf-8"))
    assert (rule["format"], rule["version"], rule["rule"]["name"]) == ("localssl rule", 1, "clapp")
    (vectors,) = rule["vectors"]
    assert max(READS["deviation"](*pair) for pair in READS["steps"](rule, vectors)) < 1e-9
