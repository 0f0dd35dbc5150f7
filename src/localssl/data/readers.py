"""One reader per data set: which files, where, and what they hold. Nothing is decoded here."""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# (torchvision and scikit-learn come without types)

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localssl.data import folders, parquet
from localssl.data import shards as tar_shards
from localssl.data.pixels import ArrayRows, EncodedRows, Rows
from localssl.errors import UsageError, in_shell

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
STL10 = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
FULL = {
    "mnist": {"train": 60_000, "test": 10_000},
    "cifar10": {"train": 50_000, "test": 10_000},
    "stl10": {"train": 5_000, "test": 8_000, "unlabeled": 100_000},
    "tiny-imagenet": {"train": 100_000, "test": 10_000},
}
CIFAR10_MD5 = "does not match torchvision's checksums; as it is a pickle it is not opened"


@dataclass(frozen=True)
class Found:
    """What a reader found on disk.

    Args:
        size: the default image size; None where the first image of ``reference`` (the training part) decides.
        held_out: where there is no test part: this share (below 1) or number of images serves as one.
    """

    rows: Rows
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...]
    channels: int = 3
    size: int | None = None
    reference: EncodedRows | None = None
    held_out: float = 0
    notes: tuple[str, ...] = ()


def digits(root: Path, split: str, download: bool) -> Found:
    """scikit-learn's embedded digits: 1,797 images of 8x8, values 0 to 16 (here 0 to 255), 500 for test."""
    from sklearn import datasets

    data: Any = datasets.load_digits()
    images = np.rint(data.images * (255 / 16)).astype(np.uint8)[:, None]
    notes = ("digits: 1,297 training and 500 test images, a fixed stratified split (seed 0)",)
    return Found(ArrayRows([images]), data.target.astype(np.int64), _numbers(10), 1, 16, held_out=500, notes=notes)


