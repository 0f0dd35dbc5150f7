"""Rules from a file of the user's own, named PATH.py:CLASS."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType

from localssl.errors import UsageError, unknown
from localssl.rules.base import Rule

_LOADED: dict[Path, ModuleType] = {}


def is_path(name: str) -> bool:
    """Whether a rule's name is that of a file: "my_rule.py:MyRule", or without the class."""
    return name.endswith(".py") or name.rpartition(":")[0].endswith(".py")


def full_name(name: str) -> str:
    """The name with the file's absolute path, as configurations keep it; other names as they are."""
    if not is_path(name):
        return name
    file, class_name = _parts(name)
    return f"{file}:{class_name}" if class_name else str(file)


def short_name(name: str) -> str:
    """The name without the file's folder, for tables; other names as they are."""
    return name.replace("\\", "/").rsplit("/", 1)[-1] if is_path(name) else name


def load(name: str) -> type[Rule]:
    """The class of a rule named PATH.py:CLASS. A file is loaded once.

    Raises:
        UsageError: no such file or class, not a rule, or an error while the file is loaded, with the file and line.
    """
    file, class_name = _parts(name)
    if not file.is_file():
        raise UsageError(f"there is no file {file}; a rule of your own is named PATH.py:CLASS")
    module = _LOADED[file] if file in _LOADED else _load(file)
    found = {key for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, Rule)}
    defined = {key for key in found if getattr(module, key).__module__ == module.__name__}
    if not class_name:
        choices = ", ".join(f"{file.name}:{key}" for key in sorted(defined)) or "it defines no rule"
        raise UsageError(f"{name} names a file; name the rule in it: {choices}")
    if not hasattr(module, class_name):
        raise unknown(f"rule in {file}", class_name, defined or {"none"})
    rule = getattr(module, class_name)
    if not (isinstance(rule, type) and issubclass(rule, Rule)):
        raise UsageError(f"{class_name} in {file} is not a rule; it must be a subclass of localssl.rules.Rule")
    if not vars(rule).get("name"):  # nor what it inherits
        rule.name = class_name
    return rule


def fingerprint(name: str) -> str:
    """sha256 (hex) of the file of a rule named PATH.py:CLASS."""
    return hashlib.sha256(_parts(name)[0].read_bytes()).hexdigest()


def where(error: BaseException, *others: str) -> str | None:
    """File, line and function of the user's own rule (or of other files) in which an error arose, else None."""
    files = {*(str(file) for file in _LOADED), *others}
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in files]
    return f"{frames[-1].filename}:{frames[-1].lineno} ({frames[-1].name})" if frames else None


def _parts(name: str) -> tuple[Path, str]:
    file, class_name = (name, "") if name.endswith(".py") else name.rsplit(":", 1)
    return Path(file).expanduser().absolute(), class_name


def _load(file: Path) -> ModuleType:
    """Run the file as a module; dataclasses want to find it among the modules."""
    name = f"localssl_own_{file.stem}_{hashlib.sha1(str(file).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.append(str(file.parent))  # for what lies beside it
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UsageError(f"{_place(file, error)}: {type(error).__name__}: {_message(error)}") from error
    finally:
        sys.path.remove(str(file.parent))
    _LOADED[file] = module
    return module


def _place(file: Path, error: BaseException) -> str:
    """Where an error arose while the file was loaded: in it, or where it is not to be parsed."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    return f"{file}:{lines[-1]}" if lines else str(file)


def _message(error: BaseException) -> str:
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return " ".join(text.split()) or "no message"
