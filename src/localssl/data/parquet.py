"""Image parquet as data hubs publish it: a struct column of encoded bytes, an integer label, class names."""

# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false
# (pyarrow comes without types)

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from localssl.data.decode import Source
from localssl.data.pixels import EncodedRows, row_at
from localssl.errors import UsageError, first_line
from localssl.system import devices

IMAGE_NAMES = ("image", "img", "jpg", "png", "picture", "photo")
LABEL_NAMES = ("label", "labels", "fine_label", "target", "targets", "class", "cls", "y")
NO_LABEL = r"(^|_)(id|idx|index|width|height|size|seed|time|timestamp)$"  # integers that number or measure
UNREADABLE: tuple[type[Exception], ...] = (OSError, UnicodeDecodeError, pa.ArrowException)
TEST_NAMES = ("test", "val", "validation", "valid")
ROW = 32  # bytes that a row takes at the least: its label, as it is read and as it is kept
PIECE = 16  # rows that are read at once, at the least


@dataclass(frozen=True)
class Table:
    """One part (train or test) of an image parquet, not decoded. ``classes`` None: no names are stored."""

    rows: ParquetRows
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...] | None
    notes: tuple[str, ...]


class ParquetRows(EncodedRows):
    """Images of one or more parquet files, read by row group; the latest are kept, up to ``memory``.

    A row group, all its columns, may take half of this machine's memory. What the file says of it is believed only as
    far as that: a value that stands in it once may be repeated in every row, so it is read in pieces, and counted.

    Raises:
        UsageError: a damaged file, a row group that says that it takes more, or more rows than can be numbered.
    """

    def __init__(self, files: Sequence[Path], column: str):
        self.files, self.column = files, column
        self.metadata = [_header(file)[0] for file in files]
        self.file_starts = [0, *accumulate(m.num_rows for m in self.metadata)]
        self.groups = [(f, g) for f, m in enumerate(self.metadata) for g in range(m.num_row_groups)]
        self.group_starts = [0, *accumulate(self.metadata[f].row_group(g).num_rows for f, g in self.groups)]
        for file, whole in zip(files, self.metadata, strict=True):
            rows = [whole.row_group(group).num_rows for group in range(whole.num_row_groups)]
            if min(rows, default=0) < 0 or sum(rows) != whole.num_rows:
                raise UsageError(f"{file} is damaged: its row groups do not add up to {whole.num_rows} rows")
        memory = devices.memory()
        self.most = None if memory is None else memory // 2
        if self.most is not None and len(self) * ROW > self.most:
            raise UsageError(f"{files[0]} holds {len(self):,} rows, more than this machine's memory can number")
        # as the file says, of all columns: asked for one of them, pyarrow ends the process where a histogram is damaged
        self.sizes = [self.metadata[f].row_group(g).total_byte_size for f, g in self.groups]
        for group, size in enumerate(self.sizes):
            self._check(group, size)
        self.kept: OrderedDict[int, Any] = OrderedDict()
        self.lock = Lock()  # of what is kept: the next batch is read ahead while monitors read theirs

    def __len__(self) -> int:
        return self.file_starts[-1]

    def name(self, row: int) -> str:
        """The row inside its file, counted from 0, and the file."""
        file, inside = row_at(self.file_starts, row)
        return f"row {inside} of {self.files[file].name}"

    def sources(self, rows: Sequence[int]) -> list[Source]:
        """The bytes of these rows; UsageError where the file can no longer be read."""
        found: dict[int, bytes | None] = {}
        for row in sorted(set(rows)):  # in file order, so that a batch reads each row group once
            group, inside = row_at(self.group_starts, row)
            with self.lock:
                value: Any = self._group(group)[inside].as_py()
            found[row] = value["bytes"] if isinstance(value, dict) else value
        return [found[row] for row in rows]

    def _group(self, group: int) -> Any:
        if group in self.kept:
            self.kept.move_to_end(group)
            return self.kept[group]
        number, inside = self.groups[group]
        file, whole = self.files[number], self.metadata[number].row_group(inside)
        parts: list[Any] = []
        size = 0
        try:
            with pq.ParquetFile(file, metadata=self.metadata[number]) as parquet:
                for part in parquet.iter_batches(self._piece(group, whole.num_rows), [inside], [self.column]):
                    parts.append(part.column(0))
                    size += parts[-1].nbytes
                    self._check(group, size)
        except UNREADABLE as error:
            raise UsageError(f"{file} cannot be read (row group {inside}: {first_line(error)})") from error
        if (read := sum(map(len, parts))) != whole.num_rows:
            raise UsageError(f"{file} is damaged: row group {inside} holds {read} rows of {whole.num_rows}")
        column = pa.chunked_array(parts)
        self.kept[group] = column
        while len(self.kept) > 1 and sum(c.nbytes for c in self.kept.values()) > self.memory:
            self.kept.popitem(last=False)
        return column

    def _piece(self, group: int, rows: int) -> int:
        """How many rows are read at once: so few that they would not be too much, were each the largest value there."""
        piece = max(PIECE, rows >> 16)
        return piece if self.most is None else max(1, min(piece, self.most // (2 * max(1, self.sizes[group]))))

    def _check(self, group: int, size: int) -> None:
        """Refuse a row group that takes more than half of this machine's memory."""
        if self.most is not None and size > self.most:
            number, inside = self.groups[group]
            raise UsageError(
                f"{self.files[number]}: row group {inside} takes more than {self.most / 2**30:,.1f} GiB, "
                f"half of this machine's memory; write smaller row groups"
            )


def find_parts(folder: Path, names: Sequence[str]) -> list[Path]:
    """The files of the first of these parts that exists: NAME.parquet, NAME-00000-of-00002.parquet, NAME/*.

    Looked for in the folder and in its ``data`` folder. Empty where there are none.

    Raises:
        UsageError: a numbered file of the part is missing.
    """
    for name in names:
        for place in (folder, folder / "data"):
            if (place / f"{name}.parquet").is_file():
                return [place / f"{name}.parquet"]
            pattern = rf"{name}-(\d+)-of-(\d+)(-\w+)?\.parquet"
            shards = [(file, re.fullmatch(pattern, file.name)) for file in _parquets(place)]
            numbered = {int(m[1]): f for f, m in shards if m}
            if numbered:
                total = max(int(m[2]) for _, m in shards if m)
                missing = [i for i in range(total) if i not in numbered]
                if missing:
                    raise UsageError(f"{place}: part {missing[0]} of {total} of the {name} files is missing")
                return [numbered[i] for i in sorted(numbered)]
            if _parquets(place / name):
                return _parquets(place / name)
    return []


def read_table(files: Sequence[Path]) -> Table:
    """Finds the image and label columns and reads the labels; the images stay encoded on disk.

    Raises:
        UsageError: not a parquet file, no image column, no rows, or labels that are not class numbers.
    """
    first = _header(files[0])[1]
    features = _features(first.metadata)
    image = _image_column(first, files[0])
    label, notes = _label_column(first, features)
    for file in files:
        names = _header(file)[1].names
        for column in (image, label):
            if column is not None and column not in names:
                raise UsageError(f"{file.name} has no column {column!r}, which {files[0].name} has")
    rows = ParquetRows(files, image)
    if len(rows) == 0:
        raise UsageError(f"{files[0]} holds no images")
    labels = None
    if label is not None:
        labels, remarks = _labels(rows, label)
        notes += remarks
    names = features.get(label or "", {}).get("names")
    classes = tuple(str(n) for n in names) if isinstance(names, list) and labels is not None else None
    return Table(rows, labels, classes, tuple(notes))


def _labels(rows: ParquetRows, column: str) -> tuple[NDArray[np.int64] | None, list[str]]:
    try:
        parts: list[NDArray[np.int64]] = []
        for file in rows.files:
            with pq.ParquetFile(file) as opened:
                values: Any = opened.read(columns=[column]).column(0)
            parts.append(values.cast(pa.int64()).fill_null(-1).to_numpy())
    except UNREADABLE as error:
        raise UsageError(f"the labels of {rows.files[0]} cannot be read ({first_line(error)})") from error
    labels = np.concatenate(parts)
    if (labels < 0).all():
        return None, [f"column {column!r} holds no labels (all empty or negative): unlabelled images"]
    if (labels < 0).any():
        name = rows.name(int(np.argmax(labels < 0)))
        raise UsageError(f"{name} has no label (it is empty or negative), though other rows have one")
    if labels.max() >= max(1000, len(labels)):
        raise UsageError(f"column {column!r} holds {labels.max()}: these are no class numbers 0, 1, 2, …")
    return labels, []


def _image_column(schema: Any, file: Path) -> str:
    def holds_bytes(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            return kind.get_field_index("bytes") >= 0
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    found = [f.name for f in schema if holds_bytes(f.type)]
    named = [name for name in IMAGE_NAMES if name in found]
    if named or len(found) == 1:
        return (named or found)[0]
    columns = ", ".join(f"{f.name} ({f.type})" for f in schema)
    problem = "several image columns, none called 'image'" if found else "no image column"
    expected = "expected 'image', a struct with the encoded 'bytes' of a picture, and 'label', an integer"
    raise UsageError(f"{file} has {problem}: found {columns or 'no columns'}; {expected}")


def _label_column(schema: Any, features: dict[str, Any]) -> tuple[str | None, list[str]]:
    integers = [f.name for f in schema if pa.types.is_integer(f.type)]
    declared = [name for name in integers if features.get(name, {}).get("_type") == "ClassLabel"]
    likely = [name for name in integers if not re.search(NO_LABEL, name.lower())]
    only = likely[0] if len(likely) == 1 else None
    chosen = next((name for name in (*LABEL_NAMES, *declared) if name in integers), only)
    if chosen == "label":
        return chosen, []
    if chosen is not None:
        return chosen, [f"labels from column {chosen!r}"]
    others = ", ".join(f"{f.name} ({f.type})" for f in schema)
    return None, [f"no column of integer labels (columns: {others}): unlabelled images"]


def _features(metadata: dict[bytes, bytes] | None) -> dict[str, Any]:
    """The columns' description that data hubs store under ``huggingface``; empty where there is none."""
    try:
        features: Any = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return {k: v for k, v in features.items() if isinstance(v, dict)} if isinstance(features, dict) else {}


def _header(file: Path) -> tuple[Any, Any]:
    """The file's metadata and its arrow schema."""
    try:
        return pq.read_metadata(file), pq.read_schema(file)
    except UNREADABLE as error:
        raise UsageError(f"{file} is not a readable parquet file ({first_line(error)})") from error


def _parquets(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.parquet"))
