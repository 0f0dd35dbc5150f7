"""A stopped or killed run goes on bit for bit as if nothing had happened; what does not fit is refused."""

from __future__ import annotations

import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from localssl import checkpoint
from localssl.config import TrainConfig
from localssl.errors import RunError
from localssl.files import held
from localssl.run import open_run
from localssl.train import train

from .sources_util import encoded, pictures, write_files
from .train_util import (
    Hooked,
    assert_same,
    assert_same_run,
    encoder_bytes,
    hooked,
    last_state,
    rows,
    run_tiny,
    send,
    steps,
    tiny,
    weights,
)
from .util import usage_error


def stop_at(step: int, out: Path, number: signal.Signals = signal.SIGINT, **changes: Any) -> list[str]:
    """Stop a tiny run by a signal in the middle of a step; returns what it said."""
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        hooked(out, {step: send(number)}, said, **changes)
    return said


@pytest.mark.parametrize(
    ("step", "number", "changes"),
    [
        (6, signal.SIGINT, {}),
        (1, signal.SIGTERM, {}),
        (4, signal.SIGINT, {}),  # the last step of an epoch
        (6, signal.SIGTERM, {"precision": "64-true"}),
        (6, signal.SIGINT, {"precision": "bf16-mixed", "optimizer": "sgd", "schedule": "cosine"}),
        (6, signal.SIGINT, {"rule_options": ("negatives=random", "f=softplus")}),
    ],
)
def test_stop_and_go_on(step: int, number: signal.Signals, changes: dict[str, Any], tmp_path: Path) -> None:
    whole = hooked(tmp_path / "whole", {}, **changes)
    said = stop_at(step, tmp_path / "x", number, **changes)
    assert said[-1].startswith(f"stopped at step {step}; go on with: ")
    assert steps(tmp_path / "x")[-1] == step
    said.clear()
    run_tiny(tmp_path / "x", said, rule="hooked", resume=True, **changes)
    assert any(line.startswith(f"resuming {tmp_path / 'x'} at step {step}: hooked on digits") for line in said)
    assert_same_run(tmp_path / "x", whole.path)


def test_other_sources_of_randomness_go_on(tmp_path: Path) -> None:
    """A user's rule may draw from numpy and random, too: they are seeded and restored."""
    import numpy as np

    drawn: list[list[float]] = [[], []]

    def draw(into: list[float]) -> Callable[[], None]:
        return lambda: into.append(np.random.rand() + random.random())

    hooked(tmp_path / "whole", {step: draw(drawn[0]) for step in range(1, 9)})
    np.random.seed(5)

    def stop() -> None:
        draw(drawn[1])()
        send(signal.SIGINT)()

    with pytest.raises(KeyboardInterrupt):
        hooked(tmp_path / "x", {1: draw(drawn[1]), 2: draw(drawn[1]), 3: stop})
    np.random.seed(6)
    random.seed(6)
    hooked(tmp_path / "x", {step: draw(drawn[1]) for step in range(1, 6)}, resume=True)
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == 8


def test_stopped_again_and_again(tmp_path: Path) -> None:
    whole = hooked(tmp_path / "whole", {})
    for resume in range(3):
        with pytest.raises(KeyboardInterrupt):
            hooked(tmp_path / "x", {2: send(signal.SIGINT)}, resume=resume > 0)
    assert steps(tmp_path / "x")[-1] == 6
    half = tmp_path / "x" / "checkpoint" / ".step-000000007.pt.1.tmp"  # as a killed process may leave it
    half.write_bytes(b"half")
    hooked(tmp_path / "x", {}, resume=True)
    assert_same_run(tmp_path / "x", whole.path)
    assert not half.exists()


def test_a_signal_in_the_last_step_is_a_finished_run(tmp_path: Path) -> None:
    hooked(tmp_path / "x", {8: send(signal.SIGINT)})
    assert steps(tmp_path / "x")[-1] == 8


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    def twice() -> None:
        send(signal.SIGINT)()
        send(signal.SIGINT)()

    with pytest.raises(KeyboardInterrupt):
        hooked(tmp_path / "x", {6: twice})
    assert steps(tmp_path / "x") == [0, 4]
    hooked(tmp_path / "x", {}, resume=True)


