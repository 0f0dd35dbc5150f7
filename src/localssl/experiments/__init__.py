"""Experiments: one file a figure or table; ``localssl reproduce NAME`` runs one."""

from __future__ import annotations

from collections.abc import Callable

from localssl.experiments import cifar10, demo
from localssl.experiments.cells import Settings

__all__ = ["EXPERIMENTS", "Settings"]

EXPERIMENTS: dict[str, Callable[[Settings], None]] = {
    "demo": demo.run,
    "cifar10": cifar10.run,
    "cifar10-search": cifar10.search,
    "cifar10-speed": cifar10.speed,
}
