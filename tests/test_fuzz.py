"""Damaged files of every kind: read, or refused by an error of ours. ``benchmarks/fuzz.py`` is the long run."""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from localssl.data.decode import BadImage, decode
from localssl.data.parquet import read_table
from localssl.data.sources import open_images
from localssl.errors import UsageError
from localssl.runs import checkpoint
from localssl.runs.config import RunConfig
from localssl.system import devices

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
NAMES = (
    *("images", "parquet", "idx", "stl10", "stl10 labels", "cifar10", "npz", "tar", "tar index"),
    *("configuration", "encoder.json", "safetensors", "checkpoint", "texts", "flags"),
)

FOUND = {"tar": (8455, 22108), "parquet": (14777, 16879, 32596, 36358, 41875)}


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        return importlib.import_module("fuzz")


@pytest.fixture(scope="module")
def readers(fuzz: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    return fuzz.targets(tmp_path_factory.mktemp("good"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_no_reader_fails(name: str, fuzz: ModuleType, readers: dict[str, object], tmp_path: Path) -> None:
    """By the mutations of the long run, drawn by hypothesis, which then looks for the smallest that fails."""

    @settings(max_examples=30, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, 2**32))
    def read(number: int) -> None:
        assert fuzz.one(readers[name], name, number, tmp_path)[0] != "failed"

    read()
    good = readers[name].seeds[0]  # pyright: ignore[reportAttributeAccessIssue]

    @settings(max_examples=15, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, len(good)), st.binary(max_size=24))
    def overwritten(at: int, data: bytes) -> None:
        with suppress(*fuzz.OURS):
            readers[name].read(good[:at] + data + good[at + len(data) :], tmp_path)  # pyright: ignore[reportAttributeAccessIssue]

    overwritten()


@pytest.mark.parametrize("name", FOUND)
def test_what_once_failed(name: str, fuzz: ModuleType, readers: dict[str, object], tmp_path: Path) -> None:
    """Inputs of the long runs that ended in a traceback or, 14777, the process; other pyarrows write other files."""
    for number in FOUND[name]:
        _, (seen, *_) = fuzz.watched(readers[name], name, number, 1, tmp_path)
        assert sum(seen.values()) == 1
        assert not seen.get("failed") if name == "parquet" else seen == {"refused": 1}, number


@pytest.mark.parametrize("mean", ["[1e999]", "[9" + "0" * 60 + "]", '["a"]', "[null]", "0.5", "[NaN]"])
def test_numbers_of_an_encoder(mean: str, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        importlib.import_module("fuzz_targets")._weights(tmp_path, "encoder.json")
    file = tmp_path / "encoder.json"
    assert checkpoint.load(tmp_path).blocks
    found = json.loads(file.read_text())
    file.write_text(json.dumps({**found, "mean": "HERE"}).replace('"HERE"', mean))
    with pytest.raises(UsageError, match=r"encoder.json is damaged: mean is not a list of numbers"):
        checkpoint.load(tmp_path)


def test_every_reader_is_named(readers: dict[str, object]) -> None:
    assert tuple(readers) == NAMES
    assert sum(target.share for target in readers.values()) == pytest.approx(1)  # pyright: ignore[reportAttributeAccessIssue]


def test_good_files_are_read(fuzz: ModuleType, readers: dict[str, object], tmp_path: Path) -> None:
    for name in set(NAMES) - {"texts"}:
        for seed in readers[name].seeds:  # pyright: ignore[reportAttributeAccessIssue]
            readers[name].read(seed, tmp_path / name)  # pyright: ignore[reportAttributeAccessIssue]


def test_failures_are_seen(fuzz: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader with a bug, one that ends the process, one that hangs: each is a finding with its input."""

    def read(data: bytes, folder: Path) -> None:
        if len(data) % 3 == 0:
            raise KeyError("x")

    def end(data: bytes, folder: Path) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(fuzz, "HANG", 0.5)
    entry: dict[str, object] = {}
    fuzz.add(entry, *fuzz.watched(fuzz.Target([b"abc"], read, 1), "x", 0, 50, tmp_path))
    assert 0 < entry["failed"] < 50  # pyright: ignore[reportOperatorIssue]
    assert "KeyError" in entry["failures"][0]["error"]  # pyright: ignore[reportIndexIssue]
    for bad, why in ((end, "crashed"), (lambda data, folder: time.sleep(9), "no answer")):
        entry = {}
        fuzz.add(entry, *fuzz.watched(fuzz.Target([b"abc"], bad, 1), "x", 7, 50, tmp_path))
        assert entry["inputs"] == 1
        assert entry["failures"][0]["input"] == 7  # pyright: ignore[reportIndexIssue]
        assert why in entry["failures"][0]["error"]  # pyright: ignore[reportIndexIssue]


def test_the_same_input_again(fuzz: ModuleType) -> None:
    data = [fuzz.mutated([b"abcdefgh" * 9], random.Random("images 5")) for _ in range(2)]
    assert data[0] == data[1]


def test_decompression_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few kilobytes that would be gigabytes of pixels are refused by their header, before anything is decoded."""
    file = tmp_path / "bomb.png"
    with monkeypatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", None)
        Image.new("1", (12_000, 12_000)).save(file)
    assert file.stat().st_size < 50_000
    monkeypatch.setattr(Image.Image, "load", lambda image: pytest.fail("decoded"))
    with pytest.raises(BadImage, match="144,000,000 pixels, more than the 89,478,485 allowed"):
        decode(file, 3, 32)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # beyond twice the limit Pillow itself raises
    with pytest.raises(BadImage, match=r"exceeds limit|more than the 1,000 allowed"):
        decode(file, 3, 32)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 3000,
        "format: " + "9" * 5000,
        "format: 2001-99-99",
        "x" * 200_000,
        "format: !!python/name:os.system",
    ],
)
def test_configurations_that_are_traps(text: str) -> None:
    with pytest.raises(UsageError, match=r"^config.yaml is not"):
        RunConfig.from_yaml(text, "config.yaml")


def test_json_that_is_a_trap(tmp_path: Path) -> None:
    (tmp_path / "encoder.json").write_text("[" * 100_000)
    with pytest.raises(UsageError, match="is not readable JSON"):
        checkpoint.load(tmp_path)


def test_an_archive_that_is_a_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what its headers say, before anything is unpacked."""
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros((1000, 1000)))
    monkeypatch.setattr(devices, "memory", lambda: 2**20)
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("unpacked"))
    with pytest.raises(UsageError, match=r"would take 0\.0 GiB, more memory than this machine has"):
        open_images(f"npz:{tmp_path / 'a.npz'}")


def bomb(file: Path, kind: str) -> int:
    """Write a parquet of a few kilobytes, and 64 MiB or more when it is unpacked; its rows."""
    value, count = bytes(2**20), 64
    if kind == "repeated":  # stands in the file once: what that says of its own size is true, and little
        column: Any = pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), pa.array([value]))
    elif kind == "rows":
        count = 2**17
        column = pa.array([b""] * count)
    else:
        column = pa.array([value] * count)
    dictionary = {"use_dictionary": kind == "repeated", "dictionary_pagesize_limit": 2**24}
    table = pa.table({"image": column, "label": pa.array([0] * count)})
    pq.write_table(table, file, compression="zstd", store_schema=False, **dictionary)
    assert file.stat().st_size < 50_000
    return count


@pytest.mark.parametrize(
    ("kind", "says", "most"),
    [
        ("plain", "row group 0 takes more than 0.0 GiB, half of this machine's memory; write smaller row groups", 1),
        ("repeated", "row group 0 takes more than 0.0 GiB, half of this machine's memory; write smaller row groups", 8),
        ("rows", "holds 131,072 rows, more than this machine's memory can number", 1),
    ],
    ids=["plain", "repeated", "rows"],
)
def test_a_parquet_that_is_a_bomb(
    kind: str, says: str, most: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused by what it says of its size, or once it has been seen to take more; ``most``: MiB that it has taken."""
    rows = bomb(tmp_path / "train.parquet", kind)
    monkeypatch.setattr(devices, "memory", lambda: 2**22)
    before, counted = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(counted)
    try:
        with pytest.raises(UsageError, match=says):
            open_images(f"parquet:{tmp_path}")
        assert counted.max_memory() < most * 2**20
        monkeypatch.setattr(devices, "memory", lambda: 2**30)  # then it is no bomb
        assert len(read_table([tmp_path / "train.parquet"]).rows.sources(range(rows))) == rows
    finally:
        pa.set_memory_pool(before)


def test_a_configuration_of_aliases() -> None:
    """Each line stands for ten of the line before; written out in an error they would fill any memory."""
    lines = ["format: 1", "a: &a0 [x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 20))]
    with pytest.raises(UsageError, match="it has an alias"):
        RunConfig.from_yaml("\n".join([*lines, "rule: *a19"]), "config.yaml")
