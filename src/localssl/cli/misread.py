"""What the parser finds wrong with a command line, in the words of this library's other errors."""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
from typing import Any, get_args, get_origin, get_type_hints

from localssl.errors import UsageError, unknown
from localssl.runs.kinds import UNIONS, in_words

_PARSED = re.compile(r"Error parsing (--\S+): .*'([^']*)'")
_CHOSEN = re.compile(r"invalid choice '(.*)' for argument '(--\S+)'")
_NO_VALUE = re.compile(r"Missing value for argument '(?:\(')?(--[^\s']+)'")  # tyro 1.0.0 prints a tuple of names


def refusal(box: str, command: str, kind: type[Any]) -> UsageError:
    """The error of one line for what tyro printed.

    Args:
        box: its text.
        command: "train".
        kind: the command's dataclass.
    """
    said = _first(box)
    help_ = f"localssl {command} --help-all shows what it takes"
    fields = {f"--{field.name.replace('_', '-')}": field for field in dataclasses.fields(kind)}
    if found := _CHOSEN.match(said):
        return unknown(found[2].lstrip("-"), found[1], get_args(_one(kind, found[2])))
    if found := _PARSED.match(said):
        return UsageError(f"{found[1]} takes {in_words(_one(kind, found[1]))}, not {found[2]!r}; {help_}")
    if found := _NO_VALUE.match(said):
        return UsageError(f"{found[1]} stands without a value: give {in_words(_one(kind, found[1]))}; {help_}")
    if said.startswith("Missing from"):
        needed = [flag for flag, field in fields.items() if field.default is dataclasses.MISSING]
        flags = " and ".join(flag for flag in needed if f"{flag} " in said)
        return UsageError(f"{command} needs {flags or f'the folder of a run, localssl {command} runs/x'}; {help_}")
    if said.startswith("Unrecognized options: "):
        word = said.partition(": ")[2].split(", ")[0]
        near = difflib.get_close_matches(f"--{word}", fields, n=1, cutoff=0.8)
        hint = f", did you mean {near[0]}?" if near else ";"
        return UsageError(f"{command} takes no {word!r} where it stands: flags begin with --{hint} {help_}")
    return UsageError(f"{said}; {help_}")


def _first(box: str) -> str:
    """What tyro's box says, between its title and its details, in a line."""
    rows = [line.strip(" │") for line in box.splitlines()[1:]]
    blank = [not row.strip("─-╭╮╰╯") for row in rows]  # a ruler, or a gap
    first = blank.index(False)
    return " ".join(rows[first : blank.index(True, first)]).rstrip(".")


def _one(kind: type[Any], flag: str) -> Any:
    """The type of one value of a flag: int of ``tuple[int, ...] | None``."""
    hint: Any = get_type_hints(kind)[flag.lstrip("-").replace("-", "_")]
    while get_origin(hint) in (*UNIONS, tuple):
        hint = next(part for part in get_args(hint) if part is not types.NoneType)
    return hint
