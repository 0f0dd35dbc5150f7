"""The C library's allocator: memory that a step has freed is kept for the next one."""

from __future__ import annotations

import ctypes
import os
import sys

# Names of mallopt(3), as glibc's mallopt takes them and as a process reads them from its environment when it begins.
KEPT = ((-3, "MALLOC_MMAP_THRESHOLD_", 2**30), (-1, "MALLOC_TRIM_THRESHOLD_", 2**31 - 1))


def keep_freed() -> None:
    """Have glibc keep what is freed, in this process and those that it starts.

    By itself it gives large pieces back to the system at once and takes them anew in every step, each page of them
    cleared first: of a step of vgg6 that is a tenth and more. The peak stays as it is; between peaks less is given
    back. Nothing is changed where the user has set one of glibc's own variables, or where there is no glibc.
    """
    chosen = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or any(name in os.environ for _, name, _ in KEPT)
    if chosen or sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None and all(mallopt(number, value) for number, _, value in KEPT):
        os.environ.update({name: str(value) for _, name, value in KEPT})
