"""Writing files so that a crash at any moment leaves the old or the new one whole, never a part."""

from __future__ import annotations

import errno
import json
import os
import platform
import zipfile
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from localssl.errors import UsageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


def attempt(what: str, path: Path) -> None:
    """Before every single thing that this module does to a disk; tests let it raise what the system could.

    Args:
        what: "folder", "open", "write", "sync", "replace", "append", "move" or "remove".
        path: the file or folder, never a temporary one.
    """


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
        raise UsageError(f"{path} is no .npz of plain arrays ({' '.join(str(error).split())})") from error


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically."""
    write_bytes(path, text.encode())


def append(path: Path, text: str) -> None:
    """Put ``text`` at the end of a file, which may keep a part of it where that fails."""
    attempt("append", path)
    with path.open("a", newline="", encoding="utf-8") as file:
        file.write(text)


def make_folder(path: Path) -> None:
    """Make a folder, and those above it."""
    attempt("folder", path)
    path.mkdir(parents=True, exist_ok=True)


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
def held(folder: Path) -> Generator[None]:
    """Keep other processes that ask for it out of a folder; the system lets go of it even if this process is killed.

    ``owner.json`` says which process of which machine it is. Where the file system has no locks that file is the lock:
    one that a dead process of this machine left is taken over, another machine's is not.

    Raises:
        UsageError: another process holds it.
    """
    if fcntl is None:
        yield
        return
    owner = folder / "owner.json"
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(
                f"{_named(owner)} is training in {folder}; wait for it, or choose another --out"
            ) from error
        except OSError as error:
            if _alive(owner):
                raise UsageError(
                    f"{_named(owner)} is training in {folder}, which has no locks: wait for it, choose another --out, "
                    f"or delete {owner} if it is gone"
                ) from error
        with suppress(OSError):  # a full disk: the run will meet it where it matters
            attempt("write", owner)
            owner.write_text(json.dumps({"pid": os.getpid(), "host": platform.node()}), encoding="utf-8")
        try:
            yield
        finally:
            with suppress(OSError):
                remove(owner)
    finally:
        os.close(handle)


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
    """Whether the owner may still be there: of another machine nobody here can know."""
    found = _read(owner)
    if found is None or found[0] == os.getpid():
        return False
    if found[1] != platform.node():
        return True
    try:
        os.kill(found[0], 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True
