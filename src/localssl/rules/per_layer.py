"""Options with one value for all layers or one each, for rules whose publication has a value a layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from localssl.errors import UsageError

PerLayer = float | Sequence[float]


def of_layer(values: PerLayer, layer: int) -> float:
    """The value for a layer, of one number for all or one each; layers beyond the list take its last."""
    return float(values) if isinstance(values, int | float) else float(values[min(layer, len(values) - 1)])


def check_per_layer(name: str, values: object, low: float = -math.inf) -> None:
    """Refuse what is neither a finite number nor a list of them, or lies below ``low``.

    Raises:
        UsageError: names the option.
    """
    listed: list[Any] = list(values) if isinstance(values, list | tuple) else [values]  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    if not listed or not all(type(v) in (int, float) and math.isfinite(v) and v >= low for v in listed):
        bound = "" if low == -math.inf else f" of {low:g} or more"
        raise UsageError(f"{name} must be a number{bound}, or a list of them, one a layer; got {values!r}")
