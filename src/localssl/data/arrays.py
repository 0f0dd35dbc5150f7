"""Data that are arrays already: vectors, time series and maps in an .npz, or from a function of the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from localssl import own
from localssl.errors import UsageError
from localssl.system import devices
from localssl.system.files import read_npz

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
        with np.errstate(over="ignore"):  # the next line finds them
            x = x.astype(np.float32)
        if not np.isfinite(x).all():
            row = int(np.argmin(np.isfinite(x.reshape(len(x), -1)).all(1)))
            raise UsageError(
                f"{data}: row {row} of x holds NaN, infinity or more than float32 does; leave it out or fill it in"
            )
    labels, classes = _numbered(data, y, train_y, len(x))
    return x, labels, classes, whole


def _of_npz(data: str, split: str) -> tuple[Any, Any, Any, bool]:
    path = Path(data.partition(":")[2]).expanduser()
    if not data.partition(":")[2]:
        raise UsageError(f"{data!r} names no path: write {KIND}:PATH")
    try:
        parts = read_npz(path, lambda name: name.split("_")[0] in ("x", "y"), devices.memory())
    except FileNotFoundError as error:
        raise UsageError(f"there is no file {path}; give an .npz with {NAMES}") from error
    if "x" in parts and (both := sorted(parts.keys() & {"x_train", "x_test"})):
        raise UsageError(f"{path} holds x and {' and '.join(both)}, and says twice what to train on; give {NAMES}")
    if "x" in parts:
        return parts["x"], parts.get("y"), parts.get("y"), True
    if f"x_{split}" not in parts:
        raise UsageError(f"{path} holds no x_{split}, only {', '.join(parts) or 'other arrays'}; give {NAMES}")
    other = parts.get("x_test" if split == "train" else "x_train", parts[f"x_{split}"])
    if parts[f"x_{split}"].ndim > 1 and other.shape[1:] != parts[f"x_{split}"].shape[1:]:
        shapes = " and ".join(str(parts[name].shape) for name in ("x_train", "x_test"))
        raise UsageError(f"{path}: x_train and x_test are {shapes}; both need rows of one shape")
    return parts[f"x_{split}"], parts.get(f"y_{split}"), parts.get("y_train", parts.get(f"y_{split}")), False


def _of_file(data: str, split: str) -> tuple[Any, Any, Any, bool]:
    function = own.load(data, "data set", callable)
    if not callable(function):
        raise UsageError(
            f"{data} is a {type(function).__name__}; a data set of your own is a function, or a class, of the part"
        )
    x, y = _pair(data, own.called(data, "data set", function, split))
    train_x, train_y = (x, y) if split == "train" else _pair(data, own.called(data, "data set", function, "train"))
    if np.shape(train_x)[1:] != np.shape(x)[1:]:
        shapes = f"{np.shape(train_x)} and {np.shape(x)}"
        raise UsageError(f"{data}: the parts train and test are {shapes}; both need rows of one shape")
    return x, y, train_y, False


def _pair(data: str, made: Any) -> tuple[Any, Any]:
    if isinstance(made, Dataset):
        made = own.called(data, "data set", _stacked, data, made)
    x, y = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not hasattr(x, "__array__"):
        raise UsageError(
            f"{data} returned a {type(made).__name__}; return an array x, or x and labels y, or a torch Dataset"
        )
    return x, y


def _stacked(data: str, items: Dataset[Any]) -> tuple[Any, Any]:
    """Everything in a PyTorch data set: x, and y where an item is a pair."""
    if not hasattr(items, "__len__"):
        raise UsageError(f"{data} is a stream without a length; write shards, docs/own-data.md says how")
    found: list[Any] = [items[i] for i in range(len(items))]  # pyright: ignore[reportArgumentType]
    paired = bool(found) and isinstance(found[0], tuple | list)
    x: list[Any] = [item[0] for item in found] if paired else found
    for number, one in enumerate(x):
        if not hasattr(one, "__array__") or np.shape(one) != np.shape(x[0]):
            got = f"of shape {tuple(np.shape(one))}" if hasattr(one, "__array__") else f"a {type(one).__name__}"
            raise UsageError(f"{data}: item {number} is {got}; give tensors or arrays (C, H, W) of one shape")
    y = np.array([item[1] for item in found]) if paired else None
    return np.stack([np.asarray(one) for one in x]) if x else np.empty(0), y


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
