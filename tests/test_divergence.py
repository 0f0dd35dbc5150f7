"""A batch without a finite update: found in its step, named with its block and images, left out, or gone back from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from localssl.data.order import batch_of
from localssl.errors import RunError
from localssl.learner import Learner
from localssl.runs import checkpoint
from localssl.training import divergence

from .train_util import (
    assert_same,
    assert_same_run,
    encoder_bytes,
    hooked,
    last_state,
    rows,
    run_tiny,
    steps,
    tiny,
    weights,
)
from .util import usage_error

Patch = pytest.MonkeyPatch


def spoil(patch: Patch, at: dict[int, int | None]) -> None:
    """In step s, ``at[s]`` is the block whose output is infinite for one sample; None: the second view itself."""
    original, count = Learner.updates, [0]

    def updates(self: Learner, view_a: torch.Tensor, view_b: torch.Tensor, *rest: Any) -> Any:
        count[0] += 1
        if count[0] not in at:
            return original(self, view_a, view_b, *rest)
        block = at[count[0]]
        if block is None:
            view_b[0] = float("inf")
        else:

            def overflow(_: object, __: object, z: torch.Tensor) -> torch.Tensor:
                return torch.where(torch.arange(len(z)).view(-1, 1, 1, 1) == 3, float("inf"), z)

            handle = self.encoder.blocks[block - 1].register_forward_hook(overflow)
            patch.setattr(divergence, "blame", unhooked(handle, divergence.blame))
        return original(self, view_a, view_b, *rest)

    patch.setattr(Learner, "updates", updates)


def unhooked(handle: Any, blame: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        found = blame(*arguments)
        handle.remove()
        return found

    return call


@pytest.mark.parametrize("changes", [{}, {"rule": "clapp++dfb"}, {"rule": "bp-clapp++"}, {"rule": "ipc"}])
def test_stop_keeps_the_state_before_the_step(changes: dict[str, Any], tmp_path: Path, monkeypatch: Patch) -> None:
    with monkeypatch.context() as patch:
        spoil(patch, {6: 3})
        says = r"^step 6, block 3: its activity, [^\n]*nan/step-000000005.pt[^\n]*untouched"
        with pytest.raises(RunError, match=says):
            run_tiny(tmp_path / "x", **changes)
    assert steps(tmp_path / "x") == [0, 4]
    last_state(tmp_path / "x")
    (found,) = json.loads((tmp_path / "x" / "nan" / "found.json").read_text())
    assert (found["step"], found["block"], found["done"]) == (6, 3, "stop")
    assert found["images"] == batch_of(0, 5, 64, 16).tolist()
    # The state that was kept is that of an undisturbed run after five steps: moved to the checkpoints, it goes on so.
    kept = tmp_path / "x" / "nan" / "step-000000005.pt"
    kept.rename(tmp_path / "x" / "checkpoint" / kept.name)
    run_tiny(tmp_path / "x", resume=True, **changes)
    whole = run_tiny(tmp_path / "whole", **changes)
    assert encoder_bytes(tmp_path / "x") == encoder_bytes(whole.path)
    assert rows(tmp_path / "x") == rows(whole.path)


@pytest.mark.parametrize("block", [1, 3])
def test_stop_in_the_engine(block: int, tmp_path: Path, monkeypatch: Patch) -> None:
    """It applies block by block, so that memory stays flat in depth: then what is from before is the checkpoint."""
    original, count = Learner.updates, [0]

    def updates(self: Learner, *rest: Any) -> Any:
        count[0] += 1
        if count[0] == 6:
            self.encoder.blocks[block - 1][0].bias.data.fill_(float("inf"))
        return original(self, *rest)

    monkeypatch.setattr(Learner, "updates", updates)
    kept = "the state before it is in" if block == 1 else "blocks below had learnt from it, the last checkpoint is from"
    with pytest.raises(RunError, match=rf"^step 6, block {block}: its weights, [^\n]*; {kept} "):
        run_tiny(tmp_path / "x", engine="hebbian")
    assert steps(tmp_path / "x") == [0, 4]
    assert len(list((tmp_path / "x" / "nan").iterdir())) == (2 if block == 1 else 1)


@pytest.mark.parametrize(
    ("engine", "device", "whole"), [("hebbian", True, True), ("hebbian", False, False), ("hebbian-lean", True, False)]
)
def test_stop_with_feedback(engine: str, device: bool, whole: bool, tmp_path: Path, monkeypatch: Patch) -> None:
    """Where a look makes the host wait for a device, all blocks that have run are looked at before any is applied."""
    monkeypatch.setattr(divergence, "host_waits", lambda _learner: device)
    original, count = Learner.updates, [0]

    def updates(self: Learner, *rest: Any) -> Any:
        count[0] += 1
        if count[0] == 6:
            self.projections["feedback"][2].weight.data.fill_(float("inf"))
        return original(self, *rest)

    monkeypatch.setattr(Learner, "updates", updates)
    kept = "the state before it is in" if whole else "blocks below had learnt from it, the last checkpoint is from"
    with pytest.raises(RunError, match=rf"^step 6, block 3: loss_3, [^\n]*; {kept} "):
        run_tiny(tmp_path / "x", rule="clapp++dfb", engine=engine)
    assert len(list((tmp_path / "x" / "nan").iterdir())) == (2 if whole else 1)


@pytest.mark.parametrize("rule", ["clapp++", "bp-clapp++", "ipc"])
def test_skip_leaves_no_trace_of_the_batch(rule: str, tmp_path: Path, monkeypatch: Patch) -> None:
    said: list[str] = []
    changes: dict[str, Any] = {"rule": rule, "epochs": 1, "encoder_options": ("norm=batch",), "on_nan": "skip"}
    spoil(monkeypatch, {4: 2})
    run_tiny(tmp_path / "x", said, **changes)
    (line,) = [line for line in said if "left out" in line]
    assert line.startswith("step 4, block 2: its activity, ")
    monkeypatch.undo()
    whole = run_tiny(tmp_path / "y", **changes)
    three = tmp_path / "three"
    with monkeypatch.context() as patch:  # the state after three steps, kept where there is nothing to go back to
        patch.setattr("localssl.training.loop.SMALL", 0)
        spoil(patch, {4: 2})
        with pytest.raises(RunError):
            run_tiny(three, **{**changes, "on_nan": "rollback"})
    before = torch.load(three / "nan" / "step-000000003.pt", weights_only=True)
    after = last_state(tmp_path / "x")
    assert_same(after["learner"], before["learner"])
    assert_same(after["optimizer"]["state"], before["optimizer"]["state"])
    assert after["step"] == 4
    assert encoder_bytes(tmp_path / "x") != encoder_bytes(whole.path)
    assert all(row["loss"] not in ("", "nan") for row in rows(tmp_path / "x"))


def test_rollback(tmp_path: Path, monkeypatch: Patch) -> None:
    said: list[str] = []
    spoil(monkeypatch, {7: 5, 8: None})
    run_tiny(tmp_path / "x", said, on_nan="rollback")
    assert [line.rpartition("; ")[2] for line in said if "left out" in line] == ["left out, weights as of step 4"] * 2
    assert "step 8: the views, " in said[-1]
    first, last = checkpoint.existing(tmp_path / "x")
    assert (first.name, last.name) == ("step-000000004.pt", "step-000000008.pt")
    assert_same(*(torch.load(file, weights_only=True)["learner"] for file in (first, last)))


def test_no_end_of_it(tmp_path: Path, monkeypatch: Patch) -> None:
    """What fails again and again ends the run, whatever was asked for."""
    for on_nan, ends in (("skip", 11), ("rollback", 4)):
        with monkeypatch.context() as patch:
            spoil(patch, dict.fromkeys(range(1, 40)))
            says = f"^step {ends}: .*(the 10 batches before it|went back to step 0 3 times already)"
            with pytest.raises(RunError, match=says):
                run_tiny(tmp_path / on_nan, on_nan=on_nan, epochs=8)
        assert all(value.isfinite().all() for value in weights(tmp_path / on_nan).values())


def test_nothing_to_go_back_to(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr("localssl.training.loop.SMALL", 0)
    spoil(monkeypatch, {2: 1})
    with pytest.raises(RunError, match=r"no checkpoint yet to go back to"):
        run_tiny(tmp_path / "x", on_nan="rollback")


def test_ended_and_resumed_it_leaves_out_the_same(tmp_path: Path) -> None:
    """At a learning rate at which weights explode in every other step; no checkpoint is written at the end."""

    def end() -> None:
        raise MemoryError

    changes: dict[str, Any] = {"lr": 1e30, "on_nan": "rollback", "probe_every": 0}
    whole = hooked(tmp_path / "whole", {}, **changes)
    for resume in (False, True):
        with pytest.raises(RunError, match=r"^out of memory"):
            hooked(tmp_path / "x", {3: end}, resume=resume, **changes)
    hooked(tmp_path / "x", {}, resume=True, **changes)
    assert_same_run(tmp_path / "x", whole.path)
    found = [json.loads((run / "nan" / "found.json").read_text()) for run in (tmp_path / "x", whole.path)]
    assert found[0] == found[1]
    assert len(found[0]) >= 2


def test_a_gradient_whose_square_overflows() -> None:
    """Adam's second moment would be infinite, and its weight would never move again."""
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([3e19, 0.0])
    assert divergence.not_finite([("w", weight)]) == ["gradient of w"]
    weight.grad = torch.tensor([1e18, 1e18])
    assert divergence.not_finite([("w", weight)]) == []


def test_several_processes(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"^step 2, block \d: .*became NaN or infinite"):
        run_tiny(tmp_path / "x", devices=2, lr=1e30)
    assert steps(tmp_path / "x") == [0]
    assert (tmp_path / "x" / "nan" / "step-000000001.pt").exists()


def test_refused(tmp_path: Path) -> None:
    with usage_error("--on-nan skip and --staleness do not go together"):
        run_tiny(tmp_path / "x", rule="clapp++dfb", staleness=1, on_nan="skip")
    assert tiny(tmp_path / "x", on_nan="skip").resume_command().endswith("--on-nan skip")
