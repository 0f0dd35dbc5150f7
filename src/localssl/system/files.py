"""Writing files so that a crash at any moment leaves the old or the new one whole, never a part."""

from __future__ import annotations

import errno
import itertools
import json
import os
import platform
import zipfile
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from localssl.errors import UsageError, one_line

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

TRIES = 10  # to make a folder and hold it, while others make and remove it
_holding: dict[Path, int | None] = {}  # the folders that this process holds, and what holds each


class Vanished(OSError):
    """A folder that this process holds is gone, or another one is in its place."""


def attempt(what: str, path: Path) -> None:
    """Before every single thing that this module does to a disk; tests let it raise what the system could.

    Args:
        what: "folder", "open", "write", "sync", "replace", "append", "move" or "remove".
        path: the file or folder, never a temporary one.

    Raises:
        Vanished: see ``check_held``.
    """
    check_held(path)


def check_held(path: Path) -> None:
    """Refuse to go on in a folder that was held and is gone: below a mount that has vanished there is another disk.

    Raises:
        Vanished: the path lies in such a folder.
    """
    for folder, handle in list(_holding.items()):
        if path.is_relative_to(folder) and not _is_there(folder, handle):
            says = f"{folder} is no longer the folder that this run holds (unmounted, moved or deleted?)"
            raise Vanished(errno.ESTALE, says, str(folder))


def _is_there(folder: Path, handle: int | None) -> bool:
    """Whether a folder is the one that is held; on Windows, where nothing holds it, whether there is one."""
    try:
        found = os.stat(folder)
        return handle is None or os.path.samestat(os.fstat(handle), found)
    except OSError:  # not there, or on a disk that does not answer
        return False


class Sink:
    """A new file, as far as those who write into one need it."""

    def __init__(self, file: BinaryIO, path: Path):
        self.file, self.path = file, path

    def write(self, data: bytes | memoryview) -> int:
        """Write all of ``data``; the number of its bytes."""
        attempt("write", self.path)
        return self.file.write(data)

    def flush(self) -> None:
        """Hand what is buffered to the system."""
        self.file.flush()


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then put it in place in one step.

    Raises:
        OSError: no room, no permission; it names ``path``, which is as it was before.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        attempt("open", path)
        write(temporary)
        attempt("sync", path)
        with temporary.open("r+b") as file:  # Windows syncs only what may be written
            os.fsync(file.fileno())
        attempt("replace", path)
        os.replace(temporary, path)
    except OSError as error:  # NumPy gives neither a number nor a name, and nobody knows the temporary file
        reason = error.strerror or f"could not be written whole, is the disk full? {error}"
        raise OSError(error.errno or errno.ENOSPC, reason, str(path)) from error
    finally:
        with suppress(OSError):  # a disk that has gone
            temporary.unlink(missing_ok=True)


def write_into(path: Path, write: Callable[[Sink], object]) -> None:
    """As ``write_atomic``, for those who write into an open file."""

    def fill(temporary: Path) -> None:
        with temporary.open("wb") as file:
            write(Sink(file, path))

    write_atomic(path, fill)


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically."""
    write_into(path, lambda sink: sink.write(data))


def read_npz(path: Path, wanted: Callable[[str], bool] = lambda name: True, most: int | None = None) -> dict[str, Any]:
    """The plain arrays of an .npz by their names; nothing in the file is run.

    Args:
        path: the file.
        wanted: whether an array of this name is read.
        most: bytes that the file's arrays may come to; None: as many as they like.

    Raises:
        UsageError: no .npz, a damaged one, an array of Python objects among the wanted, or more than ``most`` bytes.
        FileNotFoundError: there is no file.
    """
    import numpy as np  # commands that read none start without it

    try:
        if path.is_file() and not zipfile.is_zipfile(path):  # NumPy would take others for pickles, and say so
            raise UsageError(f"{path} is no .npz; numpy.savez writes one")
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if most is not None and size > most:
            raise UsageError(f"{path} would take {size / 2**30:,.1f} GiB, more memory than this machine has")
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files if wanted(name)}
    except (FileNotFoundError, UsageError):
        raise
    except MemoryError as error:
        raise UsageError(f"{path} holds arrays larger than the memory that is free") from error
    except Exception as error:  # zipfile and NumPy raise nearly every type on damaged files
        if "Object arrays" in str(error):
            raise UsageError(f"{path} holds Python objects; write arrays of numbers or texts") from error
        raise UsageError(f"{path} is no .npz of plain arrays ({one_line(error)})") from error


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically."""
    write_bytes(path, text.encode())


def append(path: Path, text: str) -> None:
    """Put ``text`` at the end of a file, which may keep a part of it where that fails."""
    attempt("append", path)
    with path.open("a", newline="", encoding="utf-8") as file:
        file.write(text)


