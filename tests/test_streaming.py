"""Training on images read from disk: the run that it is in memory, bit for bit, resumed, divided among processes."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from localssl import evaluate
from localssl.data.sources import Images, open_images
from localssl.errors import UsageError
from localssl.parallel import Processes
from localssl.runs.config import TrainConfig
from localssl.training.loop import Loop
from localssl.training.train import train

from .sources_util import encoded, pictures, write_shards
from .train_util import SMALL_VGG, assert_same_run, last_state, run_tiny, stop_at, tiny


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """Of 40 images in shards, 32 are trained on: two epochs of four steps."""
    images = [encoded(picture) for picture in pictures(40)]
    write_shards(tmp_path / "set", images[:32], [i % 2 for i in range(32)], each=5)
    write_shards(tmp_path / "set", images[32:], [i % 2 for i in range(8)], name="val")
    return {**SMALL_VGG, "data": f"shards:{tmp_path / 'set'}", "rule": "hooked", "epochs": 2, "probe_every": 1}


def test_from_disk_as_in_memory(settings: dict[str, Any], tmp_path: Path) -> None:
    """Stopped in mid-epoch, too, and whatever the memory was before."""
    before = threading.active_count()
    said: list[str] = []
    run_tiny(tmp_path / "memory", **settings)
    run_tiny(tmp_path / "disk", said, memory=0.0, **settings)
    assert any("from disk whenever they are used" in line for line in said)
    assert_same_run(tmp_path / "memory", tmp_path / "disk")
    first = stop_at(3, tmp_path / "both", memory=0.0, **settings)
    assert "--memory 0.0" in first[-1]
    stop_at(3, tmp_path / "both", memory=1.0, resume=True, **settings)
    assert last_state(tmp_path / "both")["step"] == 6
    train(TrainConfig(out=tmp_path / "both", resume=True, memory=0.0, threads=1), report=said.append)
    assert_same_run(tmp_path / "memory", tmp_path / "both")
    assert threading.active_count() == before


def test_processes_share_the_memory(settings: dict[str, Any]) -> None:
    def streamed(processes: int, images: int) -> bool:
        limit = images * 3 * 32 * 32
        opened = open_images(settings["data"], memory_limit=limit, processes=processes)
        return any("from disk" in note for note in opened.notes)

    assert [streamed(1, 31), streamed(1, 32), streamed(2, 32), streamed(2, 64)] == [True, False, True, False]


def test_every_image_goes_to_one_process_and_one_step(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The images that are read, over all processes and steps of an epoch: each once."""
    read: list[list[int]] = []
    ahead = Images.ahead

    def noted(self: Images, batches: list[torch.Tensor], meanwhile: bool) -> Any:
        read.append([i for batch in batches for i in batch.tolist()])
        return ahead(self, batches, meanwhile)

    monkeypatch.setattr(Images, "ahead", noted)
    run_tiny(tmp_path / "x", memory=0.0, **settings)
    assert [sorted(epoch) for epoch in read] == [list(range(32))] * 2
    assert read[0] != read[1]
    whole, parts = torch.tensor(read[0]).split(8), list[list[int]]()
    for rank in range(2):
        one = Processes.__new__(Processes)  # of two, not started
        one.rank, one.size = rank, 2
        monkeypatch.setattr(Loop, "own", lambda _, index, one=one: one.own(index, views=1))
        read.clear()
        run_tiny(tmp_path / str(rank), memory=0.0, **{**settings, "epochs": 1})
        parts.append(read[0])
    for step, index in enumerate(whole):
        assert [*parts[0][4 * step : 4 * step + 4], *parts[1][4 * step : 4 * step + 4]] == index.tolist()


@pytest.mark.parametrize("memory", [-1.0, float("nan"), float("inf")])
def test_no_memory_at_all(memory: float, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--memory .*: use a number of GiB, 0 or more"):
        train(tiny(tmp_path / "x", memory=memory))


def test_unlabelled_shards_train_and_are_not_probed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named by a pattern; from elsewhere they are not found, and the message says what to type."""
    write_shards(tmp_path / "set", [encoded(picture) for picture in pictures(20)])
    monkeypatch.chdir(tmp_path)
    data = "shards:set/train-{000000..000004}.tar"
    run = run_tiny(tmp_path / "x", memory=0.0, **{**SMALL_VGG, "data": data})
    with pytest.raises(UsageError, match="has no labels"):
        evaluate.probe_run(run, evaluate.ProbeOptions("fast"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match=r"set/train-\{000000..000004\}.tar, .* is not here; .* --data shards:PATH"):
        run.images("train")
    assert len(run.images("train", data=f"shards:{tmp_path}/set")) == 16
