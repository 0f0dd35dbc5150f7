"""Lines for what takes long: when they are said, and who says them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from localssl import evaluate
from localssl.data.sources import open_images
from localssl.errors import RunError
from localssl.runs.run import Run
from localssl.system import slow

from .sources_util import encoded, pictures, write_files
from .train_util import run_tiny
from .util import usage_error


class Clock:
    """A clock that goes on by so much whenever it is read."""

    def __init__(self, step: float):
        self.now, self.step = 0.0, step

    def monotonic(self) -> float:
        self.now += self.step
        return self.now


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_tiny(tmp_path_factory.mktemp("runs") / "x", epochs=1)


def test_nothing_at_first_then_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slow, "time", Clock(1.0))
    said: list[str] = []
    tell = slow.Slow("{done} of {total} eggs", said.append)
    for done in range(1, 5001, 250):
        tell(done, 5000)
    tell(5000, 5000)
    assert said == ["501 of 5,000 eggs, 27 s left", "3,001 of 5,000 eggs, 9 s left"]


def test_a_loss_and_uneven_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slow, "time", Clock(5.0))
    said: list[str] = []
    slow.Slow("epoch {done} of {total}", said.append)(1, 3, 0.12345)
    slow.Slow("{done} of {total}", said.append, even=False)(1, 3)
    assert said == ["epoch 1 of 3, loss 0.123, 10 s left", "1 of 3"]


def test_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    images = pictures(24)
    write_files(tmp_path, {f"train/{'ab'[i % 2]}/{i:02d}.png": encoded(p) for i, p in enumerate(images)})
    monkeypatch.setattr("localssl.data.pixels.CHUNK", 10)
    open_images(f"imagefolder:{tmp_path}")
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(slow, "time", Clock(5.0))
    open_images(f"imagefolder:{tmp_path}", limit=15)
    assert capsys.readouterr().out == "10 of 15 images decoded, 2 s left\n"


@pytest.mark.parametrize("protocol", ["fast", "paper"])
def test_probe(run: Run, protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slow, "time", Clock(11.0))
    said: list[str] = []
    options = evaluate.ProbeOptions(protocol, epochs=3, limit=300)
    results = evaluate.probe_run(run, options, report=said.append)
    if protocol == "paper":
        assert [line.split(",")[0] for line in said] == [
            f"{name}: epoch {i} of 3" for name in ("untrained", "clapp++") for i in (1, 2)
        ]
        assert said[0].endswith(" 22 s left")
        assert ", loss 2." in said[0]
    else:
        assert "untrained: features of 256 of 300 train images, 2 s left" in said
        assert "clapp++: features of 256 of 500 test images, 10 s left" in said
        assert [line for line in said if "accuracies" in line][-1] == "clapp++: 11 of 12 accuracies"
    for result in results.values():
        assert result.protocol.startswith("digits: 1,297 training and 500 test images, a fixed stratified split")
        assert "300 of 1,297 images, drawn at random (seed 0). " in result.protocol
        assert "MiB" not in result.protocol


def test_align_says_which_images(run: Run) -> None:
    assert evaluate.align_run(run, evaluate.AlignOptions(batches=1)).protocol.startswith(
        "digits: 1,297 training and 500 test images"
    )


def test_a_device_that_is_not_there(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with usage_error("--device 'gpu': use one of auto, cpu, cuda, mps"):
        evaluate.probe_run(run, evaluate.ProbeOptions(device="gpu"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with usage_error("--device cuda: no CUDA device is visible"):
        evaluate.probe_run(run, evaluate.ProbeOptions(device="cuda"))


def test_the_device_is_the_one_asked_for(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an accelerator here: "meta" stands for one, on which the first look at a value fails."""
    monkeypatch.setattr("localssl.system.devices.choose", torch.device)
    for protocol in ("fast", "paper"):
        with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
            evaluate.probe_run(run, evaluate.ProbeOptions(protocol, device="meta", epochs=1, limit=300))


def test_a_full_memory_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise MemoryError

    monkeypatch.setattr("localssl.evaluate.features", full)
    with pytest.raises(RunError, match=r"^out of memory on cpu; use a smaller --limit-images$"):
        evaluate.probe_run(run, evaluate.ProbeOptions())
