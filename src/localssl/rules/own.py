"""Rules from a file of the user's own, named PATH.py:CLASS."""

from __future__ import annotations

from localssl import own
from localssl.errors import UsageError
from localssl.rules.base import Rule


def load(name: str) -> type[Rule]:
    """The class of a rule named PATH.py:CLASS. A file is loaded once.

    Raises:
        UsageError: no such file or class, not a rule, or an error while the file is loaded, with the file and line.
    """
    rule = own.load(name, "rule", _is_rule)
    if not _is_rule(rule):
        file, _, class_name = own.full_name(name).rpartition(":")
        raise UsageError(f"{class_name} in {file} is not a rule; it must be a subclass of localssl.rules.Rule")
    if not rule.__dict__.get("name"):  # nor what it inherits
        rule.name = name.rpartition(":")[2]
    return rule


def _is_rule(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Rule)
