"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table


def show(title: str, header: Sequence[str], rows: Sequence[Sequence[object]], caption: str = "") -> None:
    """Print one table with its protocol under it; numbers to the right, nothing cut off in a narrow window."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # a pipe or a file has no width of its own
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*[str(cell) for cell in row])
    console.print(table)
