"""Lines for what turns out to take long: none in the first seconds, then one now and then."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

FIRST, EVERY = 3.0, 10.0  # seconds


class Slow:
    """Says how far something is.

    Args:
        text: the line, with {done} and {total}.
        report: receives it.
        even: whether its steps take the same time each, so that the time left can be told.
    """

    def __init__(self, text: str, report: Callable[[str], None] | None = None, even: bool = True):
        self.text, self.report, self.even = text, report or partial(print, flush=True), even
        self.began = time.monotonic()
        self.due = self.began + FIRST

    def __call__(self, done: int, total: int, loss: float | None = None) -> None:
        """So much is done. Nothing is said at the end, where the result follows."""
        now = time.monotonic()
        if now < self.due or done >= total:
            return
        self.due = now + EVERY
        line = self.text.format(done=f"{done:,}", total=f"{total:,}")
        if loss is not None:
            line += f", loss {loss:.3g}"
        if self.even and done:
            line += f", {(now - self.began) / done * (total - done):.0f} s left"
        self.report(line)
