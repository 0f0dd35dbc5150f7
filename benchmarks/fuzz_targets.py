"""What is fuzzed: readers of files, good files to begin from, and the mutations that are made of them."""

from __future__ import annotations

import io
import json
import os
import random
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from localssl import encoders
from localssl.data import folders, index_file, parquet, readers, shards
from localssl.data.decode import BadImage, decode, is_colour, shorter_side
from localssl.data.sources import open_images
from localssl.errors import RunError, UsageError
from localssl.runs import checkpoint, flagfile, metrics
from localssl.runs.config import RunConfig, TrainConfig
from localssl.runs.run import manifest_of, resolve

OURS = (UsageError, RunError, BadImage)  # what a reader may raise, whatever a file holds
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)
WORDS = (
    *(b"nan", b"-1", b"1e999", b"null", b"[]", b"{}", b"2001-99-99", b"9" * 5000, b"[" * 2000),
    *(b"&a [*a]", b"\xff\xfe", b"!!python/name:os.system", b"../../x"),
)


@dataclass(frozen=True)
class Target:
    """A reader.

    Args:
        seeds: files that it reads.
        read: reads a file's bytes with a folder to write them to; may raise ``OURS`` only.
        share: of all inputs.
    """

    seeds: Sequence[bytes]
    read: Callable[[bytes, Path], object]
    share: float


def mutated(seeds: Sequence[bytes], chance: random.Random) -> bytes:
    """One of the files, changed in a few places; at times nothing but noise."""
    if chance.random() < 0.02:
        return chance.randbytes(chance.randrange(2000))
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        at = chance.randrange(len(data) + 1)
        kind = chance.randrange(8)
        if kind == 0 and data:
            data[min(at, len(data) - 1)] ^= 1 << chance.randrange(8)
        elif kind == 1 and data:
            data[min(at, len(data) - 1)] = chance.randrange(256)
        elif kind == 2:
            size = chance.choice((1, 2, 4, 8))
            number = chance.choice(NUMBERS) % 256**size
            data[at : at + size] = number.to_bytes(size, chance.choice(("big", "little")))
        elif kind == 3:
            del data[at:]
        elif kind == 4:
            del data[at : at + chance.randrange(1, 64)]
        elif kind == 5:
            data[at:at] = data[at : at + chance.randrange(1, 64)] * chance.choice((1, 2, 50))
        elif kind == 6:
            other = chance.choice(seeds)
            data[at:] = other[chance.randrange(len(other) + 1) :]
        else:
            data[at:at] = chance.choice(WORDS)
    return bytes(data)


def _written(folder: Path, name: str, data: bytes) -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return file


def _pictures() -> list[bytes]:
    chance = np.random.RandomState(0)
    found: list[bytes] = []
    for mode, shape in (("RGB", (9, 12, 3)), ("L", (10, 8)), ("RGBA", (6, 6, 4))):
        image = Image.fromarray(chance.randint(0, 255, shape, dtype=np.uint8), mode)
        for kind in ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF", "PPM"):
            if (mode == "RGBA" and kind in ("JPEG", "BMP", "PPM")) or (kind == "GIF" and mode != "L"):
                continue
            into = io.BytesIO()
            image.save(into, kind)
            found.append(into.getvalue())
    return found


def _image(data: bytes, folder: Path) -> None:
    is_colour(data)
    shorter_side(data)
    decode(data, 3, 16)


def _tables() -> list[bytes]:
    images = _pictures()[:4]
    info = json.dumps({"info": {"features": {"label": {"_type": "ClassLabel", "names": ["a", "b"]}}}})
    found: list[bytes] = []
    for packing in ("none", "snappy"):
        rows = [{"bytes": image, "path": None} for image in images]
        table = pa.table({"image": rows, "label": [0, 1, 0, 1]}).replace_schema_metadata({"huggingface": info})
        into = io.BytesIO()
        pq.write_table(table, into, compression=packing, row_group_size=2)
        found.append(into.getvalue())
    return found


