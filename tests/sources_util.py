"""Small data sets in the layouts that the readers know, and the places of the real ones."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

Picture = NDArray[np.uint8]


def pictures(count: int, height: int = 32, width: int = 32, seed: int = 0) -> Picture:
    """Random colour images (count, H, W, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def encoded(picture: Picture | Image.Image, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(stream, kind)
    return stream.getvalue()


def cut(data: bytes) -> bytes:
    return data[: len(data) * 3 // 4]


def write_parquet(
    file: Path,
    images: Sequence[bytes | None],
    labels: Sequence[int | None] | None = None,
    names: Sequence[str] | None = None,
    columns: tuple[str, str] = ("image", "label"),
    group: int = 3,
) -> Path:
    """An image parquet as data hubs publish it, in row groups of a few rows."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = {columns[0]: pa.array([{"bytes": data, "path": None} for data in images], kind)}
    if labels is not None:
        table[columns[1]] = pa.array(labels, pa.int64())
    features = {columns[1]: {"_type": "ClassLabel", "names": names}} if names else {}
    described = {"huggingface": json.dumps({"info": {"features": features}})}
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table).replace_schema_metadata(described), file, row_group_size=group)
    return file


def write_cifar10(folder: Path, count: int = 4) -> tuple[Picture, list[int]]:
    """The binary version, a few records a file; returns its training part as (n, 3, 32, 32) and labels."""
    folder.mkdir(parents=True)
    images = pictures(6 * count, 3, 32 * 32 // 3 + 1)[..., :].reshape(6 * count, -1)[:, :3072]
    labels = [(7 * i) % 10 for i in range(6 * count)]
    for number, name in enumerate([f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]):
        rows = range(number * count, (number + 1) * count)
        (folder / name).write_bytes(b"".join(bytes([labels[row]]) + images[row].tobytes() for row in rows))
    return images[: 5 * count].reshape(-1, 3, 32, 32), labels[: 5 * count]


def write_idx(folder: Path, part: str, images: Picture, labels: Sequence[int]) -> None:
    """MNIST's two idx files of a part ("train", "t10k") from images (n, 28, 28)."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = b"".join(n.to_bytes(4, "big") for n in images.shape)
    (folder / f"{part}-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + sizes + images.tobytes())
    head = b"\0\0\x08\x01" + len(labels).to_bytes(4, "big")
    (folder / f"{part}-labels-idx1-ubyte").write_bytes(head + bytes(labels))


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def write_tar(file: Path, members: Iterable[tuple[str | tarfile.TarInfo, bytes]]) -> Path:
    """A tar file of these members, in this order."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name) if isinstance(name, str) else name
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return file


def write_shards(
    folder: Path, images: Sequence[bytes], labels: Sequence[int] | None = None, each: int = 4, name: str = "train"
) -> Path:
    """Shards NAME-000000.tar, … as webdataset writes them: 000007.jpg and 000007.cls after each other."""
    for shard, first in enumerate(range(0, len(images), each)):
        members: list[tuple[str, bytes]] = []
        for i in range(first, min(first + each, len(images))):
            members += [(f"{i:06}.jpg", images[i])]
            members += [] if labels is None else [(f"{i:06}.cls", str(labels[i]).encode())]
        write_tar(folder / f"{name}-{shard:06}.tar", members)
    return folder


def stl10(root: Path, unlabeled: int, train: int, test: int) -> None:
    """Noise in STL-10's files, so many images of each part."""
    folder = root / "stl10_binary"
    folder.mkdir()
    for part, count in (("unlabeled", unlabeled), ("train", train), ("test", test)):
        (folder / f"{part}_X.bin").write_bytes(pictures(count, 96, 96).tobytes())
        if part != "unlabeled":
            (folder / f"{part}_y.bin").write_bytes(bytes(1 + i % 10 for i in range(count)))


def real_root(needed: str) -> Path:
    """The folder with the real data sets; skips the test where the file asked for is not there."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    root = Path(os.environ.get("LOCALSSL_DATA") or beside)
    if not (root / needed).exists():
        pytest.skip(f"real data absent: no {needed} in {root} (set LOCALSSL_DATA)")
    return root
