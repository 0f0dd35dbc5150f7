"""Experiments: one file a figure or table; ``localssl reproduce NAME`` runs one."""

from __future__ import annotations

from collections.abc import Callable

from localssl.experiments.cells import Settings
from localssl.experiments.cifar10 import cifar10, cifar10_search
from localssl.experiments.demo import demo

EXPERIMENTS: dict[str, Callable[[Settings], None]] = {
    "demo": demo,
    "cifar10": cifar10,
    "cifar10-search": cifar10_search,
}
