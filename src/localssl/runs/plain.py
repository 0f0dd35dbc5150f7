"""YAML as plain data: what a configuration or a file of flags may be."""

from __future__ import annotations

from typing import Any

import yaml

from localssl.errors import UsageError, first_line

LONGEST = 100_000  # characters


class _Loader(yaml.SafeLoader):
    """Plain data only, and no aliases: a few lines of them stand for more than any memory holds."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has an alias, *NAME")
        return super().compose_node(parent, index)


def plain_yaml(text: str, source: str) -> Any:
    """What a YAML text says; None where it is longer than any configuration.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        return yaml.load(text, _Loader) if len(text) <= LONGEST else None
    except (yaml.YAMLError, ValueError, RecursionError, AttributeError) as error:  # PyYAML's own bugs, too
        raise UsageError(f"{source} is not readable YAML ({first_line(error)})") from error
