"""Where pixels come from: rows on disk, decoded once into memory, or decoded each time they are asked for."""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate, pad
from typing_extensions import override

from localssl.data.decode import BadImage, Source, decode
from localssl.errors import RunError, UsageError
from localssl.system.slow import Slow

CHUNK = 1024  # rows decoded between two looks at Ctrl-C
TASK = 16  # images a thread takes at a time
GRAY = "grayscale among colour images"  # a reason to refuse an image that can be decoded
TRIES = 100  # neighbours looked at before a bad streamed image is given up

log = logging.getLogger(__name__)


@dataclass
class Loaded:
    """Some rows, decoded: ``pixels`` (n, C, H, W) uint8; ``bad``: the reason by position (all 0 there)."""

    pixels: Tensor
    bad: dict[int, str] = field(default_factory=dict[int, str])
    converted: Counter[str] = field(default_factory=Counter[str])


class Rows(ABC):
    """Images as they lie on disk, read by row number."""

    verb = "decoded"
    memory = 0  # bytes that may keep what was read, for rows that are asked for again and again

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, row: int) -> str:
        """What an error calls this row: "row 17 of train.parquet", "cat/01.jpg"."""

    @abstractmethod
    def load(self, rows: Sequence[int], channels: int, size: int) -> Loaded:
        """These rows as uint8 (n, channels, size, size); each image's result depends on that image alone."""


class EncodedRows(Rows):
    """Encoded images (JPEG, PNG, …): a subclass only says where the bytes are.

    Attributes:
        refuse_gray: a grayscale image is a bad one; else it is converted to RGB, and counted.
    """

    refuse_gray = False

    @abstractmethod
    def sources(self, rows: Sequence[int]) -> list[Source]:
        """For each row its encoded bytes, or where they are; None where it has none."""

    def load(self, rows: Sequence[int], channels: int, size: int) -> Loaded:
        """Decodes with a few threads: worth little for tiny images, much for large ones."""
        sources = self.sources(rows)
        loaded = Loaded(torch.zeros((len(rows), channels, size, size), dtype=torch.uint8))
        out = loaded.pixels.numpy()

        def task(start: int) -> list[tuple[int, str | None, str]]:
            remarks: list[tuple[int, str | None, str]] = []
            for position in range(start, min(start + TASK, len(sources))):
                try:
                    out[position], kind = decode(sources[position], channels, size)
                    if kind == "grayscale" and self.refuse_gray:
                        remarks.append((position, GRAY, ""))
                    elif kind is not None:
                        remarks.append((position, None, kind))
                except BadImage as error:
                    remarks.append((position, str(error), ""))
            return remarks

        # a pool per call: threads kept for later would not survive a fork of the process
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            for done in pool.map(task, range(0, len(rows), TASK)):
                for position, reason, kind in done:
                    if reason is None:
                        loaded.converted[kind] += 1
                    else:
                        loaded.bad[position] = reason
        return loaded


class FileRows(EncodedRows):
    """Image files below a folder."""

    def __init__(self, folder: Path, files: Sequence[str]):
        self.folder, self.files = folder, files

    def __len__(self) -> int:
        return len(self.files)

    def name(self, row: int) -> str:
        """The file, relative to the folder."""
        return self.files[row]

    def sources(self, rows: Sequence[int]) -> list[Source]:
        """The files; those that cannot be opened are bad images."""
        return [self.folder / self.files[row] for row in rows]


