"""What a training run does and leaves behind."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import localssl
from localssl import encoders, rules
from localssl.errors import RunError
from localssl.learner import Learner
from localssl.optimizer import FactoredAdamW
from localssl.runs import checkpoint, metrics
from localssl.runs.config import RunConfig
from localssl.runs.run import Run, build, open_run
from localssl.training import monitors
from localssl.training.train import train

from .train_util import (
    BUILT_IN,
    assert_same,
    encoder_bytes,
    last_state,
    rows,
    run_tiny,
    steps,
    tiny,
    weights,
)
from .util import usage_error


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run that tests only read."""
    return run_tiny(tmp_path_factory.mktemp("runs") / "a")


def test_a_run_is_a_folder(run: Run) -> None:
    names = {
        "config.yaml",
        "flags.yaml",
        "metrics.csv",
        "checkpoint",
        "encoder.safetensors",
        "encoder.json",
        "manifest.json",
        "cost.json",
    }
    assert {path.name for path in run.path.iterdir()} == names | {"tensorboard"}
    assert steps(run.path) == [4, 8]  # the last two epochs' ends
    assert not list(run.path.rglob(".*"))  # no half-written files
    config = yaml.safe_load((run.path / "config.yaml").read_text())
    assert (config["rule"], config["seed"], config["epochs"], config["lr"]) == ("clapp++", 0, 2, 0.01)
    assert config["encoder"] == {"name": "vgg5", "width": [4, 8, 8, 16, 16], "in_channels": 1}
    assert open_run(run.path).config == run.config
    meta = json.loads((run.path / "encoder.json").read_text())
    assert meta["input_shape"] == [1, 16, 16]
    assert meta["patches"] == [4, 4, 4, 2, 1]
    manifest = json.loads((run.path / "manifest.json").read_text())
    assert manifest["data"]["images"] == 64
    assert manifest["data"]["fingerprint"] == run.images("train", limit=64).fingerprint()
    assert manifest["environment"]["torch"] == torch.__version__
    assert manifest["environment"]["threads"] == 1


def test_metrics(run: Run) -> None:
    table = metrics.read(run.path)
    assert [int(row["step"]) for row in table] == [1, 4, 8]
    assert [float(row["epoch"]) for row in table] == [0.25, 1, 2]
    for row in table:
        losses = [float(row[f"loss_{layer}"]) for layer in range(1, 6)]
        assert all(0 < loss < 4 for loss in losses)
        assert sum(losses) == pytest.approx(float(row["loss"]))
        assert float(row["images_per_second"]) > 0
    assert float(table[-1]["loss"]) < 0.995 * float(table[0]["loss"])
    assert all(table[0][name] == "" for name in monitors.names(5))  # monitors at epochs' ends
    for row in table[1:]:
        assert all(math.isfinite(float(row[name])) for name in monitors.names(5))
        assert 20 < float(row["knn"]) <= 100
        for layer in range(1, 6):
            assert 1 < float(row[f"rank_{layer}"]) < 64
            assert 0 <= float(row[f"dead_{layer}"]) < 1
            assert 0 < float(row[f"active_{layer}"]) <= 1


def test_tensorboard_has_the_same_numbers(run: Run) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    accumulator = events.EventAccumulator(str(run.path / "tensorboard"))
    accumulator.Reload()
    logged = [(event.step, event.value) for event in accumulator.Scalars("loss_2")]
    assert logged == [(int(r["step"]), pytest.approx(float(r["loss_2"]))) for r in metrics.read(run.path)]
    assert [event.step for event in accumulator.Scalars("rank_3")] == [4, 8]


def test_tensorboard_after_a_fallback(tmp_path: Path) -> None:
    """Rows that are written again replace those of the process before."""
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run_tiny(tmp_path / "x")
    checkpoint.existing(tmp_path / "x")[-1].unlink()
    time.sleep(1.1)  # its files sort by second, then by a counter of the process that has "10" before "9"
    run_tiny(tmp_path / "x", resume=True)
    accumulator = events.EventAccumulator(str(tmp_path / "x" / "tensorboard"))
    accumulator.Reload()
    assert [event.step for event in accumulator.Scalars("loss")] == [1, 4, 8]


