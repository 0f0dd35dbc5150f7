"""Credit assignment: how a loss at one block reaches weights. Which one a rule uses is in its ``credit``."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from localssl.credit import backprop, local
from localssl.encoders import Encoder

ACTIVITIES: dict[str, Callable[[Encoder, Tensor], list[Tensor]]] = {
    "local": local.activities,
    "backprop": backprop.activities,
    "optimum": local.activities,  # its losses; its update is in credit/optimum.py
}