def test_the_advice_is_one_line_on_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the bar of a narrow terminal would break over two lines could not be pasted."""
    monkeypatch.setattr("localssl.progress.Console", lambda: Console(force_terminal=True, width=60))
    monkeypatch.setattr(Hooked, "at", {3: send(signal.SIGINT)})
    Hooked.seen.clear()
    with pytest.raises(KeyboardInterrupt):
        train(tiny(tmp_path / "x", rule="hooked"))
    said = capsys.readouterr().out
    assert "\x1b[2K" in said  # there was a bar
    assert said.splitlines()[-1].endswith(f"train --resume --out {tmp_path / 'x'} --threads 1")


def test_another_number_of_threads_is_said(tmp_path: Path) -> None:
    run_tiny(tmp_path / "x", epochs=1)
    said: list[str] = []
    try:
        run_tiny(tmp_path / "x", said, resume=True, threads=2)
    finally:
        torch.set_num_threads(1)
    assert "begun with 1 threads, now 2: the last digits may differ" in said


def test_two_processes_at_once(tmp_path: Path) -> None:
    run = run_tiny(tmp_path / "x", epochs=1)
    with held(run.path), usage_error("another process is training in .*; wait for it"):
        run_tiny(tmp_path / "x", resume=True)
    assert len(rows(run.path)) == 2
    run_tiny(tmp_path / "x", resume=True)


def test_killed_at_any_moment(tmp_path: Path) -> None:
    """SIGKILL, in a process of its own, at moments between the start and the end of a run of half a second."""
    whole = run_tiny(tmp_path / "whole", epochs=10)
    moments = random.Random(0)
    for attempt in range(5):
        child = os.fork()
        if child == 0:
            os.close(1)
            run_tiny(tmp_path / "x", epochs=10, resume=True)
            os._exit(0)
        time.sleep(moments.uniform(0.05, 0.4))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        for file in (tmp_path / "x" / "encoder.safetensors", *checkpoint.existing(tmp_path / "x")):
            assert not file.exists() or file.stat().st_size > 0, attempt
        if (tmp_path / "x" / "encoder.safetensors").exists():
            weights(tmp_path / "x")
        if steps(tmp_path / "x"):
            last_state(tmp_path / "x")
    run_tiny(tmp_path / "x", epochs=10, resume=True)
    assert_same_run(tmp_path / "x", whole.path)


def test_ctrl_c_and_the_command_that_it_prints(tmp_path: Path) -> None:
    """The real thing: a process, Ctrl-C, and its advice pasted into a shell, from a folder with a space."""
    out = tmp_path / "my runs" / "x"
    flags = "--rule clapp++ --data digits --width 0.25 --lr 0.01 --epochs 6 --threads 1 --limit-images 320"
    command = [sys.executable, "-m", "localssl", "train", *shlex.split(flags), "--out", str(out)]
    # Without the folder of scripts, so that the advice cannot lean on an installed command.
    environment = {**os.environ, "PATH": "/usr/bin:/bin"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    while process.poll() is None and not rows(out):  # the first comes within seconds
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate()
    assert (process.returncode, errors) == (130, "")
    advice = said.splitlines()[-1]
    assert "go on with: " in advice
    pasted = advice.split("go on with: ")[1]
    assert "--threads 1" in pasted
    done = subprocess.run(pasted, shell=True, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].startswith(f"done: {shlex.quote(str(out))}; next: ")
    whole = train(
        TrainConfig(
            rule="clapp++",
            data="digits",
            width=0.25,
            lr=0.01,
            epochs=6,
            threads=1,
            limit_images=320,
            out=tmp_path / "whole",
        )
    )
    assert_same_run(out, whole.path)


def test_no_checkpoint_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run_tiny(tmp_path / "whole")
    said: list[str] = []
    run_tiny(tmp_path / "new", said, resume=True)  # no folder at all
    assert f"no checkpoint in {tmp_path / 'new'} yet: starting from the beginning" in said
    assert_same_run(tmp_path / "new", whole.path)

    def die() -> None:
        raise MemoryError

    with monkeypatch.context() as patch:  # a large run that died before its first checkpoint
        patch.setattr("localssl.train.SMALL", 0)
        with pytest.raises(RunError, match=r"^out of memory; .* smaller --batch-size"):
            hooked(tmp_path / "x", {3: die})
    assert steps(tmp_path / "x") == []
    assert len(rows(tmp_path / "x")) == 1
    said.clear()
    train(TrainConfig(out=tmp_path / "x", threads=1, resume=True), said.append)  # its settings are in the folder
    assert said[0] == f"no checkpoint in {tmp_path / 'x'} yet: starting from the beginning"
    assert_same_run(tmp_path / "x", hooked(tmp_path / "y", {}).path)


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


def folder(path: Path, count: int = 40) -> Path:
    images = pictures(count)
    return write_files(path, {f"train/{'ab'[i % 2]}/{i:02d}.png": encoded(images[i]) for i in range(count)})


SMALL_VGG: dict[str, Any] = {"rule": "clapp", "width": 0.02, "limit_images": None, "batch_size": 8, "epochs": 1}


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
    with usage_error("no image folder set"):
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


def test_the_data_are_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From another folder, without --data-root, and once more after that: the manifest knows where they lie."""
    from .sources_util import write_idx

    grey = pictures(48, 28, 28)[..., 0]
    write_idx(tmp_path / "data" / "MNIST" / "raw", "train", grey, [i % 10 for i in range(48)])
    write_idx(tmp_path / "data" / "MNIST" / "raw", "t10k", grey[:20], [i % 10 for i in range(20)])
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOCALSSL_DATA", raising=False)
    settings = {**SMALL_VGG, "data": "mnist"}  # and no --data-root: ./data
    run_tiny(tmp_path / "x", **settings)
    monkeypatch.chdir("/")
    for epochs in (2, 3):
        train(TrainConfig(out=tmp_path / "x", threads=1, resume=True, epochs=epochs), lambda line: None)
    run_tiny(tmp_path / "x", **{**settings, "epochs": 4}, resume=True)
    manifest = json.loads((tmp_path / "x" / "manifest.json").read_text())
    assert manifest["data"]["root"] == str(tmp_path / "data")
    assert rows(tmp_path / "x")[-1]["epoch"] == "4.0"


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
        assert not list(out.rglob(".*"))
        if steps(out):
            last_state(out)
        run_tiny(out, epochs=1, resume=True)
        assert_same_run(out, whole.path)