def missing(path: Path) -> list[Path]:
    """Of a folder and those above it the ones that are not there, the innermost first; a held one counts as there."""
    return list(itertools.takewhile(lambda f: f not in _holding and not os.path.isdir(f), (path, *path.parents)))


def make_folder(path: Path) -> list[Path]:
    """Make a folder, and those above it; the ones that were not there before, the innermost first."""
    attempt("folder", path)
    made: list[Path] = []
    for folder in reversed(missing(path)):
        try:
            folder.mkdir()
            made.insert(0, folder)
        except OSError as error:
            if not (isinstance(error, FileExistsError) and folder.is_dir()):
                _remove_empty(made)
                raise
    return made


def _remove_empty(folders: list[Path]) -> None:
    """Delete folders, the innermost first, as far as they are empty."""
    for folder in itertools.takewhile(lambda path: not any(path.iterdir()), folders):
        attempt("remove", folder)
        folder.rmdir()


def move(path: Path, name: str) -> None:
    """Give a file another name in its folder."""
    attempt("move", path)
    path.replace(path.with_name(name))  # as rename, on Windows also over a file of that name


def remove(path: Path) -> None:
    """Delete a file, if it is there."""
    attempt("remove", path)
    path.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Delete the temporary files that killed processes have left in a folder that this one holds."""
    for half in folder.glob(".*.tmp"):
        remove(half)


@contextmanager
def held(folder: Path, were_missing: Sequence[Path] = ()) -> Generator[None]:
    """Make a folder and keep other processes that ask for it out; the system lets go of it even if this one is killed.

    ``owner.json`` says which process of which machine it is. Where there are no locks that file is the lock: one that a
    dead process of this machine left is taken over, another machine's is not, on Windows neither. A folder that was not
    there before is removed again where nothing was left in it.

    Args:
        folder: what is held.
        were_missing: folders that were not there before, the innermost first; made by another process, which ended
            before it had tidied up.

    Raises:
        UsageError: another process holds it.
        Vanished: it was gone when something was to be written into it, or failed.
        OSError: it cannot be made.
    """
    owner = folder / "owner.json"
    made = list(were_missing)
    handle = _made_and_locked(folder, made)
    _holding[folder] = handle
    try:
        with suppress(OSError):  # a full disk: the run will meet it where it matters
            attempt("write", owner)
            owner.write_text(json.dumps({"pid": os.getpid(), "host": platform.node()}), encoding="utf-8")
        try:
            yield
        except OSError:
            check_held(folder)  # where it is gone, that is the reason
            raise
        finally:
            with suppress(OSError):
                remove(owner)
                _remove_empty(made)  # while it is held: nobody else has begun in it
    finally:
        _holding.pop(folder, None)
        if handle is not None:
            os.close(handle)


def _made_and_locked(folder: Path, made: list[Path]) -> int | None:
    """What holds a folder; None where the system has no locks. ``made``: gets the folders that were not there."""
    for left in reversed(range(TRIES)):
        try:
            made[:] = sorted({*made, *make_folder(folder)}, key=lambda path: len(path.parts), reverse=True)
            if fcntl is None:
                _believe(folder)
                return None
            with ExitStack() as stack:
                handle = os.open(folder, os.O_RDONLY)
                stack.callback(os.close, handle)
                _lock(handle, folder)
                if os.path.samestat(os.fstat(handle), os.stat(folder)):
                    stack.pop_all()
                    return handle
        except FileNotFoundError:  # whoever made it was refused, and has just removed it
            if not left:
                raise
    raise FileNotFoundError(errno.ENOENT, "removed again and again", str(folder))


def _lock(handle: int, folder: Path) -> None:
    assert fcntl is not None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = _named(folder / "owner.json")
        raise UsageError(f"{owner} is training in {folder}; wait for it, or choose another --out") from error
    except OSError:
        _believe(folder)


def _believe(folder: Path) -> None:
    """Where there are no locks, the file says who holds a folder."""
    owner = folder / "owner.json"
    if _alive(owner):
        raise UsageError(
            f"{_named(owner)} is training in {folder}, which has no locks: wait for it, choose another --out, "
            f"or delete {owner} if it is gone"
        )


def _read(owner: Path) -> tuple[int, str] | None:
    """Number and machine of the process that holds a folder, as far as it can be known."""
    try:
        found = json.loads(owner.read_text(encoding="utf-8"))
        return int(found["pid"]), str(found["host"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _named(owner: Path) -> str:
    found = _read(owner)
    return "another process" if found is None else f"process {found[0]} on {found[1]}"


def _alive(owner: Path) -> bool:
    """Whether the owner may still be there: of another machine nobody here can know, and Windows is not asked."""
    found = _read(owner)
    if found is None or found[0] == os.getpid():
        return False
    if found[1] != platform.node() or fcntl is None:  # on Windows os.kill would end it
        return True
    try:
        os.kill(found[0], 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True
