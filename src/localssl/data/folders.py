"""Image files in class folders: any user's own, and the official Tiny ImageNet."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from localssl.data.parquet import TEST_NAMES
from localssl.data.pixels import FileRows
from localssl.errors import UsageError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp")
LAYOUT = "expected PATH/train/CLASS/*.jpg with PATH/test or PATH/val beside it, or PATH/CLASS/*.jpg"


@dataclass(frozen=True)
class Folder:
    """One part of an image folder, not decoded. ``labels`` None: the images lie in no class folders."""

    rows: FileRows
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...]
    notes: tuple[str, ...]


def find_parts(folder: Path) -> tuple[Path, Path | None]:
    """The folders of the training and the test part; the test part is None where there is none.

    Raises:
        UsageError: no such folder, or a test part without a training part.
    """
    if not folder.is_dir():
        raise UsageError(f"no image folder {folder}: {LAYOUT}")
    test = next((folder / name for name in TEST_NAMES if (folder / name).is_dir()), None)
    if (folder / "train").is_dir():
        return folder / "train", test
    if test is not None:
        raise UsageError(f"{folder} has {test.name}/ but no train/: {LAYOUT}")
    return folder, None


def read_folder(folder: Path, classes: Sequence[str] | None = None) -> Folder:
    """Lists the images below each class folder, classes and files in sorted order.

    Args:
        classes: the training part's classes, which number the labels of a test part; None: the folder's own.

    Raises:
        UsageError: no images, or a class that the training part does not have.
    """
    found = {name: _images(folder / name) for name in _subfolders(folder)}
    own = [name for name, images in found.items() if images]
    loose = [name for name in sorted(os.listdir(folder)) if _is_image(name)]
    if not own and not loose:
        raise UsageError(f"no images in {folder}: {LAYOUT} ({', '.join(EXTENSIONS)})")
    if not own:
        return Folder(FileRows(folder, loose), None, (), ("no class folders: unlabelled images",))
    known = tuple(own) if classes is None else tuple(classes)
    strange = [name for name in own if name not in known]
    if strange:
        raise UsageError(f"{folder} has a class folder {strange[0]!r} that the training part does not have")
    files = [(f"{name}/{file}", known.index(name)) for name in own for file in found[name]]
    notes = (f"{len(loose):,} images outside the class folders left out",) if loose else ()
    labels = np.asarray([label for _, label in files], dtype=np.int64)
    return Folder(FileRows(folder, [file for file, _ in files]), labels, known, notes)


def read_tiny_imagenet(folder: Path, split: str) -> Folder:
    """The official ``tiny-imagenet-200``: train/WNID/images/*, val/images/*, val/val_annotations.txt.

    Labels follow the sorted WordNet ids; the official test part has no labels, so the validation part serves.

    Raises:
        UsageError: missing files, or an annotation that names an unknown class or file.
    """
    train = folder / "train"
    classes = _subfolders(train) if train.is_dir() else []
    if not classes:
        raise UsageError(f"{folder} has no class folders in train/: unpack tiny-imagenet-200.zip again")
    number = {name: label for label, name in enumerate(classes)}
    if split == "train":
        files = [(f"{name}/{file}", number[name]) for name in classes for file in _images(train / name)]
        return _folder(train, files, classes)
    table = folder / "val" / "val_annotations.txt"
    if not table.is_file():
        raise UsageError(f"{table} is missing: unpack tiny-imagenet-200.zip again")
    text = table.read_text(encoding="utf-8", errors="replace")
    lines = [line.split("\t") for line in text.splitlines() if line.strip()]
    strange = next((line for line in lines if len(line) < 2 or line[1] not in number), None)
    if strange is not None:
        raise UsageError(f"{table}: {strange[0]} has none of the {len(classes)} classes in train/")
    away = next((line[0] for line in lines if not line[0] or Path(line[0]).name != line[0]), None)
    if away is not None:
        raise UsageError(f"{table}: {away!r} is no name of a file in val/images")
    return _folder(folder / "val", [(f"images/{line[0]}", number[line[1]]) for line in lines], classes)


def _folder(place: Path, files: Sequence[tuple[str, int]], classes: Sequence[str]) -> Folder:
    if not files:
        raise UsageError(f"no images in {place}: unpack tiny-imagenet-200.zip again")
    labels = np.asarray([label for _, label in files], dtype=np.int64)
    return Folder(FileRows(place, [file for file, _ in files]), labels, tuple(classes), ())


def _subfolders(folder: Path) -> list[str]:
    return sorted(e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith("."))


def _images(folder: Path) -> list[str]:
    """Image files anywhere below a folder, relative to it, sorted (a file system has an order of its own)."""
    found = [Path(place, name) for place, _, names in os.walk(folder) for name in names if _is_image(name)]
    return sorted(file.relative_to(folder).as_posix() for file in found)


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")
