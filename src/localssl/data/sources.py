"""What images: every data set by name, its labels, and its pixels as uint8, from memory or from disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from localssl.data import arrays, shards
from localssl.data.decode import BadImage, is_colour, shorter_side
from localssl.data.pixels import EncodedRows, InMemory, Pixels, Streamed, decode_all
from localssl.data.readers import DOWNLOADS, FULL, NAMED, WITH_PATH, Found, data_folder
from localssl.errors import UsageError, unknown

SPLITS = ("train", "test", "unlabeled")
SAMPLE = 64  # images that a fingerprint looks at
LOOKED_AT = 16  # images that say whether a user's own are in colour


@dataclass(frozen=True, eq=False)
class Images:
    """One part of a data set.

    Args:
        name: the data set as the user typed it: "cifar10", "parquet:DIR".
        split: "train", "test" or "unlabeled".
        labels: int64 (N,), None for unlabelled images.
        classes: the name of each label.
        notes: one-line remarks on what was read, converted, skipped or split.
        shape: (C, H, W) of every image; of arrays (d,), (C, T) or (C, H, W).
        pixels: where the images come from.
        facts: those of the notes that belong beside a number made from these images.
    """

    name: str
    split: str
    labels: Tensor | None
    classes: tuple[str, ...]
    notes: tuple[str, ...]
    shape: tuple[int, ...]
    pixels: Pixels = field(repr=False)
    facts: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, index: Tensor) -> Tensor:
        """The images at an int64 index (n,): uint8 (n, C, H, W) on the CPU; arrays as they are, floats float32.

        Raises:
            IndexError: a number outside 0..N-1.
            localssl.errors.RunError: an image read from disk cannot be decoded.
        """
        return self.pixels.read(self._checked(index))

    def ahead(self, batches: Sequence[Tensor], meanwhile: bool = True) -> Generator[Tensor]:
        """What ``batch`` gives for each of these indices, one after the other.

        Images that are read from disk are decoded while the ones before are used, unless ``meanwhile`` is False. Close
        it where it is left early.

        Raises:
            IndexError, localssl.errors.RunError: as ``batch``, when the batch that they are about is asked for.
        """
        return self.pixels.ahead([self._checked(index) for index in batches], meanwhile)

    def subset(self, index: Tensor) -> Images:
        """The images at an int64 index (n,), in its order, with their labels."""
        index = self._checked(index)
        labels = None if self.labels is None else self.labels[index]
        return replace(self, labels=labels, pixels=self.pixels.subset(index))

    def fingerprint(self) -> str:
        """sha256 (hex) of the shape, the number of images, all labels, and the pixels of 64 images."""
        count = len(self)
        digest = hashlib.sha256(f"{self.shape} {count}".encode())
        if self.labels is not None:
            digest.update(self.labels.numpy().astype("<i8").tobytes())
        sample = np.unique(np.arange(SAMPLE) * count // SAMPLE)
        digest.update(self.batch(torch.as_tensor(sample)).numpy().tobytes())
        return digest.hexdigest()

    def _checked(self, index: Tensor) -> Tensor:
        if index.dtype != torch.int64 or index.ndim != 1:
            raise IndexError(f"an index must be int64 (n,), got {index.dtype} of shape {tuple(index.shape)}")
        index = index.cpu()
        if len(index) and (int(index.min()) < 0 or int(index.max()) >= len(self)):
            raise IndexError(f"index {int(index.min())}..{int(index.max())} is not within 0..{len(self) - 1}")
        return index


def data_names() -> tuple[str, ...]:
    """The data sets there are, as a user types them."""
    return (*NAMED, *(f"{kind}:PATH" for kind in (*WITH_PATH, arrays.KIND)), "PATH.py:NAME")


def open_images(
    data: str,
    split: str = "train",
    *,
    root: str | Path | None = None,
    channels: int | None = None,
    image_size: int | None = None,
    limit: int | None = None,
    download: bool = False,
    skip_bad: bool = False,
    memory_limit: int | None = None,
    processes: int = 1,
) -> Images:
    """Opens one part of a data set.

    Args:
        data: one of ``data_names()``.
        split: "train" or "test"; "unlabeled" for stl10's 100,000 images without labels.
        root: the folder that holds the named data sets; None: the environment's LOCALSSL_DATA, else "data".
        channels: 1 (luma) or 3 (RGB); None: what the data set has.
        image_size: side in pixels; None: what the data set has, for a user's own images the shorter side of
            the first training image rounded down to a multiple of 32, within 32 to 96.
        limit: only this many images, drawn at random with seed 0 and kept in the data set's order.
        download: fetch what is missing (torchvision: mnist, cifar10, stl10).
        skip_bad: leave out images that cannot be decoded, and grayscale ones among a user's own colour images.
            Where images are read from disk while a run goes on, they are replaced by the nearest good one of the
            same class: finding them first takes long.
        memory_limit: bytes that the decoded images may take (uint8); more are decoded whenever they are asked
            for, and as many bytes may then keep encoded ones. None: half of the memory that is free.
        processes: of this machine that open the same images and share that memory.

    Raises:
        UsageError: an unknown name, missing or damaged files, an image that cannot be decoded, bad options.
    """
    if arrays.are_arrays(data):  # they have a shape of their own, and no files to decode
        _check_options(None, None, limit, None)
        return _of_arrays(data, split, limit, download)
    _check_options(channels, image_size, limit, memory_limit)
    found = _find(data, split, root, download)
    index, notes = _choose(found.labels, len(found.rows), found.held_out, split, limit)
    full = FULL.get(data, {}).get(split, len(found.rows))
    if len(found.rows) != full:
        notes.insert(0, f"not the full set: {len(found.rows):,} of {full:,} {split} images")
    channels = found.channels if channels is None else channels
    if ":" in data and channels == 3 and isinstance(found.rows, EncodedRows):  # published sets come as they are
        found.rows.refuse_gray = _has_colour(found.rows)
    size = image_size or found.size or _default_size(found.reference, skip_bad)
    memory = (_free_memory() // 2 if memory_limit is None else memory_limit) // processes
    bytes_needed = len(index) * channels * size * size
    if bytes_needed <= memory:
        images, index, remarks = decode_all(found.rows, index, channels, size, skip_bad)
        verb, mebibytes = f"{found.rows.verb} into memory", images.nbytes / 2**20
        digits = 0 if mebibytes >= 10 else 1
        how = f"{len(index):,} images {verb} at {size} × {size} ({mebibytes:,.{digits}f} MiB)"
        notes += remarks
        pixels: Pixels = InMemory(images)
    else:
        found.rows.memory = memory
        labels = None if found.labels is None else found.labels[index]
        pixels = Streamed(found.rows, index, labels, channels, size, skip_bad)
        too_much = f"{bytes_needed / 2**20:,.0f} MiB would exceed the {memory / 2**20:,.0f} MiB allowed"
        how = f"{len(index):,} images {found.rows.verb} at {size} × {size} from disk whenever they are used: {too_much}"
        if skip_bad:
            notes.append("bad images will be replaced by the nearest good one of the same class")
    labels = None if found.labels is None else torch.as_tensor(found.labels[index])
    facts = (*found.notes, *notes)
    return Images(data, split, labels, found.classes, (*facts, how), (channels, size, size), pixels, facts)


def is_here(data: str) -> bool:
    """Whether the path of a data set KIND:PATH is there; of a pattern of shards, its first file."""
    kind, _, path = data.partition(":")
    return Path(shards.expand(path)[0] if kind == "shards" else path).expanduser().exists()


def _of_arrays(data: str, split: str, limit: int | None, download: bool) -> Images:
    if split not in SPLITS[:2]:
        raise UsageError(f"{data} has no part {split!r}: use 'train' or 'test'")
    if download:
        raise _no_download(data)
    x, labels, classes, whole = arrays.read(data, split)
    index, notes = _choose(labels, len(x), 0.2 if whole else 0, split, limit)
    taken = None if labels is None else torch.as_tensor(labels[index])
    how = f"{len(index):,} arrays of shape {x.shape[1:]} in memory"
    pixels = InMemory(torch.as_tensor(x[index]))
    return Images(data, split, taken, classes, (*notes, how), x.shape[1:], pixels, tuple(notes))


def stratified_holdout(labels: NDArray[np.int64] | None, total: int, held_out: int) -> NDArray[np.bool_]:
    """Which of ``total`` images are held out, exactly ``held_out`` of them, drawn with seed 0.

    With labels, each class gives its share (largest remainders make up the number).
    """
    classes = np.zeros(total, dtype=np.int64) if labels is None else np.unique(labels, return_inverse=True)[1]
    counts = np.bincount(classes)
    shares = counts * (held_out / total)
    take = np.floor(shares).astype(np.int64)
    take[np.argsort(take - shares, kind="stable")[: held_out - take.sum()]] += 1
    mask = np.zeros(total, dtype=np.bool_)
    generator = np.random.RandomState(0)  # its numbers are the same in every version of NumPy
    for label, number in enumerate(take):
        mask[generator.permutation(np.flatnonzero(classes == label))[:number]] = True
    return mask


def check_name(data: str) -> None:
    """Refuse a name of no data set; whether its files are there is not looked at.

    Raises:
        UsageError: the nearest names are given.
    """
    if arrays.are_arrays(data):
        return
    kind, colon, _ = data.partition(":")
    if kind not in (WITH_PATH if colon else NAMED):
        if kind in WITH_PATH or kind in NAMED:
            raise UsageError(f"{data!r}: write {kind if kind in NAMED else kind + ':PATH'}")
        raise unknown("data set", kind, data_names())


def _find(data: str, split: str, root: str | Path | None, download: bool) -> Found:
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    check_name(data)
    kind, colon, path = data.partition(":")
    if split == "unlabeled" and data != "stl10":
        raise UsageError(f"{data} has no part 'unlabeled', only stl10 has: use 'train' or 'test'")
    if download and data not in DOWNLOADS:
        raise _no_download(data)
    if colon and not path:
        raise UsageError(f"{data!r} names no path: write {kind}:PATH")
    place = data_folder(path or root)
    try:
        return WITH_PATH[kind](place, split) if colon else NAMED[kind](place, split, download)
    except OSError as error:  # a folder without permission, a disk that fails
        raise UsageError(f"{data} cannot be read ({error})") from error


def _no_download(data: str) -> UsageError:
    return UsageError(f"only {', '.join(DOWNLOADS)} can be downloaded, {data} cannot: leave out --download")


def _choose(
    labels: NDArray[np.int64] | None, total: int, share: float, split: str, limit: int | None
) -> tuple[NDArray[np.int64], list[str]]:
    """The rows of this part: the other side of a held-out part goes, then what is over the limit.

    Args:
        labels: of all rows, or None.
        total: how many rows there are.
        share: of them that is held out as a test part; from 1 on their number; 0: none is.
        split: "train" or "test".
        limit: how many rows are kept, at most.
    """
    index, notes = np.arange(total), list[str]()
    if share:
        held_out = int(share) if share >= 1 else max(1, round(share * total))
        if held_out >= total:
            raise UsageError(f"{total} image is too few to hold out a test part: give a test part of its own")
        mask = stratified_holdout(labels, total, held_out)
        index = np.flatnonzero(mask == (split == "test"))
        if share < 1:
            kind = "stratified, " if labels is not None else ""
            notes.append(f"no test part: {share:.0%} of the training images held out as one ({kind}seed 0)")
    if limit is not None and limit > len(index):
        notes.append(f"limit {limit:,}: there are only {len(index):,} images, all are used")
    elif limit is not None and limit < len(index):
        notes.append(f"{limit:,} of {len(index):,} images, drawn at random (seed 0)")
        index = index[drawn(len(index), limit)]
    return index, notes


def shuffled(total: int) -> NDArray[np.int64]:
    """The order (seed 0) whose first ``limit`` images are those that a limit keeps."""
    return np.random.RandomState(0).permutation(total)


def drawn(total: int, limit: int) -> NDArray[np.int64]:
    """Which of ``total`` images a limit keeps, in order."""
    return np.sort(shuffled(total)[:limit])


def _default_size(reference: EncodedRows | None, skip_bad: bool) -> int:
    """The size of a user's own images, from the first training image (``skip_bad``: the first good one)."""
    assert reference is not None
    for row in range(len(reference) if skip_bad else 1):
        try:
            return min(96, max(32, shorter_side(reference.sources([row])[0]) // 32 * 32))
        except BadImage as error:
            if not skip_bad:
                name = reference.name(row)
                raise UsageError(f"{name} cannot be decoded ({error}); --skip-bad skips such images") from error
    raise UsageError(f"none of the {len(reference):,} images can be used, {reference.name(0)} and all others")


def _has_colour(rows: EncodedRows) -> bool:
    """Whether one of some evenly spaced images is in colour."""
    step = max(1, len(rows) // LOOKED_AT)
    return any(is_colour(source) for source in rows.sources(range(0, len(rows), step)))


def _check_options(channels: int | None, size: int | None, limit: int | None, memory: int | None) -> None:
    if channels not in (None, 1, 3):
        raise UsageError(f"images have 1 or 3 channels, not {channels}")
    for name, value, least in (("image size", size, 1), ("limit", limit, 1), ("memory limit", memory, 0)):
        if value is not None and value < least:
            raise UsageError(f"{name} {value} is too small: at least {least}")


def _free_memory() -> int:
    """Bytes that new data may take: Linux's own estimate, elsewhere what sysconf says, else 4 GiB."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        pass
    for pages in ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES"):
        try:
            return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, OSError, ValueError):
            continue
    return 4 * 2**30
