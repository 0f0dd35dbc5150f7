"""Writing files so that a crash at any moment leaves the old or the new one whole, never a part."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from localssl.errors import UsageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then put it in place in one step.

    Raises:
        OSError: no room, no permission; it names ``path``, which is as it was before.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:  # NumPy gives neither a number nor a name, and nobody knows the temporary file
        reason = error.strerror or f"could not be written whole, is the disk full? {error}"
        raise OSError(error.errno or errno.ENOSPC, reason, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically."""
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


@contextmanager
def held(folder: Path) -> Generator[None]:
    """Keep other processes that ask for it out of a folder; the system lets go of it even if this process is killed.

    Raises:
        UsageError: another process holds it.
    """
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise UsageError(f"another process is training in {folder}; wait for it, or choose another --out") from error
    except OSError:  # a file system without locks
        pass
    try:
        yield
    finally:
        os.close(handle)
