"""What goes wrong in a run leaves the last good checkpoint, one line, and a way on."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from localssl.errors import RunError
from localssl.optimizer import FactoredAdamW
from localssl.runs import checkpoint
from localssl.runs.run import open_run

from .train_util import (
    SMALL_VGG,
    assert_same_run,
    encoder_bytes,
    folder,
    hooked,
    last_state,
    rows,
    run_tiny,
    send,
    steps,
    weights,
)
from .util import usage_error


def test_a_finished_run_mends_its_encoder(tmp_path: Path) -> None:
    run = run_tiny(tmp_path / "x", epochs=1)
    good, table = encoder_bytes(run.path), rows(run.path)
    (run.path / "encoder.safetensors").write_bytes(good[:100])
    with usage_error("cannot be read .*; resume the run to write it anew"):
        run.encoder()
    run_tiny(tmp_path / "x", epochs=1, resume=True)
    assert encoder_bytes(run.path) == good
    assert rows(run.path) == table


def test_truncated_checkpoints(tmp_path: Path) -> None:
    whole = run_tiny(tmp_path / "whole")
    run = run_tiny(tmp_path / "x")
    first, last = checkpoint.existing(run.path)
    data = last.read_bytes()
    last.write_bytes(data[: len(data) // 2])
    said: list[str] = []
    run_tiny(tmp_path / "x", said, resume=True)
    assert said[0].startswith("step-000000008.pt cannot be read")
    assert "trying the one before" in said[0]
    assert_same_run(run.path, whole.path)
    assert steps(run.path) == [4, 8]
    for file in (first, last):
        file.write_bytes(b"")
    with usage_error("no checkpoint in .* can be read; move the folder away"):
        run_tiny(tmp_path / "x", resume=True)
    torch.save({"format": 1, "step": 3}, last)
    with usage_error("step-000000008.pt is not a checkpoint of format 1"):
        run_tiny(tmp_path / "x", resume=True)


def test_the_checkpoint_before_a_damaged_one_is_kept(tmp_path: Path) -> None:
    """After a fallback the next checkpoint must not push out the good one in favour of the damaged one."""
    run_tiny(tmp_path / "x")
    last = checkpoint.existing(tmp_path / "x")[-1]
    last.write_bytes(b"damaged")
    with pytest.raises(KeyboardInterrupt):
        hooked(tmp_path / "y", {2: send(signal.SIGINT)}, epochs=1)
    state = last_state(tmp_path / "y")
    checkpoint.save(tmp_path / "x", {**state, "step": 6})
    assert steps(tmp_path / "x") == [4, 6]
    assert (tmp_path / "x" / "checkpoint" / "damaged-step-000000008.pt").read_bytes() == b"damaged"


def test_torn_metrics(tmp_path: Path) -> None:
    whole = run_tiny(tmp_path / "whole")
    stop = tmp_path / "x"
    with pytest.raises(KeyboardInterrupt):
        hooked(stop, {6: send(signal.SIGINT)})
    run_tiny(tmp_path / "z", epochs=1)
    file = tmp_path / "z" / "metrics.csv"
    lines = file.read_text().splitlines(keepends=True)
    for torn in ("7,1.75,0.3", lines[-1].replace("4,", "7,", 1).rstrip("\n"), "\0\0\n", "x,1\n"):
        file.write_text("".join(lines) + torn)
        assert len(rows(tmp_path / "z")) == 2
    run_tiny(tmp_path / "z", resume=True)
    assert rows(tmp_path / "z") == rows(whole.path)


def test_full_disk(tmp_path: Path) -> None:
    """The files of a process may not grow beyond a limit: what a full disk does to a checkpoint, met in C code."""
    resource = pytest.importorskip("resource")
    whole = hooked(tmp_path / "whole", {})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = checkpoint.existing(whole.path)[-1].stat().st_size // 2
    try:
        with pytest.raises(RunError, match=r"^[^\n]*is the disk full\?[^\n]*go on with: [^\n]*--resume --out [^\n]*$"):
            hooked(tmp_path / "x", {6: lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert steps(tmp_path / "x") == [0, 4]
    assert not list((tmp_path / "x").rglob(".*"))
    last_state(tmp_path / "x")
    weights(tmp_path / "x")
    hooked(tmp_path / "x", {}, resume=True)
    assert_same_run(tmp_path / "x", whole.path)


def test_no_space_at_any_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The n-th write of a run fails; whichever it is, the last checkpoint is readable and the run can go on."""
    whole = run_tiny(tmp_path / "whole", epochs=1)
    original = os.replace
    for failing in range(1, 13):
        count = 0

        def full(*arguments: Any, failing: int = failing) -> None:
            nonlocal count
            count += 1
            if count >= failing:
                raise OSError(28, "No space left on device")
            original(*arguments)

        out = tmp_path / str(failing)
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", full)
            failed = None
            try:
                run_tiny(out, epochs=1)
            except RunError as error:
                failed = str(error)
        if failed is None:
            assert failing > 6
            break
        assert failed.startswith("No space left on device")
        way_on = "give the same command again" if failing == 1 else "--resume --out"  # the first: its configuration
        assert way_on in failed
        assert not list(out.rglob(".*"))
        if steps(out):
            last_state(out)
        run_tiny(out, epochs=1, resume=True)
        assert_same_run(out, whole.path)


