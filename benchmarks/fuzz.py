"""Damaged files for every reader: each must be read or refused by an error of localssl, in bounded time and memory.

    python benchmarks/fuzz.py --inputs 1000000 --minutes 60

Goes on where the results (benchmarks/results/fuzz.json) stop: input n of a target is the same in every run. Inputs are
read in processes of their own, so that a crash or a hang is a line in the results and not the end. Status 1 where
something was found.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from fuzz_targets import OURS, Target, mutated, scratch, targets
from shared import status, write

RESULTS = Path(__file__).with_name("results") / "fuzz.json"
CHUNK = 2000  # inputs of one process
HANG = 60.0  # seconds for one input
MEMORY = 1024  # MiB that a process may come to hold above what it began with
KEPT = 20  # findings of a target that are written down


def one(target: Target, name: str, number: int, folder: Path) -> tuple[str, str]:
    """What became of an input: "read", "refused" or "failed", and why."""
    data = mutated(target.seeds, random.Random(f"{name} {number}"))
    try:
        target.read(data, folder)
    except OURS:
        return "refused", ""
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return "failed", f"{type(error).__name__}: {str(error)[:200]} ({Path(last.filename).name}:{last.lineno})"
    return "read", ""


def chunk(target: Target, name: str, first: int, count: int, folder: Path, at: mmap.mmap, out: int) -> None:
    """In a process of its own: some inputs, and what was seen, to a pipe."""
    warnings.simplefilter("ignore")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    seen, failures, slowest, before = Counter[str](), list[dict[str, Any]](), 0.0, status("VmRSS")
    for number in range(first, first + count):
        at[:16] = struct.pack("<qd", number, time.monotonic())
        began = time.process_time()
        kind, why = one(target, name, number, folder)
        slowest = max(slowest, time.process_time() - began)
        seen[kind] += 1
        if why:
            failures.append({"input": number, "error": why})
    grown = (status("VmHWM") - before) / 1024
    os.write(out, json.dumps([seen, failures[:KEPT], slowest, grown]).encode())


def watched(target: Target, name: str, first: int, count: int, folder: Path) -> tuple[int, list[Any]]:
    """A chunk in a process of its own, up to its end or to the input that ended it; how many were read."""
    at = mmap.mmap(-1, 16)
    at[:16] = struct.pack("<qd", first, time.monotonic())
    read, out = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            chunk(target, name, first, count, folder, at, out)
        finally:
            os._exit(0)
    os.close(out)
    hung = False
    while not os.waitpid(child, os.WNOHANG)[0]:
        number, since = struct.unpack("<qd", at[:16])
        if time.monotonic() - since > HANG:
            hung = True
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            break
        time.sleep(0.01)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read()
    if said:
        return count, json.loads(said)
    number = struct.unpack("<qd", at[:16])[0]
    why = f"no answer in {HANG:.0f} seconds" if hung else "the process crashed"
    return number - first + 1, [{"failed": 1}, [{"input": number, "error": why}], 0.0, 0.0]


def add(entry: dict[str, Any], count: int, found: list[Any]) -> None:
    """Add what a chunk has seen to a target's results."""
    seen, failures, slowest, grown = found
    entry["inputs"] = entry.get("inputs", 0) + count
    for kind in ("read", "refused", "failed"):
        entry[kind] = entry.get(kind, 0) + seen.get(kind, 0)
    if grown > MEMORY:
        failures = [*failures, {"input": entry["inputs"] - 1, "error": f"{grown:.0f} MiB more within {count} inputs"}]
    entry["failures"] = [*entry.get("failures", []), *failures][:KEPT]
    entry["slowest_seconds"] = round(max(entry.get("slowest_seconds", 0.0), slowest), 3)
    entry["memory_mib"] = round(max(entry.get("memory_mib", 0.0), grown), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    results: dict[str, dict[str, Any]] = {}
    if arguments.out.is_file():
        results = json.loads(arguments.out.read_text(encoding="utf-8"))["targets"]
    end = time.monotonic() + 60 * arguments.minutes
    with tempfile.TemporaryDirectory(dir=scratch()) as folder:
        all_of_them = targets(Path(folder) / "good")
        while time.monotonic() < end:
            left = {n: t.share * arguments.inputs - results.get(n, {}).get("inputs", 0) for n, t in all_of_them.items()}
            name = max(left, key=lambda n: left[n] / all_of_them[n].share)  # the one that is furthest behind
            if left[name] <= 0:
                break
            entry = results.setdefault(name, {})
            count = min(CHUNK, -int(-left[name] // 1))
            add(entry, *watched(all_of_them[name], name, entry.get("inputs", 0), count, Path(folder) / "run"))
            total = sum(e["inputs"] for e in results.values())
            failed = sum(e["failed"] for e in results.values())
            bounds = {"memory_bound_mib": MEMORY, "hang_seconds": HANG}
            write(arguments.out, 1, inputs=total, failed=failed, **bounds, targets=results)
    print(json.dumps(results, indent=1))
    sys.exit(any(entry["failures"] for entry in results.values()))


if __name__ == "__main__":
    main()