def test_same_seed_same_bits(run: Run, tmp_path: Path) -> None:
    again = run_tiny(tmp_path / "elsewhere" / "b")
    assert encoder_bytes(again.path) == encoder_bytes(run.path)
    assert rows(again.path) == rows(run.path)
    other = run_tiny(tmp_path / "c", seed=1)
    assert encoder_bytes(other.path) != encoder_bytes(run.path)


def test_monitors_leave_the_run_as_it_is(run: Run, tmp_path: Path) -> None:
    unwatched = run_tiny(tmp_path / "b", probe_every=0)
    assert encoder_bytes(unwatched.path) == encoder_bytes(run.path)
    assert all(row["knn"] == "" for row in rows(unwatched.path))


def test_alignment_while_training_leaves_the_run_as_it_is(run: Run, tmp_path: Path) -> None:
    aligned = run_tiny(tmp_path / "b", align_every=1)
    assert encoder_bytes(aligned.path) == encoder_bytes(run.path)
    measured = [row for row in rows(aligned.path) if row["align_1"]]
    assert [row["step"] for row in measured] == ["4", "8"]
    assert all(-1 <= float(row["align_1"]) < 0.999 for row in measured)
    assert all(
        float(row["align_5"]) == pytest.approx(1, abs=1e-5) for row in measured
    )  # the last loss is the reference
    assert all(row["align_1"] == "" for row in rows(run.path))


def test_a_configuration_from_before_align_every_is_read(run: Run) -> None:
    text = (run.path / "config.yaml").read_text()
    old = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("align_every"))
    assert old != text
    assert RunConfig.from_yaml(old, "config.yaml") == run.config


def test_encoder_file_says_nothing_of_where_and_when(run: Run) -> None:
    data = encoder_bytes(run.path)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    (digest,) = header.pop("__metadata__").values()  # tensors, and the sum of their numbers
    assert re.fullmatch("[0-9a-f]{64}", digest)
    assert set(header) == set(run.encoder().state_dict())
    meta = (run.path / "encoder.json").read_text()
    for word in (str(run.path), platform.node(), os.path.expanduser("~"), str(Path.cwd()), "202"):
        assert word not in meta


def test_the_untrained_encoder_depends_on_the_seed_alone(tmp_path: Path) -> None:
    def start(name: str, rule: str, seed: int = 0) -> bytes:
        """Its weights and biases in order; their names also tell where an encoder has norms."""
        encoder = run_tiny(tmp_path / name, rule=rule, epochs=0, seed=seed).encoder()
        return b"".join(p.detach().numpy().tobytes() for p in encoder.parameters())

    same = [name for name in BUILT_IN if "init" not in rules.get(name).encoder_options]  # a start of the rule's own
    found = {name: start(name, name) for name in same}
    assert len(found) >= 6
    assert len(set(found.values())) == 1
    assert start("seed", "clapp++", seed=1) not in found.values()


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_rule_trains_every_block(name: str, tmp_path: Path) -> None:
    trained = run_tiny(tmp_path / "x", rule=name, epochs=1, limit_images=32)
    before, after = trained.learner(), trained.trained_learner()[0]
    assert [int(row["step"]) for row in rows(trained.path)] == [1, 2]
    changed = {key for key, value in after.state_dict().items() if not torch.equal(value, before.state_dict()[key])}
    fixed = {key for key, p in after.named_parameters() if not p.requires_grad}  # random feedback
    assert not fixed & changed
    assert {key for key, p in after.named_parameters() if key.endswith("weight") and p.requires_grad} <= changed
    n_losses = sum(key.startswith("loss_") for key in rows(trained.path)[0])
    assert n_losses == (5 if trained.config.make_rule().per_layer else 1)


