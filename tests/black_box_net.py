"""An encoder of a user's own around a device, for the tests of the command line: tests/black_box_net.py:net."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from localssl.blocks import BlackBox

CALLS: list[int] = []
FAILS: dict[int, Callable[[NDArray[Any]], Any]] = {}  # by the number of the call


def device(x: NDArray[Any]) -> Any:
    """Rounds to eighths, with noise from NumPy's global generator."""
    CALLS.append(len(x))
    fail = FAILS.get(len(CALLS))
    return np.round(8 * x + 0.2 * np.random.standard_normal(x.shape)) / 8 if fail is None else fail(x)


def hang(x: NDArray[Any]) -> Any:
    time.sleep(3)
    return x


def net(input_shape: tuple[int, ...], channels: int = 4, timeout: float | None = 0.5) -> list[nn.Module]:
    c, side, _ = input_shape
    box = BlackBox(device, (channels, side // 2, side // 2), timeout=timeout)
    one = nn.Sequential(nn.Conv2d(c, channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    two = nn.Sequential(box, nn.Conv2d(channels, 2 * channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    return [one, two]


def refuses(input_shape: tuple[int, ...]) -> list[nn.Module]:
    raise ValueError("no such bench")


def whole(input_shape: object) -> nn.Module:
    return nn.Flatten()


def nothing(input_shape: tuple[int, ...]) -> str:
    return "net"