class ArrayRows(Rows):
    """Raw pixels: arrays (possibly mapped from disk) of shape (N, C, H, W), uint8, one after the other.

    Sizes other than the native one are resampled (bilinear, antialiased where they shrink). ``padding`` zeros
    are put around an image first, except where the size asked for is the native one.
    """

    verb = "read"

    def __init__(self, parts: Sequence[NDArray[np.uint8]], padding: int = 0):
        self.parts, self.padding = parts, padding
        self.starts = [0, *accumulate(len(part) for part in parts)]

    def __len__(self) -> int:
        return self.starts[-1]

    def name(self, row: int) -> str:
        """The image by number."""
        return f"image {row}"

    def load(self, rows: Sequence[int], channels: int, size: int) -> Loaded:
        """Raw pixels are never bad."""
        wanted = np.asarray(rows, dtype=np.int64)
        native = np.empty((len(rows), *self.parts[0].shape[1:]), dtype=np.uint8)
        for start, part in zip(self.starts, self.parts, strict=False):
            here = np.flatnonzero((wanted >= start) & (wanted < start + len(part)))
            native[here] = part[wanted[here] - start]
        images = torch.as_tensor(native)
        side = images.shape[-1]
        if size != side:
            images = pad(images, [self.padding] * 4)
        if size != images.shape[-1]:
            shrinks = size < images.shape[-1]
            images = interpolate(images.float(), (size, size), mode="bilinear", antialias=shrinks)
            images = images.round().clamp(0, 255).to(torch.uint8)
        return Loaded(_channels(images, channels))


def _channels(images: Tensor, channels: int) -> Tensor:
    """Gray to RGB by copying, RGB to gray by luma (ITU-R 601-2) in the integer form that PIL uses."""
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return images.expand(-1, 3, -1, -1).contiguous()
    red, green, blue = images.int().unbind(1)
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).to(torch.uint8)[:, None]