def test_precisions(run: Run, tmp_path: Path) -> None:
    double = run_tiny(tmp_path / "double", precision="64-true")
    mixed = run_tiny(tmp_path / "mixed", precision="bf16-mixed")
    exact, rough, single = (weights(r.path) for r in (double, mixed, run))
    assert {value.dtype for value in exact.values()} == {torch.float64}
    assert {value.dtype for value in rough.values()} == {torch.float32}
    start = run.learner().encoder.state_dict()
    for name, value in single.items():
        moved = (value - start[name]).norm()
        assert 0 < (rough[name] - value).norm() < moved
        assert (exact[name] - value).norm() < 2 * moved  # its views are drawn in float64: others
    assert localssl.load(double.path).blocks[0](torch.zeros(1, 1, 16, 16)).dtype == torch.float32


def first_batch(run: Run) -> Learner:
    """The learner that a run of one batch began with, and the gradients of that batch."""
    learner, images = build(run.config), run.images("train", limit=16)
    checkpoint.seed_rng(1)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    learner.accumulate_grads(*run.views()(images.batch(order)))
    return learner


def test_a_step_is_one_gradient_step(tmp_path: Path) -> None:
    """One batch of SGD by hand: the run's seed gives weights, order and views, in this order."""
    once = run_tiny(tmp_path / "x", rule="clapp++both", optimizer="sgd", lr=0.1, epochs=1, limit_images=16)
    trained = once.trained_learner()[0].state_dict()
    for name, parameter in first_batch(once).named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(trained[name], (parameter - 0.1 * parameter.grad).detach())


def test_cosine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[float] = []
    original = FactoredAdamW.step

    def step(self: FactoredAdamW) -> None:
        used.append(self.param_groups[0]["lr"])
        original(self)

    monkeypatch.setattr(FactoredAdamW, "step", step)
    cosine = run_tiny(tmp_path / "x", schedule="cosine", lr=0.01, engine="autograd")  # which steps once a batch
    assert used == pytest.approx([0.01 * (1 + math.cos(math.pi * i / 8)) / 2 for i in range(8)])
    lr = {int(row["step"]): float(row["lr"]) for row in rows(cosine.path)}
    assert lr[4] == pytest.approx(0.005)
    assert lr[8] == pytest.approx(0, abs=1e-9)
    assert lr[1] == pytest.approx(0.01 * (1 + math.cos(math.pi / 8)) / 2)


def test_weight_decay(tmp_path: Path) -> None:
    """Decoupled: with decay but almost no learning signal, weights shrink by (1 - lr · decay) a step."""
    decayed = run_tiny(tmp_path / "x", lr=0.1, weight_decay=1.0, optimizer="adam", epochs=1, limit_images=16)
    plain = run_tiny(tmp_path / "y", lr=0.1, weight_decay=0.0, optimizer="adam", epochs=1, limit_images=16)
    start = plain.learner().encoder.state_dict()
    for name, value in weights(plain.path).items():
        torch.testing.assert_close(weights(decayed.path)[name], value - 0.1 * start[name])


def test_decay_in_the_gradient(tmp_path: Path) -> None:
    """Adam's first step under adam-l2, by hand: down lr · g / (|g| + eps), g the gradient and the decayed weight."""
    once = run_tiny(tmp_path / "x", lr=0.1, weight_decay=0.5, optimizer="adam-l2", epochs=1, limit_images=16)
    trained = once.trained_learner()[0].state_dict()
    for name, parameter in first_batch(once).named_parameters():
        assert parameter.grad is not None
        g = (parameter.grad + 0.5 * parameter).detach()
        torch.testing.assert_close(trained[name], parameter.detach() - 0.1 * g / (g.abs() + 1e-8), rtol=1e-4, atol=1e-5)


def test_batches_cover_the_images(tmp_path: Path) -> None:
    seen: list[torch.Tensor] = []
    images = run_tiny(tmp_path / "x", epochs=0, limit_images=70).images("train", limit=70)
    original = type(images).ahead

    def ahead(self: Any, batches: list[torch.Tensor], meanwhile: bool) -> Any:
        seen.extend(batches)
        return original(self, batches, meanwhile)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(images), "ahead", ahead)
        run_tiny(tmp_path / "y", limit_images=70, probe_every=0)
    epochs = [torch.cat(seen[:4]), torch.cat(seen[4:8])]
    assert len(seen) == 8
    assert all(len(set(epoch.tolist())) == 64 for epoch in epochs)
    assert not torch.equal(*epochs)


