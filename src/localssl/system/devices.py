"""Where the numbers are computed: the choices of --device, memory that was taken, and what a full one looks like."""

from __future__ import annotations

import os
import platform
import re
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch

from localssl.errors import UsageError

CHOICES = ("auto", "cpu", "cuda", "mps")


def choose(name: str) -> torch.device:
    """The device that --device names; auto: CUDA where there is one, else the CPU; MPS only by its name.

    Raises:
        UsageError: not a choice, or not to be had here.
    """
    if name not in CHOICES:
        raise UsageError(f"--device {name!r}: use one of {', '.join(CHOICES)}")
    has = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device("cuda" if has["cuda"] else "cpu")
    if not has[name]:
        why = "no CUDA device is visible to PyTorch" if name == "cuda" else "not available to PyTorch here"
        raise UsageError(f"--device {name}: {why}; use --device cpu")
    return torch.device(name)


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory is full, on whatever device."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)


def wait(device: torch.device) -> None:
    """Wait until what a device was given is done, so that a clock may be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def cores() -> int:
    """Cores that this process may use; a container or ``taskset`` may leave it fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def spare(device: torch.device, processes: int = 1) -> bool:
    """Whether cores are left beside the steps of so many processes, for what may go on meanwhile.

    Where a step has a thread on every core, another thread holds all of them up: each operation waits for its last.
    """
    return device.type != "cpu" or torch.get_num_threads() * processes < cores()


def memory() -> int | None:
    """Bytes of this machine's memory; None where that is not known."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def peak_memory() -> float:
    """Largest resident set of this process so far, in MiB.

    Linux's VmHWM, which a new program begins at 0; ``getrusage`` there hands on what the parent held. On Windows 0: not
    known.
    """
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    except OSError:
        found = None
    if found is not None:
        return int(found[1]) / 1024
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def peak_gpu_memory() -> float:
    """Largest memory of tensors on the GPU in this process so far, in MiB; 0 without one."""
    return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0


@cache
def processor() -> str:
    """The processor's name, as far as the system says it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