class Pixels(ABC):
    """The pixels of a data set: uint8 images by number."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, index: Tensor) -> Tensor:
        """uint8 (n, C, H, W) for an int64 index (n,), in its order."""

    @abstractmethod
    def subset(self, index: Tensor) -> Pixels:
        """The pixels at these numbers only."""

    def ahead(self, batches: Iterable[Tensor], meanwhile: bool = True) -> Generator[Tensor]:
        """What ``read`` gives for each of these, in order; from disk, ``meanwhile``, before it is asked for."""
        for index in batches:
            yield self.read(index)


@dataclass(frozen=True, eq=False)
class InMemory(Pixels):
    """All images in one uint8 tensor (N, C, H, W)."""

    images: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: Tensor) -> Tensor:
        """A copy of these images."""
        return self.images[index]

    def subset(self, index: Tensor) -> Pixels:
        """A copy of these images."""
        return InMemory(self.images[index])


@dataclass(frozen=True, eq=False)
class Streamed(Pixels):
    """Images decoded whenever they are asked for.

    With ``skip_bad`` an image that cannot be decoded is replaced by the nearest good one of this part with
    the same label (any, where there are none): image and label still belong together. Each is logged once.
    """

    rows: Rows
    index: NDArray[np.int64]
    labels: NDArray[np.int64] | None
    channels: int
    size: int
    skip_bad: bool
    replaced: dict[int, int] = field(default_factory=dict[int, int])

    def __len__(self) -> int:
        return len(self.index)

    def read(self, index: Tensor) -> Tensor:
        """Decodes these images; RunError names one that cannot be decoded or replaced."""
        numbers: list[int] = index.numpy().tolist()
        wanted = [self.replaced.get(number, number) for number in numbers]
        loaded = self._load(wanted)
        for position, reason in loaded.bad.items():
            loaded.pixels[position] = self._replacement(wanted[position], reason)
        return loaded.pixels

    @override
    def ahead(self, batches: Iterable[Tensor], meanwhile: bool = True) -> Generator[Tensor]:
        """Decodes the next batch while this one is used: the same pixels, and one more batch in memory."""
        if not meanwhile:
            yield from super().ahead(batches)
            return
        with ThreadPoolExecutor(1) as reader:
            coming: Future[Tensor] | None = None
            for index in batches:
                read, coming = coming, reader.submit(self.read, index)
                if read is not None:
                    yield read.result()
            if coming is not None:
                yield coming.result()

    def subset(self, index: Tensor) -> Pixels:
        """These images, on the same files."""
        chosen: NDArray[Any] = index.numpy()
        labels = None if self.labels is None else self.labels[chosen]
        return Streamed(self.rows, self.index[chosen], labels, self.channels, self.size, self.skip_bad)

    def _load(self, numbers: Sequence[int]) -> Loaded:
        try:
            return self.rows.load([int(self.index[i]) for i in numbers], self.channels, self.size)
        except UsageError as error:  # the file was fine when it was opened: now it is the run that fails
            raise RunError(str(error)) from error

    def _replacement(self, number: int, reason: str) -> Tensor:
        if number in self.replaced:  # asked for twice in one batch
            return self._load([self.replaced[number]]).pixels[0]
        name = self.rows.name(int(self.index[number]))
        if not self.skip_bad:
            raise RunError(_refusal(name, reason, "replaces"))
        same = np.arange(len(self))
        if self.labels is not None:
            same = np.flatnonzero(self.labels == self.labels[number])
        nearest = same[np.argsort(np.abs(same - number), kind="stable")]
        for other in nearest[1 : TRIES + 1].tolist():  # [0] is the bad image itself
            loaded = self._load([other])
            if not loaded.bad:
                self.replaced[number] = other
                instead = self.rows.name(int(self.index[other]))
                count = len(self.replaced)
                log.warning("%s: replaced by %s (%d so far)", _fault(name, reason), instead, count)
                return loaded.pixels[0]
        raise RunError(f"{_fault(name, reason)}, and no image near it can replace it")


def decode_all(
    rows: Rows, index: NDArray[np.int64], channels: int, size: int, skip_bad: bool
) -> tuple[Tensor, NDArray[np.int64], list[str]]:
    """Decodes these rows into one uint8 tensor.

    Returns:
        The images (n, C, H, W), the rows they come from (n,), and remarks on what was skipped or converted.

    Raises:
        UsageError: an image that cannot be decoded (without ``skip_bad``), or none that can.
    """
    images = torch.empty((len(index), channels, size, size), dtype=torch.uint8)
    kept: list[int] = []
    bad: dict[str, list[str]] = {"bad": [], GRAY: []}
    converted: Counter[str] = Counter()
    slow = Slow(f"{{done}} of {{total}} images {rows.verb}")
    for start in range(0, len(index), CHUNK):
        chunk: list[int] = index[start : start + CHUNK].tolist()
        loaded = rows.load(chunk, channels, size)
        converted += loaded.converted
        for position, reason in sorted(loaded.bad.items()):
            name = rows.name(chunk[position])
            if not skip_bad:
                raise UsageError(_refusal(name, reason, "skips"))
            bad[reason if reason in bad else "bad"].append(name)
        good = [position for position in range(len(chunk)) if position not in loaded.bad]
        images[len(kept) : len(kept) + len(good)] = loaded.pixels[good] if loaded.bad else loaded.pixels
        kept += [chunk[position] for position in good]
        slow(start + len(chunk), len(index))
    if not kept:
        raise UsageError(f"none of the {len(index):,} images can be used, {rows.name(int(index[0]))} and all others")
    target = "RGB" if channels == 3 else "grayscale"
    notes = [f"{_count(n, kind)} converted to {target}" for kind, n in sorted(converted.items())]
    for kind, names in bad.items():
        more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
        what = _count(len(names), "bad") if kind == "bad" else f"{_count(len(names), 'grayscale')} among colour ones"
        notes += [f"{what} skipped: {', '.join(names[:5])}{more}"] if names else []
    return images[: len(kept)], np.asarray(kept, dtype=np.int64), notes


def _fault(name: str, reason: str) -> str:
    return f"{name} is {GRAY}" if reason == GRAY else f"{name} cannot be decoded ({reason})"


def _refusal(name: str, reason: str, does: str) -> str:
    mend = ": convert it to RGB, or" if reason == GRAY else ";"
    return f"{_fault(name, reason)}{mend} --skip-bad {does} such images"


def _count(number: int, kind: str) -> str:
    return f"{number:,} {kind} image{'' if number == 1 else 's'}"


def row_at(starts: Sequence[int], row: int) -> tuple[int, int]:
    """Which of the parts that begin at ``starts`` holds this row, and its number inside that part."""
    part = bisect_right(starts, row) - 1
    return part, row - starts[part]