def mnist(root: Path, split: str, download: bool) -> Found:
    """MNIST's idx files, 28x28, padded with zeros to 32x32; the files are read by torchvision's reader."""
    from torchvision import datasets
    from torchvision.datasets.mnist import read_image_file, read_label_file

    part = "train" if split == "train" else "t10k"
    names = (f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte")
    places = [root / "MNIST" / "raw", root / "raw", root]
    place = next((p for p in places if all((p / name).is_file() for name in names)), None)
    if place is None and download:
        _fetch("mnist", lambda: datasets.MNIST(str(root), download=True))
        place = places[0]
    if place is None:
        raise missing("mnist", [(p, names) for p in places], f"fetch it: {fetching('mnist', root)}")
    try:
        images = read_image_file(str(place / names[0])).numpy()
        labels = read_label_file(str(place / names[1])).numpy()
    except (AssertionError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise UsageError(
            f"{place / names[0]} or its labels cannot be read ({error}); delete both and fetch them again"
        ) from error
    if len(images) != len(labels):
        raise UsageError(
            f"{place}: {len(images)} {part} images but {len(labels)} labels; delete both and fetch them again"
        )
    return Found(ArrayRows([images[:, None]], padding=2), labels, _numbers(10), 1, 32)


def cifar10(root: Path, split: str, download: bool) -> Found:
    """CIFAR-10: the official binary version, else parquet, else torchvision's pickle (after its md5)."""
    places = [root / "cifar10", root]
    names = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
    for place in [p for base in places for p in (base / "cifar-10-batches-bin", base)]:
        if any((place / name).is_file() for both in names.values() for name in both):
            return _cifar10_binary(place, names[split])
    for place in places:
        files = parquet.find_parts(place, ["train"] if split == "train" else parquet.TEST_NAMES)
        if files:
            return _cifar10_parquet(files)
    place = next((p for p in places if (p / "cifar-10-batches-py").is_dir()), None)
    if place is None and not download:
        looked = [(p, ("cifar-10-batches-bin/*.bin", f"{split}.parquet", "cifar-10-batches-py")) for p in places]
        raise missing("cifar10", looked, f"fetch its python version: {fetching('cifar10', root)}")
    return _cifar10_python(place or root, split, download, root)


def _cifar10_binary(place: Path, names: Sequence[str]) -> Found:
    parts = [records(place / name, 3073, 10_000) for name in names]
    labels = np.concatenate([part[:, 0] for part in parts]).astype(np.int64)
    if labels.max() > 9:
        raise UsageError(f"{place} holds a label {labels.max()}, not 0 to 9: it is not CIFAR-10's binary version")
    images = [part[:, 1:].reshape(-1, 3, 32, 32) for part in parts]
    return Found(ArrayRows(images), labels, CIFAR10, 3, 32)


def _cifar10_parquet(files: Sequence[Path]) -> Found:
    table = _table(files, "CIFAR-10", 10)
    first = table.rows.sources([0])[0]
    jpeg = isinstance(first, bytes) and first.startswith(b"\xff\xd8")
    notes = ("CIFAR-10 (JPEG)" if jpeg else "CIFAR-10 (parquet)", *table.notes)
    return Found(table.rows, table.labels, table.classes or CIFAR10, 3, 32, notes=notes)


def _cifar10_python(place: Path, split: str, download: bool, root: Path) -> Found:
    from torchvision import datasets

    if download:
        _fetch("cifar10", lambda: datasets.CIFAR10(str(place), download=True))
    try:  # torchvision compares every file's md5 before it unpickles any
        data = datasets.CIFAR10(str(place), train=split == "train")
    except RuntimeError as error:
        folder = place / "cifar-10-batches-py"
        raise UsageError(
            f"{folder} {CIFAR10_MD5}: delete it and fetch it again: {fetching('cifar10', root)}"
        ) from error
    images: NDArray[np.uint8] = data.data.transpose(0, 3, 1, 2)
    return Found(ArrayRows([images]), np.asarray(data.targets, dtype=np.int64), CIFAR10, 3, 32)


def stl10(root: Path, split: str, download: bool) -> Found:
    """STL-10's official binary files, 96x96, channels stored by columns; labels 1 to 10 (here 0 to 9)."""
    from torchvision import datasets

    names = [f"{split}_X.bin"] + [f"{split}_y.bin"] * (split != "unlabeled")
    places = [root / "stl10_binary", root / "stl10" / "stl10_binary", root / "stl10", root]
    place = next((p for p in places if all((p / name).is_file() for name in names)), None)
    if place is None and download:
        # one archive for all parts; torchvision then reads the part it is asked for, the smallest of them
        _fetch("stl10", lambda: datasets.STL10(str(root), split="train", download=True))
        place = places[0]
    if place is None:
        raise missing("stl10", [(p, names) for p in places], f"fetch it (2.6 GB): {fetching('stl10', root)}")
    official = FULL["stl10"][split]
    raw = records(place / names[0], 3 * 96 * 96, official)
    rows = ArrayRows([raw.reshape(-1, 3, 96, 96).transpose(0, 1, 3, 2)])
    if split == "unlabeled":
        return Found(rows, None, STL10, 3, 96)
    labels = np.fromfile(place / names[1], dtype=np.uint8).astype(np.int64) - 1
    if len(labels) != len(rows) or not ((labels >= 0) & (labels <= 9)).all():
        raise UsageError(f"{place / names[1]} does not hold one label from 1 to 10 for each of {len(rows)} images")
    return Found(rows, labels, STL10, 3, 96)


def tiny_imagenet(root: Path, split: str, download: bool) -> Found:
    """Tiny ImageNet, 64x64: image parquet (train, val), else the official folder ``tiny-imagenet-200``."""
    places = [root / "tiny-imagenet", root]
    for place in places:
        files = parquet.find_parts(place, ["train"] if split == "train" else ["val", "valid", "validation"])
        if files:
            table = _table(files, "Tiny ImageNet", 200)
            return Found(table.rows, table.labels, table.classes or _numbers(200), 3, 64, notes=table.notes)
    for place in [p for base in places for p in (base / "tiny-imagenet-200", base)]:
        if (place / "wnids.txt").is_file() or (place / "val" / "val_annotations.txt").is_file():
            found = folders.read_tiny_imagenet(place, split)
            return Found(found.rows, found.labels, found.classes, 3, 64)
    part = "train" if split == "train" else "val"
    hint = "get tiny-imagenet-200.zip from Stanford's CS231n (cs231n.stanford.edu) and unpack it there"
    raise missing("tiny-imagenet", [(p, (f"{part}.parquet", "tiny-imagenet-200/wnids.txt")) for p in places], hint)


def imagefolder(path: Path, split: str) -> Found:
    """A user's own images in class folders."""
    train_place, test_place = folders.find_parts(path)
    train = folders.read_folder(train_place)
    part = train if split == "train" or test_place is None else folders.read_folder(test_place, train.classes)
    held_out = 0.2 if test_place is None else 0
    return Found(part.rows, part.labels, train.classes, reference=train.rows, held_out=held_out, notes=part.notes)


def image_parquet(path: Path, split: str) -> Found:
    """A user's own image parquet: a folder with train and test|val files, or one file without a test part."""
    expected = "expected train.parquet and test.parquet or val.parquet (or train-00000-of-00002.parquet, …)"
    if not path.exists():
        raise UsageError(f"no parquet file or folder {path}: give a .parquet file, or a folder; {expected}")
    train_files = [path] if path.is_file() else parquet.find_parts(path, ["train"])
    test_files = [] if path.is_file() else parquet.find_parts(path, parquet.TEST_NAMES)
    if not train_files:
        seen = sorted(file.name for file in path.iterdir())
        listing = ", ".join(seen[:8]) + (", …" if len(seen) > 8 else "") or "nothing"
        raise UsageError(f"{path} has no training files: found {listing}; {expected}")
    train = parquet.read_table(train_files)
    part = train if split == "train" or not test_files else parquet.read_table(test_files)
    top = -1 if train.labels is None else int(train.labels.max())
    classes = train.classes or _numbers(top + 1)
    if part.labels is not None and part.labels.max() >= len(classes):
        row = part.rows.name(int(part.labels.argmax()))
        raise UsageError(f"{row} has the label {part.labels.max()}, but the training part has {len(classes)} classes")
    held_out = 0 if test_files else 0.2
    return Found(part.rows, part.labels, classes, reference=train.rows, held_out=held_out, notes=part.notes)


def shards(path: Path, split: str) -> Found:
    """A user's own tar shards, as webdataset writes them: a folder, or a pattern without a test part."""
    train_files, test_files = tar_shards.find_parts(path)
    train = tar_shards.read_shards(train_files)
    part = train if split == "train" or not test_files else tar_shards.read_shards(test_files)
    count = 0 if train.labels is None else int(train.labels.max()) + 1
    if part.labels is not None and part.labels.max() >= count:
        row = part.rows.name(int(part.labels.argmax()))
        raise UsageError(f"{row} has the label {part.labels.max()}, but the training part has {count} classes")
    held_out = 0 if test_files else 0.2
    return Found(part.rows, part.labels, _numbers(count), reference=train.rows, held_out=held_out, notes=part.notes)


NAMED: dict[str, Callable[[Path, str, bool], Found]] = {
    "digits": digits, "mnist": mnist, "cifar10": cifar10, "stl10": stl10, "tiny-imagenet": tiny_imagenet
}  # fmt: skip
WITH_PATH: dict[str, Callable[[Path, str], Found]] = {
    "imagefolder": imagefolder, "parquet": image_parquet, "shards": shards
}  # fmt: skip
DOWNLOADS = ("mnist", "cifar10", "stl10")


def records(file: Path, length: int, official: int) -> NDArray[np.uint8]:
    """A file of records of ``length`` bytes as (n, length), mapped from disk; ``official``: the usual n.

    Raises:
        UsageError: the file is missing, or cut inside a record.
    """
    if not file.is_file():
        raise UsageError(f"{file} is missing: the files beside it are not the whole data set; fetch it again")
    count, rest = divmod(file.stat().st_size, length)
    if rest or not count:
        size = file.stat().st_size
        raise UsageError(
            f"{file} is damaged: {size:,} bytes, expected {official * length:,}; delete it and fetch it again"
        )
    return np.memmap(file, dtype=np.uint8, mode="r").reshape(count, length)


def missing(data: str, looked: Sequence[tuple[Path, Sequence[str]]], hint: str) -> UsageError:
    """The error for files that are not there: what was looked for, where, and how to get it."""
    names = ", ".join(dict.fromkeys(name for _, names in looked for name in names))
    places = ", ".join(str(place) for place, _ in looked)
    return UsageError(f"{data} not found: looked for {names} in {places}; name its folder with --data-root, or {hint}")


def data_folder(root: str | Path | None) -> Path:
    """The folder that holds the named data sets: the one that was named, else the environment's, else "data"."""
    return Path(root or os.environ.get("LOCALSSL_DATA") or "data").expanduser()


def fetching(data: str, root: Path) -> str:
    """The command that fetches a data set and does no more: any may miss it, and train alone has --download."""
    place = [] if root == data_folder(None) else ["--data-root", str(root)]
    return in_shell(["localssl", "train", "--rule", "clapp", "--data", data, "--download", "--dry-run", *place])


def _table(files: Sequence[Path], name: str, classes: int) -> parquet.Table:
    """An image parquet that must be of this set, with so many classes."""
    table = parquet.read_table(files)
    top = -1 if table.labels is None else int(table.labels.max())
    if (table.classes is not None and len(table.classes) != classes) or top >= classes:
        count = len(table.classes or ()) or top + 1
        raise UsageError(f"{files[0]} holds {count} classes, not {name}'s {classes}")
    return table


def _fetch(data: str, build: Callable[[], object]) -> None:
    try:
        build()
    except (OSError, RuntimeError, EOFError, HTTPException, tarfile.TarError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise UsageError(f"the download of {data} failed ({reason}); try again, or fetch it by hand") from error


def _numbers(count: int) -> tuple[str, ...]:
    return tuple(str(i) for i in range(count))
