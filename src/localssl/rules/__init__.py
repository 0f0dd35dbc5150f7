"""The registry of rules. Every module in this folder may hold rules; they are found, not listed.

>>> import localssl
>>> localssl.rules.get("clapp++dfb", f="softplus").f
'softplus'
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

from localssl.errors import UsageError, unknown
from localssl.own import full_name, is_path
from localssl.rules import own
from localssl.rules.base import Batch, Projections, Rule, ScoreRule

__all__ = ["Batch", "Projections", "Rule", "ScoreRule", "full_name", "get", "is_path", "names", "own", "register"]

_RULES: dict[str, Callable[..., Rule]] = {}


def register(name: str, rule: type[Rule]) -> None:
    """Make a rule known by name, to ``get`` and to the command line.

    Raises:
        UsageError: the name is taken by another rule, or ``rule`` is not a subclass of ``Rule``.
    """
    if not (isinstance(rule, type) and issubclass(rule, Rule)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(f"register({name!r}, …) takes a subclass of localssl.rules.Rule, got {rule!r}")
    if _RULES.get(name, rule) is not rule:
        raise UsageError(f"the name {name!r} is taken by another rule; choose another")
    rule.name = name
    _RULES[name] = rule


def names() -> tuple[str, ...]:
    """Names of all registered rules."""
    return tuple(_RULES)


def get(name: str, **options: Any) -> Rule:
    """The rule of that name with these options; of a file of your own: "path/my_rule.py:MyRule".

    Raises:
        UsageError: unknown rule (the nearest names are given), an option that the rule does not have, or a file that
            holds no such rule or fails (its line is named).
    """
    if name not in _RULES and not is_path(name):
        raise unknown("rule", name, _RULES)
    rule = _RULES[name] if name in _RULES else own.load(name)
    known = {field.name for field in dataclasses.fields(rule)}  # pyright: ignore[reportArgumentType]
    for option in options:
        if option not in known and "__dataclass_fields__" not in vars(rule):
            kind, having = getattr(rule, "__name__", name), f"; it has {', '.join(sorted(known))}" if known else ""
            raise UsageError(
                f"rule {name!r} has no option {option!r}: class {kind} is no dataclass; write @dataclass(frozen=True, "
                f"kw_only=True) above it and each option as a field, {option}: float = …{having}"
            )
        if option not in known:
            raise unknown(f"option of rule {name!r}", option, known or {"none"})
    return rule(**options)


def _collect() -> None:
    for module in sorted(info.name for info in pkgutil.iter_modules(__path__)):
        for value in vars(importlib.import_module(f"{__name__}.{module}")).values():
            if isinstance(value, type) and issubclass(value, Rule) and "name" in vars(value) and value.name:
                register(value.name, value)


_collect()
