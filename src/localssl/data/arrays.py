"""Data that are arrays already: vectors, time series and maps in an .npz, or from a function of the user's own."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localssl import devices, own
from localssl.errors import UsageError

KIND = "npz"
NAMES = "x_train and x_test (y_train, y_test: labels), or x (and y)"


def are_arrays(data: str) -> bool:
    """Whether a data set is named npz:PATH or PATH.py:NAME."""
    return data.startswith(f"{KIND}:") or own.is_path(data)


def read(data: str, split: str) -> tuple[NDArray[Any], NDArray[np.int64] | None, tuple[str, ...], bool]:
    """One part: x (N, d), (N, C, T) or (N, C, H, W), labels or None, their names, and whether this is all there is.

    Raises:
        UsageError: no such file, function or array, or arrays that do not fit together.
    """
    x, y, train_y, whole = (_of_npz if data.startswith(f"{KIND}:") else _of_file)(data, split)
    x = np.asarray(x)
    if x.ndim not in (2, 3, 4) or 0 in x.shape:
        raise UsageError(f"{data}: x is {x.shape}; give (N, features), (N, channels, time) or (N, C, H, W)")
    if x.dtype != np.uint8:
        if not (np.issubdtype(x.dtype, np.floating) or np.issubdtype(x.dtype, np.integer) or x.dtype == np.bool_):
            raise UsageError(f"{data}: x holds {x.dtype}; give numbers")
        x = x.astype(np.float32)
        if not np.isfinite(x).all():
            row = int(np.argmin(np.isfinite(x.reshape(len(x), -1)).all(1)))
            raise UsageError(f"{data}: row {row} of x holds NaN or infinity; leave it out or fill it in")
    labels, classes = _numbered(data, y, train_y, len(x))
    return x, labels, classes, whole


def _of_npz(data: str, split: str) -> tuple[Any, Any, Any, bool]:
    path = Path(data.partition(":")[2]).expanduser()
    if not data.partition(":")[2]:
        raise UsageError(f"{data!r} names no path: write {KIND}:PATH")
    try:
        with zipfile.ZipFile(path) as archive:
            size, memory = sum(member.file_size for member in archive.infolist()), devices.memory()
        if memory is not None and size > memory:
            raise UsageError(f"{path} would take {size / 2**30:,.1f} GiB, more memory than this machine has")
        with np.load(path, allow_pickle=False) as file:
            parts = {name: file[name] for name in file.files if name.split("_")[0] in ("x", "y")}
    except FileNotFoundError as error:
        raise UsageError(f"there is no file {path}; give an .npz with {NAMES}") from error
    except UsageError:
        raise
    except MemoryError as error:
        raise UsageError(f"{path} holds arrays larger than the memory that is free") from error
    except Exception as error:  # zipfile and NumPy raise nearly every type on damaged files
        raise UsageError(f"{path} is no .npz of plain arrays ({' '.join(str(error).split())})") from error
    if "x" in parts:
        return parts["x"], parts.get("y"), parts.get("y"), True
    if f"x_{split}" not in parts:
        raise UsageError(f"{path} holds no x_{split}, only {', '.join(parts) or 'other arrays'}; give {NAMES}")
    return parts[f"x_{split}"], parts.get(f"y_{split}"), parts.get("y_train", parts.get(f"y_{split}")), False


def _of_file(data: str, split: str) -> tuple[Any, Any, Any, bool]:
    function = own.load(data, "data set", callable)
    if not callable(function):
        raise UsageError(f"{data} is a {type(function).__name__}; a data set of your own is a function of the part")
    x, y = _pair(data, own.called(data, "data set", function, split))
    train_y = y if split == "train" or y is None else _pair(data, own.called(data, "data set", function, "train"))[1]
    return x, y, train_y, False


def _pair(data: str, made: Any) -> tuple[Any, Any]:
    x, y = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not hasattr(x, "__array__"):
        raise UsageError(f"{data} returned a {type(made).__name__}; return an array x, or x and labels y")
    return x, y


def _numbered(data: str, y: Any, train_y: Any, count: int) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
    """Labels as the numbers 0… of the training part's sorted values, and these as texts."""
    if y is None:
        return None, ()
    y = np.asarray(y)
    if y.shape != (count,) or y.dtype.kind not in "iubUS":
        raise UsageError(f"{data}: y is {y.dtype} {y.shape}; give one whole number or text for each of {count} rows")
    values = np.unique(np.asarray(train_y))
    place = np.searchsorted(values, y).clip(max=len(values) - 1)
    if (wrong := values[place] != y).any():
        raise UsageError(f"{data}: the label {y[wrong][0]} does not occur in the training part")
    return place.astype(np.int64), tuple(str(v) for v in values)