def test_nan_is_never_saved(tmp_path: Path) -> None:
    says = r"^step \d, block \d: its activity, .*became NaN or infinite \(batch of training images \d+, .* lower --lr"
    with pytest.raises(RunError, match=says):
        run_tiny(tmp_path / "x", lr=1e30)
    assert steps(tmp_path / "x") == [0]
    for value in weights(tmp_path / "x").values():
        assert value.isfinite().all()
    assert encoder_bytes(tmp_path / "x") == encoder_bytes(run_tiny(tmp_path / "y", epochs=0).path)


def test_nan_after_the_last_loss_is_never_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of an epoch's last step is finite, the update it makes is not."""
    original = FactoredAdamW.step
    count = 0

    def step(self: FactoredAdamW) -> None:
        nonlocal count
        count += 1
        if count == 4:
            self.param_groups[0]["params"][0].grad.fill_(float("inf"))
        original(self)

    monkeypatch.setattr(FactoredAdamW, "step", step)
    with pytest.raises(RunError, match=r"^encoder.blocks.0.0.weight became NaN or infinite by step 4"):
        run_tiny(tmp_path / "x", engine="autograd")  # which steps once a batch
    assert steps(tmp_path / "x") == [0]
    assert all(value.isfinite().all() for value in weights(tmp_path / "x").values())


def test_a_bad_image_in_mid_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streamed images: one is damaged while the run goes on. It ends in one line, and --skip-bad goes on."""
    monkeypatch.setattr("localssl.data.sources._free_memory", lambda: 0)
    data = folder(tmp_path / "set")
    settings: dict[str, Any] = {**SMALL_VGG, "data": f"imagefolder:{data}", "epochs": 3, "rule": "hooked"}
    damage = (data / "train" / "a" / "06.png").write_bytes
    with pytest.raises(RunError, match=r"^a/06.png cannot be decoded \([^\n]*; --skip-bad replaces such images$"):
        hooked(tmp_path / "x", {6: lambda: damage(b"damaged")}, **settings)
    assert steps(tmp_path / "x") == [0, 4]
    last_state(tmp_path / "x")
    with pytest.raises(RunError, match=r"a/06\.png cannot be decoded"):
        hooked(tmp_path / "x", {}, resume=True, **settings)
    before = open_run(tmp_path / "x").config
    hooked(tmp_path / "x", {}, resume=True, skip_bad=True, **settings)
    assert steps(tmp_path / "x") == [8, 12]
    assert open_run(tmp_path / "x").config.mean == before.mean  # not measured anew, without the bad image