def test_load(run: Run) -> None:
    encoder = localssl.load(run.path)
    assert isinstance(encoder, encoders.Encoder)
    assert not encoder.training
    assert encoder.preprocess is not None
    images = run.images("test").batch(torch.arange(3))
    x = encoder.preprocess(images)
    mean, std = run.config.mean[0], run.config.std[0]
    torch.testing.assert_close(x, (images / 255 - mean) / std)
    torch.testing.assert_close(x, encoder.preprocess(images / 255))
    outputs = encoder(x)
    assert [tuple(z.shape) for z in outputs] == [
        (3, 4, 16, 16),
        (3, 8, 8, 8),
        (3, 8, 8, 8),
        (3, 16, 4, 4),
        (3, 16, 2, 2),
    ]
    trained = run.trained_learner()[0].encoder
    torch.testing.assert_close(outputs, trained(x))
    assert_same(dict(localssl.load(str(run.path)).state_dict()), weights(run.path))


def test_a_pickle_is_never_run(run: Run, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    state = last_state(run.path)
    run_tiny(tmp_path / "x")
    for file in checkpoint.existing(tmp_path / "x"):
        torch.save({"format": 1, **state, "sum": Bomb()}, file)
    with usage_error("no checkpoint in .* can be read"):
        run_tiny(tmp_path / "x", resume=True)
    with usage_error("no checkpoint in .* can be read"):
        open_run(tmp_path / "x").trained_learner()
    torch.save(Bomb(), tmp_path / "x" / "encoder.safetensors")
    with usage_error(r"encoder.safetensors cannot be read"):
        localssl.load(tmp_path / "x")
    assert not (tmp_path / "ran").exists()


def test_large_runs_write_at_intervals_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("localssl.training.loop.SMALL", 0)
    saved: list[int] = []
    original = checkpoint.save
    monkeypatch.setattr(checkpoint, "save", lambda run, state: (saved.append(state["step"]), original(run, state)))
    run_tiny(tmp_path / "x")
    assert saved == [8]
    saved.clear()
    run_tiny(tmp_path / "y", checkpoint_every=1e-9)
    assert saved == list(range(1, 9))
    assert steps(tmp_path / "y") == [7, 8]


def test_threads(tmp_path: Path) -> None:
    try:
        run_tiny(tmp_path / "x", threads=2, epochs=0)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_outside_the_main_thread(run: Run, tmp_path: Path) -> None:
    """Signals are then the caller's business: no error, nothing changed."""
    thread = threading.Thread(target=lambda: run_tiny(tmp_path / "x"))
    thread.start()
    thread.join()
    assert encoder_bytes(tmp_path / "x") == encoder_bytes(run.path)


def test_signal_handlers_are_put_back(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    run_tiny(tmp_path / "x", epochs=1)
    with pytest.raises(RunError):
        run_tiny(tmp_path / "y", lr=1e30)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_what_is_said_in_a_pipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tiny(tmp_path / "x", limit_images=None, epochs=1))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["engine:", "digits:", "1,297"]
    progress = [line for line in lines if line.startswith("step")]
    assert len(progress) >= 2
    pattern = r"step \d+/81: \d+ s left, \d+ images/s, loss( [\d.]+){5}(, kNN [\d.]+ %)?"
    assert all(re.fullmatch(pattern, line) for line in progress), lines
    assert progress[-1].startswith("step 81/81")
    assert "kNN" in progress[-1]


def test_effective_rank() -> None:
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(40, 40))[0]
    even = torch.cat((basis[:8], -basis[:8]))  # 8 directions of equal variance, centred
    assert monitors.effective_rank(even) == pytest.approx(8)
    assert monitors.effective_rank(even.T.contiguous().T + 3) == pytest.approx(8)
    assert monitors.effective_rank(torch.randn(100, 1) * torch.ones(1, 5)) == pytest.approx(1)
    assert monitors.effective_rank(torch.ones(6, 4)) == 1
    assert math.isnan(monitors.effective_rank(torch.full((6, 4), float("nan"))))
    z = torch.randn(30, 50) * torch.linspace(0.1, 3, 50)
    p = torch.linalg.svdvals((z - z.mean(0)).double()).square()
    p = p[p > 0] / p.sum()
    assert monitors.effective_rank(z) == pytest.approx(float(torch.exp(-(p * p.log()).sum())), rel=1e-6)


