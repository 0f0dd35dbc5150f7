"""Credit assignment: how a loss at one block reaches weights. Which one a rule uses is in its ``credit``.

Every module in this folder may hold some, in a table ``CREDITS``; they are found, not listed.
"""

from __future__ import annotations

import importlib
import pkgutil

from localssl.credit.base import Credit, Step
from localssl.errors import unknown

__all__ = ["CREDITS", "Credit", "Step", "of"]

CREDITS: dict[str, Credit] = {}
for _module in sorted(info.name for info in pkgutil.iter_modules(__path__)):
    CREDITS.update(getattr(importlib.import_module(f"{__name__}.{_module}"), "CREDITS", {}))


def of(name: str) -> Credit:
    """The credit assignment of that name.

    Raises:
        UsageError: unknown; the nearest names are given.
    """
    if name not in CREDITS:
        raise unknown("credit assignment", name, CREDITS)
    return CREDITS[name]
