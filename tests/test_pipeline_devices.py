"""Layer-parallel and data-parallel together: D replicas of P stages train as one process with the whole batch."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from localssl.errors import RunError, UsageError
from localssl.parallel import Processes
from localssl.runs import checkpoint
from localssl.runs.config import RunConfig
from localssl.runs.run import Run, resolve
from localssl.training import pipeline
from localssl.training.pipeline.stage import Stage
from localssl.training.prepared import Prepared, prepare
from localssl.training.train import train

from .train_util import assert_same_run, run_tiny, steps, stopped_on_the_command_line, tiny

IMAGES, STEPS = 12, 10
BOUNDS = {2: (0, 2, 5), 3: (0, 1, 3, 5)}  # of 2 and 3 stages
RANDOM: dict[str, Any] = {"rule_options": ("negatives=random", "f=softplus")}
CASES: dict[str, dict[str, Any]] = {
    "clapp++": {},
    "clapp++, drawn negatives": RANDOM,
    "clapp++ under autograd": {"engine": "autograd", **RANDOM},
    "clapp, low rank": {"rule": "clapp", "rule_options": ("projection=low-rank", "rank=2")},
    "clapp++dfb": {"rule": "clapp++dfb", "schedule": "cosine"},
    "clapp++dfb, lean": {"rule": "clapp++dfb", "engine": "hebbian-lean"},
    "clapp++both": {"rule": "clapp++both", **RANDOM},
    "clapp++both under autograd": {"rule": "clapp++both", "engine": "autograd"},
    "clapp++, each by itself": {"across": "process", **RANDOM},
    "clapp++both, each by itself": {"rule": "clapp++both", "across": "process", "engine": "autograd"},
    "clapp++both, stale": {"rule": "clapp++both", "staleness": 1, **RANDOM},
}
SOME = ["clapp++, drawn negatives", "clapp++both under autograd", "clapp++both, stale"]
DESCENT: dict[str, Any] = {"optimizer": "plain-sgd", "lr": 1.0, "schedule": "constant"}  # its one step is the gradient


@pytest.fixture(autouse=True)
def _forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that need not import everything anew; those of a command are started as always."""
    for module in ("launch", "pipeline.processes"):
        monkeypatch.setattr(f"localssl.training.{module}.START", "fork")


