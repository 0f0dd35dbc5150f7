"""What may change when a run goes on, what must not, and what is found again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from localssl.data.specs import Augmentation
from localssl.runs import checkpoint
from localssl.runs.config import RunConfig, TrainConfig
from localssl.training.train import train

from .sources_util import encoded, pictures
from .train_util import (
    SMALL_VGG,
    assert_same,
    assert_same_run,
    encoder_bytes,
    folder,
    hooked,
    last_state,
    rows,
    run_tiny,
    steps,
    stop_at,
    tiny,
)
from .util import usage_error


def test_resume_without_rule_and_data(tmp_path: Path) -> None:
    whole = hooked(tmp_path / "whole", {}, precision="bf16-mixed")
    stop_at(6, tmp_path / "x", precision="bf16-mixed")
    train(TrainConfig(out=tmp_path / "x", threads=1, resume=True), lambda line: None)
    assert_same_run(tmp_path / "x", whole.path)
    more = train(TrainConfig(out=tmp_path / "x", threads=1, resume=True, epochs=3), lambda line: None)
    assert steps(more.path)[-1] == 12
    for changes, match in (
        ({"lr": 0.5}, r"other settings: lr 0.5 \(there: 0.01\); use those, or another --out"),
        ({"rule": "clapp"}, r"rule 'clapp' \(there: 'hooked'\)"),
        ({"data": "mnist", "data_root": tmp_path}, "mnist"),
        ({"encoder": "vgg6"}, r"encoder name 'vgg6' \(there: 'vgg5'\)"),
        ({"encoder": "vgg"}, "unknown encoder 'vgg': did you mean"),
        ({"width": 0.5}, r"encoder width \[8, 16, 16, 32, 32\] \(there: \[4, 8, 8, 16, 16\]\)"),
        ({"rule_options": ("f=softplus",)}, r"rule_options f 'softplus' \(there: None\)"),
        ({"seed": 4}, "seed 4"),
        ({"epochs": 1}, "has gone beyond 1 epochs already .step 12.; raise --epochs"),
        ({"batch_size": 1}, "--batch-size 1: a batch of one"),
    ):
        before = encoder_bytes(more.path), rows(more.path), (more.path / "config.yaml").read_text()
        with usage_error(match):
            train(TrainConfig(out=tmp_path / "x", threads=1, resume=True, **changes), lambda line: None)
        assert before == (encoder_bytes(more.path), rows(more.path), (more.path / "config.yaml").read_text())


def test_a_run_keeps_its_engine_unless_another_is_named(tmp_path: Path) -> None:
    """And a configuration from before there was a choice goes on under autograd."""
    said: list[str] = []
    old = run_tiny(tmp_path / "old", rule="clapp++", epochs=1, engine="autograd")
    text = (old.path / "config.yaml").read_text()
    assert RunConfig.from_yaml(text.replace("engine: autograd\n", ""), "x").engine == "autograd"
    assert run_tiny(old.path, rule="clapp++", epochs=2, resume=True).config.engine == "autograd"
    lean = run_tiny(old.path, rule="clapp++", epochs=3, resume=True, engine="hebbian-lean")
    assert lean.config.engine == "hebbian-lean"
    run_tiny(tmp_path / "lpl", said, rule="lpl", epochs=1)
    assert "engine: autograd (rule 'lpl' is no ScoreRule with local credit)" in said


def test_the_strength_of_the_views_is_kept(tmp_path: Path) -> None:
    run = run_tiny(tmp_path / "x", epochs=0, view_strength=0.5)
    weaker = Augmentation("affine", degrees=7.5, translate=0.05, scale=(0.9, 1.1), shear=5.0)
    assert run.config.augmentation == weaker
    assert run_tiny(tmp_path / "y", epochs=0, view_strength=1.0).config == run_tiny(tmp_path / "z", epochs=0).config
    for strength in (None, 0.5):
        again = TrainConfig(out=run.path, threads=1, resume=True, view_strength=strength)
        assert train(again, lambda line: None).config == run.config
    with usage_error(r"other settings: augmentation degrees 30.0 \(there: 7.5\); augmentation translate 0.2"):
        train(TrainConfig(out=run.path, threads=1, resume=True, view_strength=2), lambda line: None)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"rule": "clapp"}, r"rule 'clapp' \(there: 'clapp\+\+'\)"),
        ({"width": 0.5}, "encoder width"),
        ({"batch_size": 8}, r"batch_size 8 \(there: 16\)"),
        ({"lr": 1e-4, "seed": 1}, r"lr 0.0001 \(there: 0.01\); seed 1 \(there: 0\)"),
        ({"limit_images": 80}, r"limit_images 80 \(there: 64\)"),
        ({"schedule": "cosine"}, "schedule 'cosine'"),
        ({"precision": "64-true"}, "precision '64-true'"),
        ({"epochs": 0}, "has gone beyond 0 epochs already"),
    ],
)
def test_other_settings_are_refused(changes: dict[str, Any], match: str, tmp_path: Path) -> None:
    run = run_tiny(tmp_path / "x", epochs=1)
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    with usage_error(match):
        run_tiny(tmp_path / "x", resume=True, **{"epochs": 1, **changes})
    assert before == {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}


def test_more_epochs(tmp_path: Path) -> None:
    run_tiny(tmp_path / "x", epochs=1)
    run_tiny(tmp_path / "x", epochs=3, resume=True)
    assert_same(last_state(tmp_path / "x")["learner"], last_state(run_tiny(tmp_path / "y", epochs=3).path)["learner"])
    assert rows(tmp_path / "x") == rows(tmp_path / "y")
    run_tiny(tmp_path / "z", epochs=1, schedule="cosine")
    with usage_error(r"epochs 3 \(there: 1\)"):  # the cosine would be another one
        run_tiny(tmp_path / "z", epochs=3, schedule="cosine", resume=True)


def test_monitors_may_change_on_the_way(tmp_path: Path) -> None:
    run_tiny(tmp_path / "x", epochs=1)
    run_tiny(tmp_path / "x", epochs=2, probe_every=0, resume=True)
    assert [row["knn"] != "" for row in rows(tmp_path / "x")] == [False, True, False]


def test_another_number_of_threads_is_said(tmp_path: Path) -> None:
    run_tiny(tmp_path / "x", epochs=1)
    said: list[str] = []
    try:
        run_tiny(tmp_path / "x", said, resume=True, threads=2)
    finally:
        torch.set_num_threads(1)
    assert "begun with 1 threads, now 2: the last digits may differ" in said


def test_a_run_is_not_overwritten(tmp_path: Path) -> None:
    run = run_tiny(tmp_path / "x", epochs=1)
    kept = encoder_bytes(run.path)
    with usage_error("holds a run already .*--resume .* another --out"):
        run_tiny(tmp_path / "x", epochs=1)
    for file in checkpoint.existing(run.path):  # to save room, say
        file.unlink()
    (run.path / "checkpoint").rmdir()
    with usage_error("holds a run already"):
        run_tiny(tmp_path / "x", epochs=1)
    with usage_error("holds a trained encoder but no checkpoint"):
        run_tiny(tmp_path / "x", epochs=1, resume=True)
    assert encoder_bytes(run.path) == kept


def test_images_that_changed_are_refused(tmp_path: Path) -> None:
    data = f"imagefolder:{folder(tmp_path / 'set')}"
    settings = {**SMALL_VGG, "data": data}
    run_tiny(tmp_path / "x", **settings)
    (tmp_path / "set" / "train" / "a" / "00.png").unlink()
    with usage_error("31 training images, 32 when .* was begun"):
        run_tiny(tmp_path / "x", resume=True, **settings)
    with usage_error("31 training images, 32 when .* was begun"):
        train(TrainConfig(out=tmp_path / "x", resume=True), lambda line: None)
    (tmp_path / "set" / "train" / "a" / "00.png").write_bytes(encoded(pictures(1, seed=1)[0]))
    said: list[str] = []
    run_tiny(tmp_path / "x", said, resume=True, **settings)
    assert any("are not exactly those" in line for line in said)


def test_images_that_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path, seen from elsewhere: the same images are taken wherever they lie, others are refused."""
    folder(tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    run_tiny(tmp_path / "x", **{**SMALL_VGG, "data": "imagefolder:set"})
    monkeypatch.chdir("/")
    with usage_error("set, on which .* was trained, is not here; name it with --data imagefolder:PATH"):
        train(TrainConfig(out=tmp_path / "x", threads=1, resume=True, epochs=2), lambda line: None)
    here = f"imagefolder:{tmp_path / 'set'}"
    train(TrainConfig(out=tmp_path / "x", threads=1, resume=True, epochs=2, data=here), lambda line: None)
    (tmp_path / "set").rename(tmp_path / "moved")
    moved = f"imagefolder:{tmp_path / 'moved'}"
    run_tiny(tmp_path / "x", resume=True, **{**SMALL_VGG, "data": moved, "epochs": 3})
    assert rows(tmp_path / "x")[-1]["epoch"] == "3.0"
    (tmp_path / "moved" / "train" / "a" / "00.png").write_bytes(encoded(pictures(1, seed=1)[0]))
    (tmp_path / "moved").rename(tmp_path / "set")
    with usage_error("are not exactly those that .*, of imagefolder:.*moved; use those"):
        run_tiny(tmp_path / "x", resume=True, **{**SMALL_VGG, "data": here, "epochs": 4})


@pytest.mark.parametrize("named", [None, "~/data"])
def test_the_data_are_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str | None) -> None:
    """From another folder, without --data-root, and once more after that: the manifest knows where they lie."""
    from .sources_util import write_idx

    grey = pictures(48, 28, 28)[..., 0]
    write_idx(tmp_path / "data" / "MNIST" / "raw", "train", grey, [i % 10 for i in range(48)])
    write_idx(tmp_path / "data" / "MNIST" / "raw", "t10k", grey[:20], [i % 10 for i in range(20)])
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOCALSSL_DATA", raising=False)
    settings = {**SMALL_VGG, "data": "mnist"}  # and no --data-root: ./data
    with monkeypatch.context() as once:
        if named is not None:
            once.setenv("HOME", str(tmp_path))
            once.setenv("LOCALSSL_DATA", named)
        run_tiny(tmp_path / "x", **settings)
    monkeypatch.chdir("/")
    for epochs in (2, 3):
        train(TrainConfig(out=tmp_path / "x", threads=1, resume=True, epochs=epochs), lambda line: None)
    run_tiny(tmp_path / "x", **{**settings, "epochs": 4}, resume=True)
    manifest = json.loads((tmp_path / "x" / "manifest.json").read_text())
    assert manifest["data"]["root"] == str(tmp_path / "data")
    assert rows(tmp_path / "x")[-1]["epoch"] == "4.0"


def test_without_resume_flags_are_complete(tmp_path: Path) -> None:
    with usage_error("train needs --rule and --data"):
        train(TrainConfig(out=tmp_path / "x"), lambda line: None)
    with usage_error("begin with --rule and --data"):
        train(TrainConfig(out=tmp_path / "x", resume=True), lambda line: None)
    with usage_error("train needs --out"):
        train(TrainConfig(rule="clapp", data="digits"))
    assert not (tmp_path / "x").exists()
    assert tiny(tmp_path / "x").resume_command().endswith(f"train --resume --out {tmp_path / 'x'} --threads 1")


def test_what_is_typed_goes_together_with_what_is_stored(tmp_path: Path) -> None:
    run_tiny(tmp_path / "x", rule="clapp++dfb", staleness=1, epochs=1)
    with usage_error("--on-nan skip and --staleness do not go together"):
        train(TrainConfig(out=tmp_path / "x", threads=1, resume=True, epochs=2, on_nan="skip"), lambda line: None)
