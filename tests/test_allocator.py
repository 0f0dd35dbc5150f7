"""Memory that is freed is kept: no page is cleared anew in every step, in a process or in one that it starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from localssl.system.allocator import KEPT

from .test_bad_input import status

STEPS = """
import ctypes, resource, sys
{before}
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
malloc, free = ctypes.CDLL(None).malloc, ctypes.CDLL(None).free
malloc.restype, free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
malloc.argtypes = [ctypes.c_size_t]
for step in range(10):
    if step == 2:
        began = faults()
    places = [malloc(3 * 2**23) for _ in range(4)]  # each below what an older glibc keeps at most, 32 MiB
    for place in places:
        ctypes.memset(place, 1, 3 * 2**23)
    for place in places:
        free(place)
print(faults() - began)
"""
KEEP = "from localssl.system.allocator import keep_freed; keep_freed()"
BESIDE = f"{KEEP}; import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', sys.argv[1]]).returncode)"
# Once pages of the first two steps are there, kept memory has no more to fetch; a few of other things come.
FEW = 100

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")


def faults(code: str, *arguments: str, **variables: str) -> int:
    """What a process of its own printed."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_TUNABLES"))} | variables
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True, env=environment
    )
    return int(done.stdout)


@pytest.fixture(scope="module")
def anew() -> int:
    """Pages that eight steps fetch by themselves."""
    found = faults(STEPS.format(before=""))
    if found <= 10 * FEW:
        pytest.skip(f"the C library keeps memory here by itself: {found} page faults in eight steps")
    return found


def test_kept_in_this_process_and_in_those_that_it_starts(anew: int) -> None:
    assert faults(STEPS.format(before=KEEP)) < FEW
    assert faults(BESIDE, STEPS.format(before="")) < FEW


@pytest.mark.parametrize("name", [name for _, name, _ in KEPT])
def test_what_the_user_has_set_stays(name: str, anew: int) -> None:
    assert faults(STEPS.format(before=KEEP), **{name: "65536"}) > anew // 2


HELD = """
import ctypes
from localssl.system.allocator import give_back, keep_freed
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20
keep_freed()
malloc, free = ctypes.CDLL(None).malloc, ctypes.CDLL(None).free
malloc.restype, free.argtypes, malloc.argtypes = ctypes.c_void_p, [ctypes.c_void_p], [ctypes.c_size_t]
places = [malloc(3 * 2**23) for _ in range(10)]  # 240 MiB, and at the heap's end something that stays
for place in places:
    ctypes.memset(place, 1, 3 * 2**23)
stays = malloc(2**20)
for place in places:
    free(place)
before = resident()
give_back()
print(before - resident())
"""


def test_what_was_kept_is_given_back(anew: int) -> None:
    assert faults(HELD) > 200


def test_commands_keep_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GLIBC_TUNABLES", *(name for _, name, _ in KEPT)):
        monkeypatch.setenv(name, "")  # so that it is put back afterwards
        monkeypatch.delenv(name)
    assert (
        status(f"train --rule clapp++ --data digits --epochs 1 --limit-images 64 --dry-run --out {tmp_path / 'x'}") == 0
    )
    assert all(int(os.environ[name]) in values for _, name, values in KEPT)
