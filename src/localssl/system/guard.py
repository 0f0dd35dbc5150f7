"""Programs that start processes need a guard: each of these imports the program's file, and would start more."""

from __future__ import annotations

import multiprocessing
import sys

from localssl.errors import UsageError

UNGUARDED = 78  # exit status of a process that ends for want of a guard: "configuration error" in sysexits.h


def hint(call: str) -> str:
    """What to do where a started process ended before it began; ``call``: what the program calls."""
    return f'a program that calls {call} needs a guard, if __name__ == "__main__"'


def unbegun() -> UsageError:
    """The error where a cell's process ended before it began."""
    return UsageError(f"a process ended before it began ({hint('compare or reproduce')})")


def leave_unguarded() -> None:
    """End this process without a word where another one started it and it still imports that one's program.

    Python would refuse to start processes from here, with a long traceback; the one that started this one says why.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        sys.exit(UNGUARDED)
