"""localssl: deep networks trained by local self-supervised rules, and how close they come to backpropagation."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from localssl import alignment, blocks, callbacks, certificate, encoders, represent, rules, testing, theory
    from localssl.api import align, certify, compare, doctor, dry_run, open_run, reproduce, train
    from localssl.learner import Learner
    from localssl.own import trust
    from localssl.runs.checkpoint import load

__version__ = "0.1.0"
__all__ = [
    "Learner",
    "__version__",
    "align",
    "alignment",
    "blocks",
    "callbacks",
    "certificate",
    "certify",
    "compare",
    "doctor",
    "dry_run",
    "encoders",
    "load",
    "open_run",
    "represent",
    "reproduce",
    "rules",
    "testing",
    "theory",
    "train",
    "trust",
]

_HOMES = {
    "Learner": "localssl.learner",
    "load": "localssl.runs.checkpoint",
    "trust": "localssl.own",
    **dict.fromkeys(
        ("align", "certify", "compare", "doctor", "dry_run", "open_run", "reproduce", "train"), "localssl.api"
    ),
}


def __getattr__(name: str) -> object:
    """Import what is asked for when it is asked for, so that the command line can act before PyTorch is loaded."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    module = f"{__name__}.{name}"
    try:
        if not name.startswith("_"):
            return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:  # a package that is not installed
            raise
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
