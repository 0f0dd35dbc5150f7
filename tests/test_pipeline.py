"""Layer-parallel runs: the same as in one process, resumable with any number of them, ended by the loss of one."""

from __future__ import annotations

import copy
import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import localssl
from localssl import credit, encoders, own, rules
from localssl.errors import RunError
from localssl.runs.config import RunConfig
from localssl.runs.run import Run, open_run, resolve
from localssl.training import pipeline
from localssl.training.pipeline import split
from localssl.training.prepared import Prepared, prepare

from .train_util import (
    ENGINE,
    assert_same_run,
    encoder_bytes,
    rows,
    run_tiny,
    steps,
    stopped_on_the_command_line,
    tiny,
)
from .util import assert_close_report, numpy, usage_error

RULES = ("clapp++", "clapp++dfb", "clapp++both")
BOXES = f"{Path(__file__).with_name('black_box_net.py')}:net"
RANDOM: dict[str, Any] = {"rule_options": ("negatives=random", "f=softplus"), "schedule": "cosine"}


@pytest.fixture(autouse=True)
def _forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that need not import everything anew."""
    monkeypatch.setattr("localssl.training.pipeline.processes.START", "fork")


@pytest.fixture(scope="module")
def sequential(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """Runs of one process, each made once."""
    made: dict[str, Run] = {}

    def run(**changes: Any) -> Run:
        key = repr(sorted(changes.items()))
        if key not in made:
            made[key] = run_tiny(tmp_path_factory.mktemp("sequential") / "x", **changes)
        return made[key]

    return run


@pytest.mark.parametrize("precision", ["32-true", "64-true"])
@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("rule", RULES)
def test_equal(rule: str, processes: int, precision: str, sequential: Callable[..., Run], tmp_path: Path) -> None:
    """Weights, optimiser, random numbers and metrics, bit for bit."""
    changes = {"rule": rule, "precision": precision, "epochs": 1, **ENGINE}
    assert_same_run(run_tiny(tmp_path / "x", pipeline=processes, **changes).path, sequential(**changes).path)


@pytest.mark.parametrize(
    "changes",
    [
        {"rule": "clapp++both", "split": (1, 3, 1), **RANDOM, **ENGINE},
        {"rule": "clapp++", "split": (1, 4), **RANDOM},
        {"rule": "clapp++both", "engine": "autograd", "optimizer": "sgd"},
        {"rule": "clapp++both", "engine": "hebbian-lean", "precision": "bf16-mixed"},
        {"rule": "clapp++both", "engine": "hebbian-lean", "precision": "64-true"},
        {"rule": "clapp++dfb", "engine": "hebbian-lean", "precision": "64-true"},
        {"rule": "clapp", "rule_options": ("projection=low-rank-frozen", "rank=4"), "align_every": 1, **ENGINE},
        {"rule": "clapp++", "encoder_options": ("norm=batch",)},
    ],
)
def test_equal_with_options(changes: dict[str, Any], sequential: Callable[..., Run], tmp_path: Path) -> None:
    split = changes.pop("split", None)
    run = run_tiny(tmp_path / "x", pipeline=2 if split is None else len(split), split=split, **changes, epochs=1)
    assert_same_run(run.path, sequential(**changes, epochs=1).path)


def test_the_folder_tells_of_the_processes(tmp_path: Path) -> None:
    run = run_tiny(tmp_path / "x", pipeline=2, epochs=0)
    assert '"processes": 2' in (run.path / "manifest.json").read_text()
    assert "pipeline" not in (run.path / "config.yaml").read_text()


@pytest.mark.parametrize("staleness", [1, 2])
@pytest.mark.parametrize("rule", ["clapp++dfb", "clapp++both"])
def test_staleness_is_what_it_is_said_to_be(rule: str, staleness: int) -> None:
    """Against autograd on a copy whose blocks lack the last updates, but not its projections."""
    config, _ = resolve(tiny(Path("x"), rule=rule, staleness=staleness, precision="64-true"))
    own, reference = prepare(config, "cpu"), prepare(config, "cpu")
    batches = list(_batches(config, 6))
    with pipeline.begun(own, _setup(config)) as first:
        for x in batches:
            first.feed(x)
        sums = first.settle().sums
    older = deque([copy.deepcopy(reference.learner.encoder.state_dict())])
    total = torch.zeros(5)
    for x in batches:
        total += _stale_update(reference, older[0], x)
        older.append(copy.deepcopy(reference.learner.encoder.state_dict()))
        if len(older) > staleness + 1:
            older.popleft()
    for name, p in own.learner.named_parameters():
        assert_close_report(numpy(p), numpy(reference.learner.get_parameter(name)), 1e-9, name)
    assert_close_report(numpy(sums), numpy(total), 1e-6, "sums of the losses")


def _batches(config: RunConfig, count: int) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (2 * config.batch_size, config.channels, config.image_size, config.image_size)
    for _ in range(count):
        yield torch.rand(shape, generator=generator, dtype=torch.float64)


def _setup(config: RunConfig) -> pipeline.Setup:
    return pipeline.Setup(config.to_yaml(), "cpu", (0, 5), 0, 6, [0.0] * 5, False)


def _stale_update(reference: Prepared, older: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """One update of the reference from activity under older weights; its losses."""
    stale = copy.deepcopy(reference.learner)
    stale.encoder.load_state_dict(older)
    stale.zero_grad()
    (losses,) = credit.of("local").updates(stale.step_of(x))
    for name, p in stale.named_parameters():
        reference.learner.get_parameter(name).grad = p.grad
    reference.optimizer.step()
    return losses


def test_staleness_does_not_depend_on_the_processes(sequential: Callable[..., Run], tmp_path: Path) -> None:
    changes: dict[str, Any] = {"rule": "clapp++dfb", **RANDOM, **ENGINE}
    whole = run_tiny(tmp_path / "1", staleness=2, **changes)
    assert open_run(whole.path).config.staleness == 2
    assert_same_run(run_tiny(tmp_path / "3", staleness=2, pipeline=3, **changes).path, whole.path)
    assert encoder_bytes(whole.path) != encoder_bytes(sequential(**changes).path)


def test_it_learns_with_staleness(tmp_path: Path) -> None:
    run = run_tiny(tmp_path / "x", rule="clapp++both", staleness=2, epochs=8, probe_every=0)
    losses = [float(row["loss"]) for row in rows(run.path)]
    assert losses[-1] < 0.98 * losses[0]


def _at_feed(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], object]) -> None:
    """Act after a batch, counted from 1, was sent on its way."""
    original, seen = pipeline.First.feed, [0]

    def feed(self: pipeline.First, x: torch.Tensor) -> None:
        original(self, x)
        seen[0] += 1
        if seen[0] == number:
            act()

    monkeypatch.setattr(pipeline.First, "feed", feed)


def test_stopped_and_resumed_with_others(
    monkeypatch: pytest.MonkeyPatch, sequential: Callable[..., Run], tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"rule": "clapp++both", **RANDOM, **ENGINE}
    said: list[str] = []
    for number, processes in ((signal.SIGINT, 2), (signal.SIGTERM, 3)):
        with monkeypatch.context() as patch:
            _at_feed(patch, 3, lambda number=number: os.kill(os.getpid(), number))
            with pytest.raises(KeyboardInterrupt):
                run_tiny(tmp_path / "x", said, pipeline=processes, resume=number == signal.SIGTERM, **changes)
    assert said[-1].endswith(f"train --resume --out {tmp_path / 'x'} --threads 1 --pipeline 3")
    assert steps(tmp_path / "x")[-1] == 6
    run_tiny(tmp_path / "x", resume=True, **changes)
    assert_same_run(tmp_path / "x", sequential(**changes).path)


def test_a_killed_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def kill() -> None:
        victim = max(multiprocessing.active_children(), key=lambda process: process.name)
        assert victim.pid is not None
        os.kill(victim.pid, signal.SIGKILL)

    with monkeypatch.context() as patch:
        _at_feed(patch, 6, kill)
        began = time.monotonic()
        with pytest.raises(RunError, match=r"^the process of blocks? .*ended by signal 9 .*--resume .*--pipeline 3$"):
            run_tiny(tmp_path / "x", rule="clapp++dfb", pipeline=3, **ENGINE)
        assert time.monotonic() - began < 60  # seconds, on a busy machine
    assert steps(tmp_path / "x") == [0, 4]
    assert not multiprocessing.active_children()
    run_tiny(tmp_path / "x", rule="clapp++dfb", pipeline=2, resume=True)
    assert_same_run(tmp_path / "x", run_tiny(tmp_path / "y", rule="clapp++dfb", **ENGINE).path)


def test_a_process_says_why_it_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("no\nroom")

    monkeypatch.setattr("localssl.training.pipeline.worker.work", full)
    with pytest.raises(RunError, match=r"^the process of blocks \d to 5: OutOfMemoryError: no room; the last "):
        run_tiny(tmp_path / "x", pipeline=2)


def test_nan_in_another_process(tmp_path: Path) -> None:
    says = r"step 2, block \d: .* became NaN or infinite \(batch of training images .* lower --lr"
    with pytest.raises(RunError, match=says):
        run_tiny(tmp_path / "x", pipeline=2, lr=1e30)
    assert steps(tmp_path / "x") == [0]
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rule": "bp-clapp++", "pipeline": 2}, r"--pipeline 2: rule 'bp-clapp\+\+' cannot learn block by block"),
        ({"rule": "fa", "pipeline": 2}, "--pipeline 2: rule 'fa' cannot learn block by block"),
        ({"rule": "pc", "pipeline": 2}, "--pipeline 2: rule 'pc' cannot learn block by block"),
        ({"rule": "ff", "pipeline": 2}, "--pipeline 2: rule 'ff' cannot learn block by block"),
        ({"pipeline": 6}, "--pipeline 6: the encoder has 5 blocks"),
        ({"pipeline": 0}, "--pipeline 0: use a number of processes"),
        ({"pipeline": 2, "split": (2, 2)}, "--split 2 2: give 2 numbers of 1 or more that sum to the 5 blocks"),
        ({"pipeline": 2, "split": (5, 0)}, "--split 5 0: give 2 numbers"),
        ({"split": (2, 3)}, "--split goes with --pipeline"),
        ({"pipeline": 1, "split": (5,)}, "--split goes with --pipeline"),
        ({"staleness": -1, "rule": "clapp++dfb"}, "--staleness -1: use 0 or more"),
        ({"staleness": 1}, r"--staleness 1: no block of 'clapp\+\+' waits"),
        ({"staleness": 1, "rule": "clapp++dfb", "engine": "autograd"}, "--staleness 1: engine 'autograd' cannot"),
        ({"pipeline": 2, "on_nan": "skip"}, "--on-nan skip and --pipeline do not go together"),
        ({"pipeline": 2, "encoder": BOXES, "width": 1.0}, "--pipeline 2: where black box .* fails"),
        ({"staleness": 1, "rule": "bp-clapp++"}, r"--staleness 1: rule 'bp-clapp\+\+' cannot learn block by block"),
    ],
)
def test_refused(changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(own, "_doubted", set[Path]())  # whatever folders other tests have opened in this process
    with usage_error(message):
        run_tiny(tmp_path / "x", **changes)
    assert not (tmp_path / "x").exists()


def test_a_process_that_cannot_begin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "localssl.training.pipeline.worker", None)
    with pytest.raises(RunError, match=r"^the process of blocks \d to 5: ModuleNotFoundError: .*worker.*; the last "):
        run_tiny(tmp_path / "x", pipeline=2)


def test_blocks_of_about_the_same_work() -> None:
    torch.manual_seed(0)
    for rule in RULES:
        learner = localssl.Learner(encoders.vgg6(0.25), rules.get(rule), (3, 32, 32), (4, 4, 4, 2, 2, 1))
        costs = split.costs(learner, 32)
        assert split.groups(costs, 2) == [range(3), range(3, 6)]
        assert 0.8 < sum(costs[:3]) / sum(costs[3:]) < 1.25


def test_groups_are_balanced() -> None:
    assert split.groups([5, 1, 1, 1, 4], 2) == [range(2), range(2, 5)]
    assert split.groups([1, 1, 8, 1, 1], 3) == [range(2), range(2, 3), range(3, 5)]
    assert split.groups([3, 1], 1) == [range(2)]
    assert split.groups([1.0] * 60, 30) == [range(i, i + 2) for i in range(0, 60, 2)]  # more ways than can be tried


@pytest.mark.long
def test_on_the_command_line(tmp_path: Path) -> None:
    stopped_on_the_command_line("--rule clapp++dfb", "--pipeline 2 --split 2 3", tmp_path / "x")
