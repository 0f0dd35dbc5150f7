"""What a user brings in a file of his own, named PATH.py:NAME: rules, encoders, data sets, views."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from localssl.errors import UsageError, in_shell, one_line, unknown

_LOADED: dict[Path, ModuleType] = {}
_trusted: set[Path] = set()  # by ``trust``
_doubted: set[Path] = set()  # named by what was read from a folder
_named: set[Path] | None = None  # files that may run; None: outside of commands, all but the doubted


def is_path(name: str) -> bool:
    """Whether a name is that of a file: "my_rule.py:MyRule", or without what comes behind the colon."""
    return name.endswith(".py") or name.rpartition(":")[0].endswith(".py")


def full_name(name: str) -> str:
    """The name with the file's absolute path, as configurations keep it; other names as they are."""
    if not is_path(name):
        return name
    file, wanted = _parts(name)
    return f"{file}:{wanted}" if wanted else str(file)


def file_of(name: str) -> str:
    """The file of PATH.py:NAME, as it was typed."""
    return name if name.endswith(".py") else name.rpartition(":")[0]


def short_name(name: str) -> str:
    """The name without the file's folder, for tables; other names as they are."""
    return name.replace("\\", "/").rsplit("/", 1)[-1] if is_path(name) else name


def load(name: str, kind: str, fits: Callable[[object], bool]) -> Any:
    """What stands under NAME in the file of PATH.py:NAME. A file is loaded once.

    Args:
        name: PATH.py:NAME.
        kind: what it should be, for errors: "rule".
        fits: whether something is of that kind.

    Raises:
        UsageError: no such file or name, or an error while the file is loaded, with the file and line.
    """
    file, wanted = _parts(name)
    if not file.is_file():
        raise UsageError(f"there is no file {file}; {_article(kind)} of your own is named PATH.py:{_part(kind)}")
    if file not in _LOADED and not _may_run(file):
        raise UsageError(
            f"{name} is code that a file names and not this command, so it was not run: add --own "
            f"{in_shell([str(file)])} to trust it"
            if _named is not None
            else f"{name} is code that a folder names and not this program, so it was not run: to trust it, call "
            f"localssl.trust({str(file)!r}) first"
        )
    module = _LOADED[file] if file in _LOADED else _load(file)
    own = {key for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__}
    found = sorted(key for key in own if not key.startswith("_") and fits(getattr(module, key)))
    if not wanted:
        choices = ", ".join(f"{file.name}:{key}" for key in found) or f"it defines no {kind}"
        raise UsageError(f"{name} names a file; name the {kind} in it: {choices}")
    if not hasattr(module, wanted):
        raise unknown(f"{kind} in {file}", wanted, found or {"none"})
    return getattr(module, wanted)


def trust(*files: str | Path) -> None:
    """Let a program run code of yours that a run's folder names: ``open_run(…).learner()``, ``load(…)``.

    Not wanted for what the program names itself (``rules.get("my_rule.py:MyRule")``, ``train(rule=…)``), but where a
    folder that was opened has named it first.

    Args:
        files: PATH.py, or PATH.py:NAME for its file.

    Raises:
        UsageError: no file of Python, or not there.
    """
    check_files(files, "trust")
    _trusted.update(_real(_parts(str(name))[0]) for name in files)


def doubt(names: Iterable[str]) -> None:
    """Remember that these were read from a folder, which may be a stranger's; names of other kinds are passed over."""
    _doubted.update(_parts(name)[0] for name in names if is_path(name))


def _may_run(file: Path) -> bool:
    if (real := _real(file)) in _trusted:
        return True
    return file not in _doubted if _named is None else real in _named


def check_files(files: Iterable[str | Path], behind: str = "--own") -> None:
    """Refuse names that are no file of Python, ``behind`` saying who took them; PATH.py:NAME stands for its file.

    Raises:
        UsageError: names the first of them.
    """
    for name in map(str, files):
        if not is_path(name):
            raise UsageError(f"{behind} takes files with code of yours, PATH.py, not {name!r}")
        if not (file := _parts(name)[0]).is_file():
            raise UsageError(f"{behind} {name}: there is no file {file}")


@contextmanager
def only_named(words: Iterable[str]) -> Generator[None]:
    """For a while no code runs but that of files named in a command's words: a run's folder may come from others."""
    global _named
    before = _named
    parts = {part for word in words for part in (word, *word.replace("=", " ").split())}
    _named = {_real(_parts(part)[0]) for part in parts if is_path(part)}
    try:
        yield
    finally:
        _named = before


def named(*by_program: str) -> list[str]:
    """The files that may run, for ``only_named`` in another process; ``by_program``: named outside of commands."""
    more = {_real(_parts(name)[0]) for name in by_program} if _named is None else _named
    return sorted(map(str, {*more, *_trusted, *map(_real, _LOADED)}))


def called(name: str, kind: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """What a function from such a file returns.

    Raises:
        UsageError: it does not take these options, or fails, with the file and line.
    """
    try:
        inspect.signature(function).bind(*arguments, **options)
    except TypeError as error:
        raise UsageError(f"{kind} {short_name(name)} cannot be called so: {error}") from error
    try:
        return function(*arguments, **options)
    except UsageError:
        raise
    except Exception as error:
        place = where(error) or name
        raise UsageError(f"{place}: {type(error).__name__}: {_message(error)}") from error


def takes(function: Any, option: str) -> bool:
    """Whether a function can be called with a keyword of that name."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(p.kind is p.VAR_KEYWORD or (p.name == option and p.kind is not p.POSITIONAL_ONLY) for p in parameters)


def fingerprint(name: str) -> str:
    """sha256 (hex) of the file of PATH.py:NAME."""
    return hashlib.sha256(_parts(name)[0].read_bytes()).hexdigest()


def where(error: BaseException, *others: str) -> str | None:
    """File, line and function of a user's own file (or of other files) in which an error arose, else None."""
    files = {*(str(file) for file in _LOADED), *others}
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in files]
    return f"{frames[-1].filename}:{frames[-1].lineno} ({frames[-1].name})" if frames else None


def _article(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"


def _part(kind: str) -> str:
    return "CLASS" if kind == "rule" else "NAME"


def _parts(name: str) -> tuple[Path, str]:
    file, wanted = (name, "") if name.endswith(".py") else name.rsplit(":", 1)
    with suppress(RuntimeError):  # ~nobody
        return Path(file).expanduser().absolute(), wanted
    return Path(file).absolute(), wanted


def _real(file: Path) -> Path:
    """Without symbolic links, where that can be said of it."""
    try:
        return file.resolve()
    except (OSError, ValueError, RuntimeError):
        return file


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
    return one_line(text) or "no message"
