"""Flags in a file: ``--config FILE``, and ``flags.yaml``, what a run's user asked for.

A YAML file (JSON is YAML, too) of a command's flags by their names, with "-" or "_":

    rule: clapp++dfb
    data: digits
    batch-size: 32
    rule-options: {f: softplus}
"""

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml

from localssl import own
from localssl.errors import UsageError, unknown
from localssl.runs.config import FORMAT
from localssl.runs.kinds import UNIONS, in_words
from localssl.runs.plain import plain_yaml
from localssl.system.files import write_text

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

NAME = "flags.yaml"
CODE = ("rule", "data", "encoder", "views")  # flags that may name a file of the user's, which is kept by its whole path
Kind = TypeVar("Kind", bound="DataclassInstance")
_RESOLVED = {"mean", "augmentation"}  # keys of a config.yaml that are no flags
# of this start alone, not of what a run is
NOT_KEPT = ("out", "config", "own", "resume", "expect", "report", "no_report", "dry_run", "download")


def read(path: Path, kind: type[DataclassInstance]) -> dict[str, Any]:
    """The flags in a file, by the names of the fields of ``kind`` and of their types.

    Args:
        path: the file, or the folder of a run, whose ``flags.yaml`` is read.
        kind: the command's dataclass.

    Raises:
        UsageError: no such file, not YAML, of another version, an unknown key, a value that the flag does not take.
    """
    path = path / NAME if path.is_dir() else path
    raw = _yaml(path)
    if (version := raw.pop("format", FORMAT)) != FORMAT:
        raise UsageError(f"{path} has format {version!r}, this version of localssl reads {FORMAT}; write it anew")
    if raw.keys() >= _RESOLVED:
        if kind.__name__ == "Compare":
            raise UsageError(f"{path} is what a run's flags came to, and none of compare's; give a file of flags")
        return {}  # they are no flags; the run takes them from there
    hints = get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind) if field.name != "config"]
    found: dict[str, Any] = {}
    for key, value in raw.items():
        name = str(key).replace("-", "_")
        if name not in names:
            raise unknown(f"key in {path}", str(key).replace("_", "-"), [n.replace("_", "-") for n in names])
        if name in found:
            raise UsageError(f"{path} has {key} twice; keep one")
        try:
            found[name] = _typed(value, hints[name])
        except (TypeError, ValueError) as error:
            raise UsageError(f"{path}: {key} is {value!r}, expected {in_words(hints[name])}") from error
    return found


def taken(flags: Kind) -> Kind:
    """The flags, after those of the file in ``config`` were put among them: it is named no more.

    A run's ``config.yaml`` stays named: it holds what flags came to, and the run takes that from there.
    """
    path: Path | None = flags.config  # pyright: ignore[reportAttributeAccessIssue]
    if path is None or (not path.is_dir() and _yaml(path).keys() >= _RESOLVED):
        return flags
    return dataclasses.replace(flags, config=None)


def write(path: Path, flags: DataclassInstance, before: Mapping[str, Any] | None = None) -> None:
    """Write every flag that is not as by default, so that ``read`` gives them back.

    Args:
        path: the file.
        flags: a command's.
        before: flags of an earlier start that hold where ``flags`` has the default.
    """
    asked = {**(before or {}), **_asked(flags)}
    asked |= {name: own.full_name(asked[name]) for name in CODE if asked.get(name)}
    plain = {name.replace("_", "-"): _plain(value) for name, value in asked.items() if name not in NOT_KEPT}
    write_text(path, yaml.safe_dump({"format": FORMAT, **plain}, sort_keys=False, allow_unicode=True))


def _asked(flags: DataclassInstance) -> dict[str, Any]:
    values = {field.name: (getattr(flags, field.name), field.default) for field in dataclasses.fields(flags)}
    return {name: value for name, (value, default) in values.items() if value != default}


def _yaml(path: Path) -> dict[str, Any]:
    """The file's keys and values."""
    try:
        raw = plain_yaml(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError as error:
        raise UsageError(f"--config {path}: there is no such file") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not readable YAML ({error})") from error
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise UsageError(f"{path} holds no flags; write a line for each, for instance rule: clapp++dfb")
    return raw


def _typed(value: object, kind: Any) -> Any:
    """A value of YAML as a flag of this type takes it.

    Raises:
        TypeError, ValueError: it does not.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin in UNIONS:
        return None if value is None else _typed(value, next(k for k in inner if k is not types.NoneType))
    if origin is tuple:
        if isinstance(value, Mapping) and inner[0] is str:
            return tuple(f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in value.items())
        return tuple(_typed(item, inner[0]) for item in (value if isinstance(value, list) else [value]))
    if origin is Literal:
        if str(value) not in inner:  # labels: 10 is a number to YAML
            raise ValueError
        return str(value)
    if kind is float and not isinstance(value, bool):
        return float(value)  # pyright: ignore[reportArgumentType]  # YAML reads 1e-3 as a text
    if kind is Path and isinstance(value, str):
        return Path(value)
    if type(value) is not kind:
        raise TypeError
    return value


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
