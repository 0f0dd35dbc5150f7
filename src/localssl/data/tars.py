"""One tar shard as webdataset writes them: where each image lies in it, and its label. Nothing is ever unpacked."""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from localssl.data.folders import EXTENSIONS
from localssl.data.parquet import LABEL_NAMES
from localssl.errors import UsageError

BLOCK = tarfile.BLOCKSIZE
LONGEST_NAME = 4096  # bytes
LARGEST = {"cls": 64, "json": 2**20, "image": 2**28}  # bytes
PADDING = 2**20  # zeros that may follow the end of an archive
EVERY = 1000  # members between two looks at the clock
# what tarfile raises on damaged headers, and what damaged sizes come to
UNREADABLE = (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, MemoryError)


@dataclass(frozen=True)
class Index:
    """Where the images of one shard lie, in its order.

    Args:
        offset: of the encoded bytes in the file, int64 (N,).
        size: their number, int64 (N,).
        label: int64 (N,), -1 where there is none.
        names: of the members, UTF-8, a 0 byte between two: uint8.
        left_out: what was neither image nor label, by extension.
    """

    offset: NDArray[np.int64]
    size: NDArray[np.int64]
    label: NDArray[np.int64]
    names: NDArray[np.uint8]
    left_out: dict[str, int]


def read_index(file: Path, tell: Callable[[int], None] = lambda _: None) -> Index:
    """Reads a shard's headers and labels: members of one sample share their path up to the first dot of the name.

    The image is KEY.jpg, KEY.png, …; the label a whole number in KEY.cls, else one under "label", "cls" or the like in
    KEY.json. Other members, pickles (.pyd) among them, are not read.

    Args:
        tell: hears now and then how many bytes were passed.

    Raises:
        UsageError: not a tar file, one that is not whole, one whose members lead out of it, two images in a sample, or
            a label that is no class number.
    """
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, tuple[str, int]] = {}
    left_out: Counter[str] = Counter()
    with _opened(file) as stream:
        for number, member in enumerate(_members(file, stream)):
            if number % EVERY == 0:
                tell(member.offset)
            folder, _, base = member.name.rpartition("/")
            stem, _, kind = base.partition(".")
            key, kind = f"{folder}/{stem}", kind.lower()
            if not stem or member.isdir():
                continue
            if f".{kind}" in EXTENSIONS:
                if key in images:
                    raise UsageError(f"{file}: {images[key][0]} and {member.name} are two images of one sample")
                _check_size(file, member, "image")
                images[key] = (member.name, member.offset_data, member.size)
            elif kind in ("cls", "json"):
                _check_size(file, member, kind)
                stream.seek(member.offset_data)
                label = _label(file, member.name, kind, stream.read(member.size))
                if kind == "cls" or key not in labels:
                    labels[key] = (kind, label)
            else:
                left_out[_kind(kind)] += 1
    if alone := len(labels.keys() - images.keys()):
        left_out["labels without an image"] = alone
    places = np.asarray([image[1:] for image in images.values()], dtype=np.int64).reshape(-1, 2)
    label = np.asarray([labels.get(key, ("", -1))[1] for key in images], dtype=np.int64)
    names = np.frombuffer("\0".join(image[0] for image in images.values()).encode(), dtype=np.uint8)
    return Index(places[:, 0].copy(), places[:, 1].copy(), label, names, dict(left_out))


def _opened(file: Path) -> BinaryIO:
    try:
        return file.open("rb")
    except OSError as error:
        raise UsageError(f"{file} cannot be read ({error.strerror or error})") from error


def _members(file: Path, stream: BinaryIO) -> Generator[tarfile.TarInfo]:
    """The members of an archive that is whole, each of them a plain file or a folder inside it."""
    try:
        tar = tarfile.open(fileobj=stream, mode="r:", encoding="utf-8", errors="replace")  # noqa: SIM115
    except UNREADABLE as error:
        raise UsageError(f"{file} is not a plain tar file ({error}); compressed ones must be unpacked first") from error
    last, end, length = "its first member", -1, os.fstat(stream.fileno()).st_size
    while True:
        try:
            member = tar.next()
        except UNREADABLE as error:
            raise UsageError(f"{file} is cut or damaged at {last} ({error}); fetch it again") from error
        if member is None:
            break
        # tarfile keeps every header: gigabytes in a large shard
        tar.members = []  # pyright: ignore[reportAttributeAccessIssue]
        if why := _refusal(member):
            raise UsageError(f"{file}: member {member.name[:80]!r} is {why}; such an archive is not read")
        if member.offset_data <= end or not 0 <= member.size <= length - member.offset_data:  # sizes lead elsewhere
            raise UsageError(f"{file} is cut or damaged at {member.name}; fetch it again")
        last, end = member.name, member.offset_data
        yield member
    # tarfile takes a damaged header, and an archive that ends between two members, for its end
    stream.seek(tar.offset)
    mark, rest = stream.read(BLOCK), stream.read(PADDING + 1)
    if len(mark) < BLOCK or mark.strip(b"\0"):
        raise UsageError(f"{file} is cut or damaged after {last}: it does not end as an archive does; fetch it again")
    if len(rest) > PADDING or rest.strip(b"\0"):
        raise UsageError(f"{file} goes on behind the end of its archive, after {last}: fetch it again, or make it anew")


def _refusal(member: tarfile.TarInfo) -> str | None:
    """Why a member makes its archive one that is not to be trusted, or not to be read in place."""
    name = member.name
    if member.issym() or member.islnk():
        return "a link"
    if not (member.isreg() or member.isdir()):
        return "neither a file nor a folder"
    if member.issparse():
        return "a file with holes"
    if re.match(r"[/\\]|[A-Za-z]:[/\\]", name):
        return "an absolute path"
    if ".." in re.split(r"[/\\]", name):
        return "a path that leads out of the archive"
    if len(name) > LONGEST_NAME or any(ord(letter) < 32 for letter in name):
        return "no name for a file"
    return None


def _check_size(file: Path, member: tarfile.TarInfo, kind: str) -> None:
    if member.size > LARGEST[kind]:
        what = "an image" if kind == "image" else "a label"
        raise UsageError(f"{file}: {member.name} has {member.size:,} bytes, too many for {what}")


def _label(file: Path, name: str, kind: str, data: bytes) -> int:
    """A class number, -1 where there is none; a .json may hold other things than labels."""
    text = "" if len(data) > LARGEST["cls"] else f" {data.decode('utf-8', 'replace').strip()!r}"
    try:
        found: Any = int(data) if kind == "cls" else json.loads(data)
    except (ValueError, RecursionError) as error:
        what = "no class number 0, 1, 2, …" if kind == "cls" else "no JSON"
        raise UsageError(f"{file}: the label {name} holds{text}, {what}") from error
    if kind == "json":
        values: list[Any] = [found.get(key) for key in LABEL_NAMES] if isinstance(found, dict) else [found]
        found = next((value for value in values if type(value) is int), -1)
    if not -1 <= found < 2**31:
        raise UsageError(f"{file}: the label {name} holds{text}, no class number 0, 1, 2, …")
    return found


def _kind(extension: str) -> str:
    """What a member that is left out is counted as."""
    first, several, _ = extension.partition(".")
    return "with several dots in the name" if several else f".{first[:20]}" if first else "without extension"