@pytest.fixture
def _in_double() -> Iterator[None]:
    """Losses are added up in float64, too."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def config_of(case: str, **changes: Any) -> RunConfig:
    across = CASES[case].get("across", "all")
    asked = {**CASES[case], "across": "all", "precision": "64-true", "batch_size": IMAGES, **changes}
    config, _ = resolve(tiny(Path("x"), **asked))
    return dataclasses.replace(config, across=across)


def batch_of(step: int, config: RunConfig) -> Tensor:
    """Both views, stacked."""
    side = config.image_size
    return torch.rand(2 * IMAGES, config.channels, side, side, generator=torch.Generator().manual_seed(step))


Found = dict[str, Any]  # "losses", (steps, L), and "weights", by name


def fed(first: pipeline.First, count: int, part: Callable[[Tensor], Tensor]) -> Found:
    """What a pipeline comes to."""
    losses: list[Tensor] = []
    for step in range(count):
        torch.manual_seed(step)
        first.feed(part(batch_of(step, first.prepared.config)))
        if first.prepared.config.staleness == 0 or step == count - 1:
            losses.append(first.settle(row=True, weights=True).sums)
    return found(losses, first.prepared)


def found(losses: Sequence[Tensor], prepared: Prepared) -> Found:
    weights = {name: p.detach().clone() for name, p in prepared.learner.named_parameters()}
    return {"losses": torch.stack(list(losses)), "weights": weights}


def alone(config: RunConfig, count: int, replicas: int) -> Found:
    """One process; with ``across`` "process" the mean over parts of the batch, as far as updates go."""
    prepared = prepare(config, "cpu")
    if config.staleness:
        setup = pipeline.Setup(config.to_yaml(), "cpu", (0, 5), 0, STEPS, [0.0] * 5, False)
        with pipeline.begun(prepared, setup) as first:
            return fed(first, count, lambda x: x)
    parts = 1 if config.across == "all" else replicas
    total: list[Tensor] = []
    for step in range(count):
        prepared.set_rate(step, STEPS)
        losses: list[Tensor] = []
        views = batch_of(step, config).chunk(2)
        for a, b in zip(*(view.chunk(parts) for view in views), strict=True):
            torch.manual_seed(step)
            *_, last = prepared.learner.updates(a, b)  # blocks are apart: nothing need be applied between them
            losses.append(last)
        for p in prepared.learner.parameters():
            if p.grad is not None:
                p.grad /= parts
        prepared.optimizer.step()
        prepared.optimizer.zero_grad()
        total.append(torch.stack(losses) if parts > 1 else losses[0])
    return found(total, prepared)


def together(rank: int, size: int, stages: int, folder: str, cases: Sequence[str]) -> None:
    """The life of one of several processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=size)
    place = pipeline.place(Processes(), stages)
    results: dict[str, Found] = {}
    for case in cases:
        for count, changes in ((1, DESCENT), (STEPS, {})):
            if place.stage:
                pipeline.work(place, rank)
                continue
            config = config_of(case, **changes)
            setup = pipeline.Setup(config.to_yaml(), "cpu", BOUNDS[stages], 0, STEPS, [0.0] * 5, False)
            assert place.peers is not None
            with pipeline.begun(prepare(config, "cpu"), setup, place) as first:
                results[f"{case} {count}"] = fed(first, count, place.peers.own)
    if place.stage == 0:
        torch.save(results, f"{folder}/{rank // stages}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.usefixtures("_in_double")
@pytest.mark.parametrize(("replicas", "stages", "cases"), [(2, 2, list(CASES)), (3, 2, SOME), (2, 3, SOME)])
def test_as_one_process(replicas: int, stages: int, cases: list[str], tmp_path: Path) -> None:
    size = replicas * stages
    mp.start_processes(together, (size, stages, str(tmp_path), cases), nprocs=size, start_method="fork")  # pyright: ignore
    results = [torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in range(replicas)]
    for case in cases:
        begun = dict(prepare(config_of(case), "cpu").learner.named_parameters())
        for count, changes in ((1, DESCENT), (STEPS, {})):
            one = alone(config_of(case, **changes), count, replicas)
            for replica, result in enumerate(results):
                many = result[f"{case} {count}"]
                losses = one["losses"] if one["losses"].ndim == 2 else one["losses"][:, replica]
                close(many["losses"], losses, 1e-9, f"{case}: losses")
                for name, weight in one["weights"].items():
                    before, what = begun[name].detach(), f"{case}: {name} after {count}"
                    if count == 1:
                        assert (weight - before).norm() > 0 or not begun[name].requires_grad
                        close(many["weights"][name] - before, weight - before, 1e-9, what)
                    close(many["weights"][name], weight, 1e-6, what)
                    assert torch.equal(many["weights"][name], results[0][f"{case} {count}"]["weights"][name])


def close(found: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    difference = (found - expected).norm()
    assert difference <= tolerance * expected.norm(), f"{what} differs by {float(difference / expected.norm()):.1e}"


@pytest.mark.parametrize(
    "changes",
    [
        {"rule": "clapp++both", "schedule": "cosine", **RANDOM},
        {"engine": "autograd", "encoder_options": ("norm=batch",), "split": (1, 4), "align_every": 1},
        {"rule": "clapp++dfb", "across": "process", **RANDOM},
        {"rule": "clapp++dfb", "staleness": 1},
        {"rule": "clapp++both", "exchange": "matrices", **RANDOM},
        {"rule": "clapp++", "exchange": "rows"},
    ],
)
def test_the_same_run_without_pipeline(changes: dict[str, Any], tmp_path: Path) -> None:
    """Weights, optimiser, random numbers and metrics, bit for bit."""
    both = run_tiny(tmp_path / "both", devices=2, pipeline=2, epochs=1, **changes)
    changes.pop("split", None)
    assert_same_run(both.path, run_tiny(tmp_path / "devices", devices=2, epochs=1, **changes).path)
    assert json.loads((both.path / "manifest.json").read_text())["processes"] == 4


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run in two processes without a pipeline that was never stopped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("localssl.training.launch.START", "fork")
        return run_tiny(tmp_path_factory.mktemp("whole") / "x", devices=2, rule="clapp++both", **RANDOM)


def _at_take(monkeypatch: pytest.MonkeyPatch, stage: int, act: Callable[[], object]) -> None:
    """Act in a stage of the second replica when its sixth batch comes."""
    original = Stage.take

    def take(self: Stage, x: Tensor, negatives: Tensor | None = None) -> None:
        if (self.layers.start > 0) == (stage > 0) and dist.get_rank() >= 2 and self.step == 5:
            act()
        original(self, x, negatives)

    monkeypatch.setattr(Stage, "take", take)


def test_stopped_and_resumed_with_others(monkeypatch: pytest.MonkeyPatch, whole: Run, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"rule": "clapp++both", **RANDOM}
    save = checkpoint.save

    def slowly(*arguments: Any) -> None:
        time.sleep(0.5)
        save(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", slowly)  # the others wait for it
        _at_take(patch, 0, lambda: (os.kill(os.getppid(), signal.SIGINT), time.sleep(0.5)))
        with pytest.raises(KeyboardInterrupt):
            run_tiny(tmp_path / "x", devices=2, pipeline=2, **changes)
    assert steps(tmp_path / "x") == [4, 6]
    copies = [tmp_path / name for name in ("two", "one", "pipeline")]
    for copy in copies:
        subprocess.run(["cp", "-r", str(tmp_path / "x"), str(copy)], check=True)
    run_tiny(copies[0], devices=2, resume=True, **changes)  # the views are those of any number of processes
    assert_same_run(copies[0], whole.path)
    run_tiny(copies[1], resume=True, **changes)
    run_tiny(copies[2], resume=True, pipeline=3, **changes)
    assert_same_run(copies[1], copies[2])
    run_tiny(copies[0], devices=2, pipeline=3, resume=True, epochs=3, **changes)
    assert steps(copies[0]) == [8, 12]
    run_tiny(copies[0], devices=2, pipeline=2, resume=True, epochs=3, **changes)  # nothing is left to do


@pytest.mark.parametrize("stage", [0, 1])
def test_a_killed_process(stage: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _at_take(monkeypatch, stage, lambda: os.kill(os.getpid(), signal.SIGKILL))
    began = time.monotonic()
    with pytest.raises(RunError, match=r"^[^\n]* ended[^\n]*; the last checkpoint is untouched: .*--pipeline 2$"):
        run_tiny(tmp_path / "x", rule="clapp++dfb", devices=2, pipeline=2)
    assert time.monotonic() - began < 60  # seconds, on a busy machine
    assert steps(tmp_path / "x") == [0, 4]
    assert not multiprocessing.active_children()


def test_nan_in_a_stage(tmp_path: Path) -> None:
    says = r"^step 2, block \d: [^\n]* became NaN or infinite \(batch of training images .* lower --lr"
    with pytest.raises(RunError, match=says):
        run_tiny(tmp_path / "x", devices=2, pipeline=2, lr=1e30)
    assert steps(tmp_path / "x") == [0]
    assert not multiprocessing.active_children()


def test_a_stage_without_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full() -> None:
        raise torch.OutOfMemoryError("no room")

    _at_take(monkeypatch, 1, full)
    with pytest.raises(RunError, match=r"^out of memory; the last checkpoint is untouched"):
        run_tiny(tmp_path / "x", devices=2, pipeline=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rule": "bp-clapp++"}, r"--pipeline 2: rule 'bp-clapp\+\+' cannot learn block by block"),
        ({"pipeline": 6}, "--pipeline 6: the encoder has 5 blocks"),
        ({"split": (2, 2)}, "--split 2 2: give 2 numbers"),
        ({"devices": 3}, "--batch-size 16 is the whole batch: give a multiple of the 3 processes"),
        ({"on_nan": "skip"}, "--on-nan skip and --pipeline do not go together"),
        ({"shard_b": True}, "--shard-b and --pipeline do not go together"),
    ],
)
def test_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        train(tiny(tmp_path / "x", **{"devices": 2, "pipeline": 2, **changes}))
    assert not (tmp_path / "x").exists()


@pytest.mark.long
def test_ctrl_c_on_the_command_line(tmp_path: Path) -> None:
    stopped_on_the_command_line("--rule clapp++", "--devices 2 --pipeline 2", tmp_path / "x")
