"""Tables in Markdown, in one dialect wherever one is written; numbers of things in words."""

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


def counted(number: float, thing: str) -> str:
    """A number of things.

    >>> counted(1, "epoch"), counted(2000, "step")
    ('1 epoch', '2,000 steps')
    """
    digits = f"{number:,}" if isinstance(number, int) else f"{number:g}"
    return f"{digits} {thing}{'' if number == 1 else 's'}"
