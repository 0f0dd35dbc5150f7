"""The C library's allocator: memory that a step has freed is kept for the next one."""

from __future__ import annotations

import ctypes
import os
import sys

# Numbers of mallopt(3), the names by which a process reads the same when it begins, and values, the best first: older
# versions of glibc take no more than the second one.
KEPT = (
    (-1, "MALLOC_TRIM_THRESHOLD_", (2**31 - 1,)),  # free memory at the heap's end from which on some is given back
    (-3, "MALLOC_MMAP_THRESHOLD_", (2**30, 2**25)),  # size of pieces that do not come from the heap
)


def keep_freed() -> None:
    """Have glibc keep what is freed, in this process and those that it starts.

    By itself it gives large pieces back to the system at once and takes them anew in every step, each page of them
    cleared first (``benchmarks/allocator.py`` says what of a step that is). Between peaks less is given back. Nothing
    is changed where the user has set one of glibc's own variables, or where there is no glibc.
    """
    chosen = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or any(name in os.environ for _, name, _ in KEPT)
    if chosen or sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return
    for number, name, values in KEPT:
        if (taken := next((value for value in values if mallopt(number, value)), None)) is not None:
            os.environ[name] = str(taken)


def give_back() -> None:
    """Have glibc give all that is free back to the system, once: after something that took more than a step does.

    Kept memory would stay with the process: 10 GiB after the probe of a study's cell, of which training takes one.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(ctypes.c_size_t(0))
