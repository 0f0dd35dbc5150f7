"""Errors a user can mend: one line that says what is wrong and what to do. The command line exits with status 2."""

from __future__ import annotations

import difflib
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence


class UsageError(ValueError):
    """Bad input. The message is one line: what is wrong, then what to do."""


class RunError(RuntimeError):
    """A run that cannot go on (full disk, NaN loss, unreadable image). The last good checkpoint is untouched.

    Args:
        what: happened; what a comparison says of one of its runs.
        advice: for who began that run alone.
    """

    def __init__(self, what: str = "", advice: str = ""):
        super().__init__(f"{what}; {advice}" if advice else what)
        self.what = what


LISTED = 40  # choices, at most; torchvision alone has 80 networks


def unknown(kind: str, given: str, choices: Iterable[str]) -> UsageError:
    """The error for a misspelt name: names the nearest choices first, then all of them, or the first 40."""
    names = sorted(choices)
    near = difflib.get_close_matches(given.lower(), names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(repr(n) for n in near)}? " if near else ""
    more = f", … ({len(names)} in all)" if len(names) > LISTED else ""
    return UsageError(f"unknown {kind} {given!r}: {hint}choices: {', '.join(names[:LISTED])}{more}")


def one_line(error: object) -> str:
    """An error's text, or any other, in one line."""
    return " ".join(str(error).split())


def first_line(error: BaseException) -> str:
    """The first line of an error's text; the error's type where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def in_shell(words: Sequence[str]) -> str:
    """Words as this machine's shell takes them, for advice that is pasted."""
    return subprocess.list2cmdline(words) if sys.platform == "win32" else shlex.join(words)
