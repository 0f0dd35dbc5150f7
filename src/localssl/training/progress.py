"""What the user sees while a run goes on: a live bar on a terminal, plain lines in a pipe or a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType

import rich.progress as bar
from rich.console import Console
from rich.table import Column


class Progress:
    """Images per second, loss and time left.

    Args:
        step, last_step: where the run is and where it ends.
        batch_size: images in a step.
    """

    def __init__(self, step: int, last_step: int, batch_size: int):
        self.first, self.step, self.last_step, self.batch_size = step, step, last_step, batch_size
        self.began = time.monotonic()
        self.said = 0.0
        # Rich believes FORCE_COLOR and a CI's variables; a log with control characters in it is no good to anyone.
        terminal = sys.stdout.isatty()
        console = Console(force_terminal=None if terminal else False)
        self.live = terminal and console.is_interactive
        width = len(f"step {last_step}/{last_step}")  # where it is narrow, the note gives way
        self.bar = bar.Progress(
            bar.TextColumn("step {task.completed}/{task.total}", table_column=Column(min_width=width, no_wrap=True)),
            bar.BarColumn(bar_width=8),
            bar.TimeRemainingColumn(table_column=Column(min_width=7, no_wrap=True)),
            bar.TextColumn("left, {task.fields[note]}", table_column=Column(no_wrap=True)),  # cut to fit
            console=console,
            disable=not self.live,
        )
        self.task = self.bar.add_task("train", total=last_step, completed=step, note="")

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def rate(self) -> float | None:
        """Images per second since the start or resume; None before the first step."""
        elapsed = time.monotonic() - self.began
        return (self.step - self.first) * self.batch_size / elapsed if self.step > self.first and elapsed > 0 else None

    def advance(self, step: int) -> None:
        """One step further."""
        self.step = step
        self.bar.update(self.task, completed=step)

    def line(self, parts: list[str]) -> None:
        """Show what is new: beside the bar, or as a line of text, at most one every few seconds."""
        rate = self.rate()
        note = ", ".join([f"{rate or 0:.0f} images/s", *parts])
        if self.live:
            self.bar.update(self.task, note=note)
            return
        now = time.monotonic()
        if now - self.said < 5 and self.step != self.last_step and self.said:
            return
        self.said = now
        left = (self.last_step - self.step) * self.batch_size / rate if rate else 0
        print(f"step {self.step}/{self.last_step}: {left:.0f} s left, {note}", flush=True)
