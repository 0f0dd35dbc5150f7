"""Tar shards of any size, read by image number: an index of all images, made once, and kept in a file beside them.

With it a shard set is as any other data set: one order by (seed, epoch), resumed anywhere, divided among processes.
The headers are read by the standard library's tarfile. The webdataset package reads a shard from its beginning to its
end and shuffles within a buffer, so that a place in an epoch can only be found again by reading up to it; and it
unpickles members by their names.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from localssl.data import index_file
from localssl.data.decode import Part, Source
from localssl.data.parquet import TEST_NAMES
from localssl.data.pixels import EncodedRows, row_at
from localssl.data.tars import Index, read_index
from localssl.errors import UsageError
from localssl.system.slow import Slow

LAYOUT = (
    "expected train/*.tar and test/*.tar or val/*.tar, or .tar files beside each other, or a pattern, "
    "PATH/train-{0000..0099}.tar"
)
MOST = 1_000_000  # files of a pattern


@dataclass(frozen=True)
class Shards:
    """One part (train or test) of a shard set, not decoded. ``labels`` None: no image has one."""

    rows: ShardRows
    labels: NDArray[np.int64] | None
    notes: tuple[str, ...]


class ShardRows(EncodedRows):
    """Images of some tar files, read where the indices say they lie."""

    def __init__(self, files: Sequence[Path], indices: Sequence[Index]):
        self.files = files
        self.starts = [0, *accumulate(len(index.offset) for index in indices)]
        self.offset = np.concatenate([index.offset for index in indices])
        self.size = np.concatenate([index.size for index in indices])
        self.names = [index.names for index in indices]

    def __len__(self) -> int:
        return self.starts[-1]

    def name(self, row: int) -> str:
        """The member, and its shard."""
        shard, inside = row_at(self.starts, row)
        member = self.names[shard].tobytes().split(b"\0")[inside].decode("utf-8", "replace")
        return f"{member} in {self.files[shard].name}"

    def sources(self, rows: Sequence[int]) -> list[Source]:
        """Where in which shard their bytes lie: they are read when they are decoded, a few images at a time."""
        shards = [row_at(self.starts, row)[0] for row in rows]
        return [
            Part(self.files[shard], int(self.offset[row]), int(self.size[row]))
            for shard, row in zip(shards, rows, strict=True)
        ]


def expand(path: str) -> list[str]:
    """The paths of a pattern: {000..127} counts with leading zeros, {a,b} lists; several multiply.

    Raises:
        UsageError: a brace that is neither, or more than a million paths.
    """
    parts = re.split(r"\{([^{}]*)\}", path)
    choices: list[list[str]] = []
    for number, part in enumerate(parts):
        counted = re.fullmatch(r"(\d{1,9})\.\.(\d{1,9})", part)
        if number % 2 == 0:
            choices.append([part])
        elif counted:
            first, last = int(counted[1]), int(counted[2])
            if not first <= last < first + MOST:
                raise UsageError(f"shards:{path}: {{{part}}} must count up, to no more than a million files")
            choices.append([str(i).zfill(len(counted[1])) for i in range(first, last + 1)])
        elif "," in part:
            choices.append(part.split(","))
        else:
            raise UsageError(f"shards:{path}: {{{part}}} is no range as {{0000..0099}} and no list as {{a,b}}")
    if np.prod([float(len(c)) for c in choices]) > MOST:
        raise UsageError(f"shards:{path} names more than a million files")
    return ["".join(words) for words in itertools.product(*choices)]


def find_parts(path: Path) -> tuple[list[Path], list[Path]]:
    """The shards of the training and of the test part; the latter may be none.

    Raises:
        UsageError: no such file or folder, one of a pattern that is missing, or a folder without shards.
    """
    if not path.is_dir():
        files = [Path(name) for name in expand(str(path))]
        missing = [file for file in files if not file.is_file()]
        if len(missing) == len(files):
            raise UsageError(f"no shards {path}: {LAYOUT}")
        if missing:
            raise UsageError(f"{missing[0]} is missing, {len(missing):,} of the {len(files):,} shards of {path}")
        return files, []
    places = [path / name for name in TEST_NAMES if _tars(path / name)]
    if _tars(path / "train"):
        return _tars(path / "train"), _tars(places[0]) if places else []
    if places:
        raise UsageError(f"{path} has {places[0].name}/ but no train/: {LAYOUT}")
    files = _tars(path)
    parts = {file: set(re.split(r"[^a-z]+", file.stem.lower())) for file in files}
    test = [file for file in files if parts[file] & set(TEST_NAMES)]
    train = [file for file in files if file not in test]
    named = [file for file in train if "train" in parts[file]]
    if not train:
        seen = sorted(file.name for file in path.iterdir())
        listing = ", ".join(seen[:8]) + (", …" if len(seen) > 8 else "") or "nothing"
        raise UsageError(f"{path} has no training shards: found {listing}; {LAYOUT}")
    if named and len(named) < len(train):
        other = next(file for file in train if file not in named)
        raise UsageError(f"{path}: {other.name} is neither called train nor test or val, as others are; {LAYOUT}")
    return train, test


def read_shards(files: Sequence[Path]) -> Shards:
    """Finds every image and label, from the index file where it fits; the images stay encoded on disk.

    Raises:
        UsageError: a shard that cannot be read or trusted, no images, or labels of some images only.
    """
    indices, notes = _indices(files)
    rows = ShardRows(files, indices)
    left_out = Counter[str]()
    for index in indices:
        left_out += Counter(index.left_out)
    listing = ", ".join(f"{count:,} {kind}" for kind, count in left_out.most_common(6))
    if not len(rows):
        which = f"the {len(files):,} shards, {files[0]} the first," if files[1:] else files[0]
        raise UsageError(
            f"no images in {which}: found {listing or 'nothing'}; expected KEY.jpg, KEY.png, … and KEY.cls"
        )
    if listing:
        notes.append(f"members of the shards that are not read: {listing}")
    labels = np.concatenate([index.label for index in indices])
    if (labels < 0).all():
        return Shards(rows, None, (*notes, "no .cls or .json with a label: unlabelled images"))
    if (labels < 0).any():
        name = rows.name(int(np.argmax(labels < 0)))
        raise UsageError(f"{name} has no label, neither .cls nor .json, though other images have one")
    if labels.max() >= max(1000, len(labels)):
        name = rows.name(int(np.argmax(labels)))
        raise UsageError(f"{name} has the label {labels.max()}: these are no class numbers 0, 1, 2, …")
    return Shards(rows, labels, tuple(notes))


def _indices(files: Sequence[Path]) -> tuple[list[Index], list[str]]:
    """The index of every shard, and remarks; what was not known yet is kept beside the shards."""
    folders = list(dict.fromkeys(file.parent for file in files))
    known = {folder: index_file.load(folder) for folder in folders}
    stamps = {file: index_file.stamp(file) for file in files}
    new = [file for file in files if stamps[file] not in known[file.parent]]
    total = sum(stamps[file].bytes for file in new)
    slow, passed = Slow("{done} of {total} MB of shards indexed"), 0

    def tell(here: int) -> None:
        slow((passed + here) // 10**6, total // 10**6)

    for file in new:
        known[file.parent][stamps[file]] = read_index(file, tell)
        passed += stamps[file].bytes
    notes: list[str] = []
    for folder in dict.fromkeys(file.parent for file in new):
        try:
            index_file.save(folder, known[folder])
        except OSError as error:
            reason = error.strerror or error
            notes.append(f"no index file in {folder} ({reason}): every command has to index the shards anew")
    return [known[file.parent][stamps[file]] for file in files], notes


def _tars(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*.tar") if file.is_file() and not file.name.startswith("."))