def test_monitors_see_dead_units_and_open_hinges() -> None:
    torch.manual_seed(0)
    learner = Learner(encoders.vgg5(0.25), rules.get("clapp++"), (1, 16, 16), (4, 4, 4, 2, 1))
    with torch.no_grad():
        for module in learner.projections["lateral"].modules():  # scores of 0: every hinge is active
            if isinstance(module, torch.nn.Linear):
                module.weight.zero_()
        first = learner.encoder.blocks[1][0]
        first.weight[:6] = 0
        first.bias[:6] = -1
    images = torch.randn(20, 1, 16, 16)
    labels = torch.arange(20) % 2
    images[labels == 1] += 5  # two classes that nobody can confuse
    values = monitors.observe(learner, images[:4], images[4:8], images, labels)
    assert set(values) == set(monitors.names(5))
    assert values["dead_2"] == 6 / 8
    assert [values[f"active_{layer}"] for layer in range(1, 6)] == [1] * 5
    assert values["knn"] == 100
    assert monitors.observe(learner, images[:4], images[4:8], images, 1 - labels)["knn"] == 100
    alone = monitors.observe(learner, images[:4], images[4:8], images[:2], labels[:2])
    assert alone["knn"] == 0  # nobody is his own neighbour
    assert "knn" not in monitors.observe(learner, images[:4], images[4:8], images, None)
    assert learner.training
    assert monitors.collapse({"knn": 1.0, "rank_3": 2.5, "dead_3": 0.8}) == {}
    assert "block 3 is dying" in str(monitors.collapse({"rank_3": 7.0, "dead_3": 0.95}))
    assert "block 4 is diverging" in str(monitors.collapse({"rank_4": float("nan"), "dead_4": 0.0}))
    assert "block 2 is collapsing" in str(monitors.collapse({"rank_2": 1.2, "dead_2": 0.0}))


def test_a_collapsing_run_is_warned_of(tmp_path: Path) -> None:
    said: list[str] = []
    run_tiny(tmp_path / "x", said, lr=0.5, weight_decay=1.9, epochs=4)
    warnings = [line for line in said if line.startswith("warning: block")]
    assert warnings
    assert len(set(warnings)) == len(warnings)  # each once, not at every epoch


def test_config_files_are_read_strictly(run: Run) -> None:
    text = (run.path / "config.yaml").read_text()
    assert RunConfig.from_yaml(text, "x") == run.config
    for old, new, match in (
        ("epochs: 2", "epochs: two", "x: epochs is 'two', expected a whole number"),
        ("seed: 0", f"seed: {10**30}", f"x: seed is {10**30}, expected a whole number"),
        ("  kind: affine", "  kind: 7", "x: augmentation: kind is 7, expected a text"),
        ("  degrees: 15.0", "  degrees: [1]", r"x: augmentation: degrees is \[1\], expected a number"),
        ("lr: 0.01", "lrr: 0.01", "unknown key in x 'lrr': did you mean 'lr'"),
        ("seed: 0\n", "", "x lacks seed"),
        ("format: 1", "format: 2", "x is not a localssl run configuration of format 1"),
        ("  kind:", "  kin:", "x: augmentation has unknown keys"),
        ("rule: clapp++", "rule: [", "x is not readable YAML"),
    ):
        assert old in text
        with usage_error(match):
            RunConfig.from_yaml(text.replace(old, new), "x")
