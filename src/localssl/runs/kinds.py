"""Of what type a flag's value is, and the same in words."""

from __future__ import annotations

import types
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from localssl.errors import UsageError, unknown

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

UNIONS = (types.UnionType, typing.Union)  # the second is what Literal[...] | None makes


def check_kinds(flags: DataclassInstance) -> None:
    """Refuse values that the command line could not have given: a program may write anything.

    Raises:
        UsageError: names the first flag of another type, or a choice that is none.
    """
    for name, kind in typing.get_type_hints(type(flags)).items():
        value = getattr(flags, name)
        if is_of(value, kind):
            continue
        choices = next((c.__args__ for c in (kind, *typing.get_args(kind)) if typing.get_origin(c) is Literal), ())
        if choices and isinstance(value, str) and not str(kind).startswith("tuple"):
            raise unknown(name, value, choices)
        several = [k.__args__[0] for k in (kind, *typing.get_args(kind)) if typing.get_origin(k) is tuple]
        if several and isinstance(value, tuple):
            wrong = next(item for item in value if not is_of(item, several[0]))
            raise UsageError(f"--{name.replace('_', '-')}: {shown(wrong)} in the list is not {in_words(several[0])}")
        own = "; one of your own stands in a file, PATH.py:NAME" if name in ("data", "encoder", "rule", "views") else ""
        raise UsageError(f"--{name.replace('_', '-')} {shown(value)}: give {in_words(kind)}{own}")


def shown(value: object) -> str:
    """A value in an error of one line: an array or a network only by its type."""
    text = repr(value)
    return f"of type {type(value).__name__}" if len(text) > 80 or "\n" in text else text


def is_of(value: object, kind: Any) -> bool:
    """Whether a value is of a flag's type; a whole number does where a number is wanted, and True does not."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return value in inner
    if origin in UNIONS:
        return any(is_of(value, one) for one in inner)
    if origin is tuple:  # all are (KIND, ...), or as many of one kind
        return (
            isinstance(value, tuple)
            and (inner[-1] is Ellipsis or len(value) == len(inner))
            and all(is_of(item, inner[0]) for item in value)
        )
    if isinstance(value, bool):
        return kind is bool
    if isinstance(value, int) and kind in (int, float):
        return abs(value) < 2**63
    return isinstance(value, origin or kind)


def in_words(kind: Any) -> str:
    """A type, for someone who gave another: "a whole number"."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin in UNIONS:
        return " or ".join(map(in_words, inner))
    if origin is tuple:
        return f"several in a list, each {in_words(inner[0])}"
    if dict in (kind, origin):
        return "names with values"
    words = {int: "a whole number", float: "a number", str: "a text", bool: "True or False", Path: "a path"}
    return words.get(kind, "None")
