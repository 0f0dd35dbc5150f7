"""Networks that studies train in their own loops: left as a run's folder, which every command on a run opens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from localssl import cli
from localssl.data import order
from localssl.data.sources import Images
from localssl.experiments import (
    ff_mnist,
    greedy,
    lpl_own,
    own_recipes,
    own_settings,
    pc_mnist,
    scff_mnist,
)
from localssl.experiments.cells import Settings
from localssl.experiments.lpl_own import Scale
from localssl.runs.run import Run, manifest_of, open_run

from .sources_util import real_root, stl10
from .train_util import folder


def opens(path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Every command on a run does its work in this folder; ``train`` does not go on from it."""
    run = open_run(path)
    assert run.config.trained_by is not None
    (command,) = manifest_of(path, "begun")["commands"]
    assert command.startswith(f"{run.config.trained_by} --seeds 1")
    embeddings = ["--embeddings", "--out", str(path / "embeddings.npy")]
    for name, *flags in (
        ["probe"],
        ["align", "--batches", "2", "--batch-size", "4"],
        ["export", *embeddings],
        ["report", "--images", "8"],
    ):
        assert cli.main([name, str(path), *flags]) == 0, (name, capsys.readouterr().err)
    written = {file.name for file in path.iterdir()}
    assert written >= {"probe-fast.csv", "align.csv", "embeddings.npy", "report.html"}
    page = (path / "report.html").read_text(encoding="utf-8")
    assert f"{run.config.trained_by} trained this network" in page
    assert "training steps" not in page
    capsys.readouterr()
    for flags in (["--resume", "--out", str(path)], ["--config", str(path / "config.yaml"), "--out", f"{path}-2"]):
        assert cli.main(["train", *flags]) == 2
        assert f"was trained by {run.config.trained_by}" in capsys.readouterr().err
    learner, step = run.trained_learner()
    assert step > 0
    for name, value in run.encoder().state_dict().items():
        assert torch.equal(value, learner.encoder.state_dict()[name]), name
    return run


def seen(run: Run, images: Images) -> list[torch.Tensor]:
    """What every block gives for some of a run's images, as the probe feeds them."""
    with torch.no_grad():
        return run.encoder().emitted(run.normalise()(images.batch(torch.arange(4))))


