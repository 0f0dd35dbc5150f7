"""The small file beside tar shards that says where each image lies, so that their headers are read once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from localssl.data.tars import Index
from localssl.errors import UsageError
from localssl.system.files import write_atomic

NAME = ".localssl-index.safetensors"  # no pickle, nothing compressed: its size bounds what it can take
FORMAT = "1"
ARRAYS = ("offset", "size", "label", "names")


class Stamp(NamedTuple):
    """A shard as it was when it was indexed: another size or time of change is another shard."""

    name: str
    bytes: int
    changed: int


def stamp(file: Path) -> Stamp:
    """Of a shard as it is now.

    Raises:
        UsageError: it is not there any more.
    """
    try:
        found = file.stat()
    except OSError as error:
        raise UsageError(f"{file} cannot be read ({error.strerror or error})") from error
    return Stamp(file.name, found.st_size, found.st_mtime_ns)


def load(folder: Path) -> dict[Stamp, Index]:
    """What the index file of a folder knows; nothing where there is none, or one that does not hold together."""
    try:
        with safe_open(folder / NAME, "numpy") as file:
            about: dict[str, str] = file.metadata() or {}
            arrays: dict[str, NDArray[Any]] = {name: file.get_tensor(name) for name in ARRAYS}
        if about.get("format") != FORMAT:
            return {}
        return dict(_parts(json.loads(about["shards"]), arrays))
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def save(folder: Path, known: Mapping[Stamp, Index]) -> None:
    """Write what is known of the shards that are still there.

    Raises:
        OSError: no permission, no room.
    """
    there = {s: index for s, index in known.items() if (folder / s.name).is_file()}
    shards = [[*s, len(index.offset), len(index.names), index.left_out] for s, index in there.items()]
    arrays = {name: np.concatenate([getattr(index, name) for index in there.values()]) for name in ARRAYS}
    about = {"format": FORMAT, "shards": json.dumps(shards)}
    try:
        write_atomic(folder / NAME, lambda temporary: save_file(arrays, temporary, about))
    except SafetensorError as error:  # it wraps what the system said
        raise OSError(str(error)) from error


def _parts(shards: list[Any], arrays: Mapping[str, NDArray[Any]]) -> list[tuple[Stamp, Index]]:
    """The arrays cut into those of each shard.

    Raises:
        ValueError, TypeError: they do not fit together, or lead out of a shard.
    """
    kinds = {name: np.uint8 if name == "names" else np.int64 for name in ARRAYS}
    if any(arrays[name].dtype != kind or arrays[name].ndim != 1 for name, kind in kinds.items()):
        raise ValueError
    found: list[tuple[Stamp, Index]] = []
    at = at_name = 0
    for name, size, changed, images, letters, left_out in shards:
        place, place_name = slice(at, at + images), slice(at_name, at_name + letters)
        offset, length, label = (arrays[key][place] for key in ARRAYS[:3])
        index = Index(offset, length, label, arrays["names"][place_name], dict(left_out))
        at, at_name = at + images, at_name + letters
        whole = len(index.offset) == len(index.label) == images and len(index.names) == letters
        whole = whole and np.count_nonzero(index.names == 0) == max(0, images - 1)
        inside = (index.offset >= 0) & (index.size >= 0) & (index.size <= size - index.offset)
        if not whole or len(index.size) != images or not inside.all() or (index.label < -1).any():
            raise ValueError
        found.append((Stamp(str(name), int(size), int(changed)), index))
    return found
