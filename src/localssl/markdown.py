"""Tables in Markdown, in one dialect wherever one is written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    r"""The lines of a table, with no newline after the last; a cell holds what ``str`` makes of it, its bars escaped.

    >>> print(table(["rule", "blocks"], [["a|b", 6]]))
    | rule | blocks |
    | --- | --- |
    | a\|b | 6 |
    """
    lines = ([str(cell).replace("|", "\\|") for cell in line] for line in (header, ["---"] * len(header), *rows))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