def test_nan_is_never_saved(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"^loss_1, .*became NaN or infinite by step \d+; .* lower --lr"):
        run_tiny(tmp_path / "x", lr=1e30)
    assert steps(tmp_path / "x") == [0]
    for value in weights(tmp_path / "x").values():
        assert value.isfinite().all()
    assert encoder_bytes(tmp_path / "x") == encoder_bytes(run_tiny(tmp_path / "y", epochs=0).path)


def test_nan_after_the_last_loss_is_never_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of an epoch's last step is finite, the update it makes is not."""
    original = torch.optim.AdamW.step
    count = 0

    def step(self: torch.optim.AdamW) -> None:
        nonlocal count
        count += 1
        if count == 4:
            self.param_groups[0]["params"][0].grad.fill_(float("inf"))
        original(self)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(RunError, match=r"^encoder.blocks.0.0.weight became NaN or infinite by step 4"):
        run_tiny(tmp_path / "x")
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


def test_without_resume_flags_are_complete(tmp_path: Path) -> None:
    with usage_error("train needs --rule and --data"):
        train(TrainConfig(out=tmp_path / "x", resume=True), lambda line: None)
    with usage_error("train needs --out"):
        train(TrainConfig(rule="clapp", data="digits"))
    assert not (tmp_path / "x").exists()
    assert tiny(tmp_path / "x").resume_command().endswith(f"train --resume --out {tmp_path / 'x'} --threads 1")
