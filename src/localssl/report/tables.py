"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table


def show(title: str, header: Sequence[str], rows: Sequence[Sequence[object]], caption: str = "", left: int = 1) -> None:
    """Print one table with its protocol under it, nothing cut off in a narrow window.

    The first ``left`` columns are text and begin at the left, the others end at the right.
    """
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # a pipe or a file has no width of its own
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*[str(cell) for cell in row])
    console.print(table)