def _parquet(data: bytes, folder: Path) -> None:
    table = parquet.read_table([_written(folder, "train.parquet", data)])
    if len(table.rows) <= 1000:
        table.rows.load(range(min(4, len(table.rows))), 3, 16)


def _tars() -> list[bytes]:
    found: list[bytes] = []
    for form in (tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        into = io.BytesIO()
        with tarfile.open(fileobj=into, mode="w", format=form) as archive:
            for i, image in enumerate(_pictures()[:3]):
                key = f"{'x' * 120}/{i}" if i == 2 else f"{i}"  # a name that one header does not hold
                for name, data in ((f"{key}.png", image), (f"{key}.cls", b"1")):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
        found.append(into.getvalue())
    return found


def _tar(data: bytes, folder: Path) -> None:
    """Headers keep a checksum that holds, or hardly any would be read."""
    whole = bytearray(data)
    for at in range(0, len(whole) - 511, 512):
        if whole[at + 257 : at + 262] == b"ustar":
            head = whole[at : at + 148] + b" " * 8 + whole[at + 156 : at + 512]
            whole[at + 148 : at + 156] = b"%06o\0 " % sum(head)
    (folder / index_file.NAME).unlink(missing_ok=True)
    _shards(_written(folder, "a.tar", bytes(whole)))


def _shards(file: Path) -> None:
    rows = shards.read_shards([file]).rows
    rows.load(range(min(4, len(rows))), 3, 16)


def _indices(folder: Path) -> list[bytes]:
    file = _written(folder, "a.tar", _tars()[0])
    os.utime(file, (1, 1))
    shards.read_shards([file])
    return [(folder / index_file.NAME).read_bytes()]


def _index(data: bytes, folder: Path) -> None:
    file = _written(folder, "a.tar", _tars()[0])
    os.utime(file, (1, 1))  # the index is of a file of that time
    _written(folder, index_file.NAME, data)
    _shards(file)


def _idx() -> list[bytes]:
    header = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (3, 28, 28))
    return [header + bytes(3 * 28 * 28), b"\0\0\x08\x01" + (3).to_bytes(4, "big") + b"\1\2\3"]


def _mnist(data: bytes, folder: Path) -> None:
    names, good = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"), _idx()
    first = data[3:4] != b"\1"
    for name, text in zip(names, (data, good[1]) if first else (good[0], data), strict=True):
        _written(folder, name, text)
    found = readers.mnist(folder, "train", False)
    found.rows.load(range(min(3, len(found.rows))), 1, 32)


def _records(name: str, labels: str | None, data: bytes, folder: Path) -> None:
    _written(folder, name, data)
    if labels is None:
        for i in range(2, 6):
            _written(folder, f"data_batch_{i}.bin", bytes(3073))
        found = readers.cifar10(folder, "train", False)
    else:
        _written(folder, labels, b"\1\2")
        found = readers.stl10(folder, "train", False)
    found.rows.load(range(min(3, len(found.rows))), 3, 32)


def _stl_labels(data: bytes, folder: Path) -> None:
    _written(folder, "train_X.bin", bytes(2 * 3 * 96 * 96))
    _written(folder, "train_y.bin", data)
    readers.stl10(folder, "train", False)


def _npz_files() -> list[bytes]:
    found: list[bytes] = []
    for save in (np.savez, np.savez_compressed):
        into = io.BytesIO()
        save(into, x=np.ones((6, 5), dtype=np.float32), y=np.arange(6) % 2)
        found.append(into.getvalue())
    return found


def _npz(data: bytes, folder: Path) -> None:
    open_images(f"npz:{_written(folder, 'a.npz', data)}")


def _configs() -> list[bytes]:
    found = [TrainConfig(rule=rule, data="digits", epochs=1) for rule in ("clapp++dfb", "scff")]
    return [resolve(config)[0].to_yaml().encode() for config in found]


