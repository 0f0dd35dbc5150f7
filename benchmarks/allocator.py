"""What it costs that the C library gives freed memory back: steps with and without ``keep_freed``.

    python benchmarks/allocator.py --out benchmarks/results/allocator.json

Every case is a fresh process: vgg6, batch 32, a dense B, default engine, optimiser included. Median milliseconds of a
step with the distribution-free 95 % interval, page faults of a step (median), and the peak of the process (VmHWM).
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from shared import BASE, LOCAL, in_process, interval, load, make, random_views, status, timed, write

from localssl import encoders
from localssl.system.allocator import keep_freed


def measure(case: Mapping[str, Any]) -> dict[str, float]:
    """One case, in this process."""
    if case["kept"]:
        keep_freed()
    torch.set_num_threads(case["threads"])
    torch.manual_seed(0)
    made, views = make(case["rule"], encoders.vgg6(case["width"])), random_views(32)
    milliseconds, faults = timed(lambda: made.step(*views), case["repeats"])
    low, high = interval(milliseconds)
    times = {"milliseconds": round(statistics.median(milliseconds), 1), "low": round(low, 1), "high": round(high, 1)}
    return {**times, "faults": round(statistics.median(faults)), "peak_mib": status("VmHWM") // 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=float, nargs="+", default=[0.25, 1.0])
    parser.add_argument("--repeats", type=int, nargs="+", default=[21, 9], help="for every width")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    if a.one:
        print(json.dumps(measure(a.one)))
        return
    if a.out is None:
        parser.error("--out is required")
    rows: list[dict[str, Any]] = []
    for width, repeats in zip(a.widths, a.repeats, strict=True):
        for rule in (BASE, *LOCAL):
            for kept in (False, True):
                case = {"rule": rule, "width": width, "kept": kept}
                busy = load()
                found = in_process(__file__, case | {"repeats": repeats, "threads": a.threads})
                rows.append({**case, "batch": 32, **found, "n": repeats, "load": busy})
                print(rows[-1], flush=True)
    write(a.out, a.threads, rows=rows)


if __name__ == "__main__":
    main()