def test_scff_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in {
        "DATA": "digits",
        "WIDTH": 20,
        "LAYERS": ((0.003, 0.9, 1000, 1), (0.002, 0.6, 1500, 1)),
    }.items():
        monkeypatch.setattr(scff_mnist, name, value)
    settings = Settings(tmp_path, threads=1)
    for layer in (1, 2):
        scff_mnist.train(settings, layer, 0)
    run = opens(tmp_path / "runs" / "s0", capsys)
    assert cli.main(["export", str(run.path), "--rule"]) == 0
    for number, block in enumerate(run.encoder().blocks, start=1):
        kept = torch.load(tmp_path / "weights" / f"layer{number}-s0.pt", weights_only=True)
        assert all(torch.equal(value, kept[name]) for name, value in block.state_dict().items())
    images = run.images("test")
    alone = scff_mnist._encoder(settings, 2, 2, 0)  # pyright: ignore[reportPrivateUsage]
    want = alone.emitted(images.batch(torch.arange(4)).flatten(1).float() / 255)
    for one, other in zip(seen(run, images), want, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("rule", ["bp", "pc"])
def test_pc_mnist(
    rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"DATA": "digits", "WIDTHS": (8, 8), "EPOCHS": 1, "HELD_OUT": 100}.items():
        monkeypatch.setattr(pc_mnist, name, value)
    settings = Settings(tmp_path, threads=1)
    pc_mnist.train(settings, rule, 1e-3, 0, True)
    assert not (tmp_path / "runs").exists()  # of the search nothing is left
    record = pc_mnist.train(settings, rule, 1e-3, 0, False)
    run = opens(tmp_path / "runs" / f"{rule}-lr0.001-s0", capsys)
    test = run.images("test")
    with torch.no_grad():
        z = run.encoder().emitted(run.normalise()(test.batch(torch.arange(len(test)))))[-1]
        found = run.trained_learner()[0].parts["head"][0](z).argmax(1)
    assert 100 * float((found == test.labels).float().mean()) == pytest.approx(record["accuracy"], abs=0.1)


def test_ff_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    small = {"DATA": "digits", "TRAINED_ON": 400, "WIDTHS": (30, 20, 20), "BATCH": 20}
    for name, value in small.items():
        monkeypatch.setattr(ff_mnist, name, value)
    ff_mnist.train(Settings(tmp_path, threads=1), 0, 2)
    run = opens(tmp_path / "runs" / "s0", capsys)
    kept = torch.load(tmp_path / "runs" / "ff-supervised-s0-of-2.pt", weights_only=True)["learner"]
    learner, step = run.trained_learner()
    assert step == 2 * 400 // 20
    assert all(torch.equal(value, kept[name]) for name, value in learner.state_dict().items())


def test_lpl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    data = f"imagefolder:{folder(tmp_path / 'images')}"
    small = Scale(data=data, width=0.05, batch_size=8, epochs=2, warm_up=1, held_out=12, probe_epochs=1)
    monkeypatch.setitem(lpl_own.SCALES, "cpu", small)
    lpl_own.cifar10(Settings(tmp_path / "out", threads=1))
    run = opens(tmp_path / "out" / "runs" / "cpu-lpl-s0", capsys)
    kept = torch.load(tmp_path / "out" / "runs" / "cpu-lpl-s0.pt", weights_only=True)["learner"]
    assert all(torch.equal(value, kept[name]) for name, value in run.trained_learner()[0].state_dict().items())


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in (("WIDTH", 0.0625), ("IMAGES", 32), ("PROBE_EPOCHS", 1), ("TEST_IMAGES", 40)):
        monkeypatch.setattr(own_settings, key, value)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("name", ["scff-stl10", "clapp-illing-stl10"])
def test_own_settings(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = own_recipes.RECIPES[name]
    stl10(tmp_path, 32, 30, 20)
    settings = Settings(tmp_path / "out", tmp_path, threads=1)
    for number in range(len(recipe.passes)):
        own_settings.train(settings, name, number, 0)
    run = opens(settings.out / "runs" / "cpu-s0", capsys)
    learner = own_settings._learner(settings, name, len(recipe.passes), 0)  # pyright: ignore[reportPrivateUsage]
    trained, _ = run.trained_learner()
    assert all(torch.equal(value, trained.state_dict()[key]) for key, value in learner.state_dict().items())
    images = run.images("test")
    normalise = own_settings._normalise(settings, recipe)  # pyright: ignore[reportPrivateUsage]
    for one, other in zip(
        seen(run, images), learner.encoder.eval().emitted(normalise(images.batch(torch.arange(4)))), strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.usefixtures("tiny")
def test_whitened_images_leave_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, root = "stochastic-ff-cifar10", real_root("cifar10")
    recipe = replace(own_recipes.RECIPES[name], options={"copies": 3}, passes=own_recipes.RECIPES[name].passes[:1])
    monkeypatch.setitem(own_recipes.RECIPES, name, recipe)
    own_settings.train(Settings(tmp_path, root, threads=1), name, 0, 0)
    assert (tmp_path / "weights" / "cpu-pass1-s0.pt").is_file()
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("tiny")
def test_softhebb_is_trained_by_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same weights, up to rounding, as those of ``greedy``'s loop over the same batches."""
    name, root = "softhebb-cifar10", real_root("cifar10")
    monkeypatch.setattr(own_settings, "IMAGES", 30)
    settings, recipe = Settings(tmp_path, root, threads=1), own_recipes.RECIPES[name]
    own_settings.train(settings, name, 0, 0)
    run = open_run(tmp_path / "runs" / "cpu-s0")
    assert run.config.trained_by is None
    learner = own_settings._learner(settings, name, 0, 0)  # pyright: ignore[reportPrivateUsage]
    start = {key: value.clone() for key, value in learner.state_dict().items()}
    images = own_settings._images(settings, recipe, "train")  # pyright: ignore[reportPrivateUsage]
    normalise = own_settings._normalise(settings, recipe)  # pyright: ignore[reportPrivateUsage]
    batches = torch.cat(order.batches(0, 0, len(images), recipe.batch))
    monkeypatch.setattr(torch, "randperm", lambda n: batches)  # pyright: ignore[reportUnknownLambdaType]
    greedy.train(learner, images, lambda x: (normalise(x), normalise(x)), recipe.passes[0], recipe.batch)
    found, _ = run.trained_learner()
    for key, value in learner.state_dict().items():
        torch.testing.assert_close(found.state_dict()[key], value, rtol=1e-5, atol=1e-6)
        assert not torch.equal(start[key], value), key
    assert own_settings.probe(settings, name, 1, 0)["name"] == "trained"