def _config(data: bytes, folder: Path) -> None:
    text = data.decode("utf-8", errors="replace")
    config = RunConfig.from_yaml(text, "config.yaml")
    config.flat()
    RunConfig.from_yaml(config.to_yaml(), "config.yaml")


def _weights(folder: Path, which: str) -> list[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    encoder = encoders.mlp(4, (3, 2))
    config = resolve(TrainConfig(rule="clapp++", data="digits", epochs=1))[0]
    checkpoint.save_encoder(folder, encoder, config)
    return [(folder / which).read_bytes()]


def _encoder(which: str, good: dict[str, bytes], data: bytes, folder: Path) -> None:
    for name, text in good.items():
        _written(folder, name, data if name == which else text)
    encoder = checkpoint.load(folder)
    assert sum(p.numel() for p in encoder.parameters()) < 10_000_000


def _states() -> list[bytes]:
    net = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = {"format": 1, "step": 3, "seconds": 0.5, "config": "format: 1\n", "learner": net.state_dict()}
    state |= {"optimizer": optimizer.state_dict(), "rng": {"python": [1, 2]}, "sum": torch.zeros(2), "count": 1}
    into = io.BytesIO()
    torch.save(state, into)
    return [into.getvalue()]


def _checkpoint(data: bytes, folder: Path) -> None:
    _written(folder, "checkpoint/step-000000003.pt", data)
    checkpoint.read_last(folder)


def _texts(data: bytes, folder: Path) -> None:
    """What a run's folder holds besides, and Tiny ImageNet's table."""
    for name in ("metrics.csv", "manifest.json", "train/n01/images/x", "val/val_annotations.txt"):
        _written(folder, name, data)
    metrics.read(folder)
    manifest_of(folder, "data")
    folders.read_tiny_imagenet(folder, "test")


def _flags(data: bytes, folder: Path) -> None:
    """A file of ``--config``."""
    flagfile.read(_written(folder, "flags.yaml", data), TrainConfig)


def targets(folder: Path) -> dict[str, Target]:
    """All of them by name; good files are made in ``folder``."""
    flags = (
        b"rule: clapp++dfb\ndata: digits\nbatch-size: 32\nlr: 1.0e-3\nwidth: 0.25\nrule-options: {f: softplus}\n"
        b"resume: false\nout: runs/x\nencoder-options: [pool=avg]\n"
    )
    good = {name: _weights(folder, name)[0] for name in ("encoder.json", "encoder.safetensors")}
    cifar = (b"\3" + bytes(range(256)) * 12)[:3073] * 2
    texts = [b"x.JPEG\tn01\t0\t0\t1\t1\n", b"step,loss\n1,2.0\n2,1.5\n", b'{"data": {"root": "x"}}']
    return {
        "images": Target(_pictures(), _image, 0.23),
        "parquet": Target(_tables(), _parquet, 0.05),
        "idx": Target(_idx(), _mnist, 0.2),
        "stl10": Target([bytes(2 * 3 * 96 * 96)], partial(_records, "train_X.bin", "train_y.bin"), 0.02),
        "stl10 labels": Target([b"\1\2"], _stl_labels, 0.08),
        "cifar10": Target([cifar], partial(_records, "data_batch_1.bin", None), 0.02),
        "npz": Target(_npz_files(), _npz, 0.05),
        "tar": Target(_tars(), _tar, 0.05),
        "tar index": Target(_indices(folder / "tars"), _index, 0.02),
        "configuration": Target(_configs(), _config, 0.01),
        "encoder.json": Target([good["encoder.json"]], partial(_encoder, "encoder.json", good), 0.02),
        "safetensors": Target([good["encoder.safetensors"]], partial(_encoder, "encoder.safetensors", good), 0.05),
        "checkpoint": Target(_states(), _checkpoint, 0.1),
        "texts": Target(texts, _texts, 0.095),
        "flags": Target([flags], _flags, 0.005),
    }


def scratch() -> str | None:
    """A folder in memory for the files that are read, where there is one."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
