"""Steps as localssl's commands take them beside those of the published code's layout, each as its users have it.

    python benchmarks/published.py --out benchmarks/results/published.json

``step.py`` takes both in one process, in which freed memory is kept (``keep_freed``), as the commands have it.
Published code runs with the C library's allocator as it is. So here every case is a fresh process, all of them in turn,
round after round, each with and without kept memory; views are included. A round gives one ratio of medians; a row has
the median of the rounds' ratios to the engine's step of that rule as its users have it, with kept memory (``of_ours``),
to that under the same allocator (``of_ours_alike``), and to backpropagation's under the same allocator (``of_bp``),
each with the distribution-free 95 % interval, and page faults of a step.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from shared import BASE, SHAPE, in_process, interval, load, timed, write
from step import Case, made_of, step_of

from localssl.system.allocator import keep_freed

RULES = ("clapp++", "clapp++dfb")
KINDS = [(BASE, "ours"), *((rule, "ours") for rule in RULES), *((rule, "published") for rule in RULES)]
CASES = [{"rule": rule, "layout": layout, "kept": kept} for rule, layout in KINDS for kept in (True, False)]


def measure(case: Mapping[str, Any]) -> dict[str, float]:
    """Median milliseconds and page faults of a step, in this process; the first step is not counted."""
    if case["kept"]:
        keep_freed()
    torch.set_num_threads(case["threads"])
    engine = "autograd" if case["layout"] == "published" else "auto"
    of = Case(case["rule"], engine, layout=case["layout"], augmented=True)
    step = step_of(of, made_of(of, case["width"]))
    images = torch.randint(256, (32, *SHAPE), dtype=torch.uint8)
    milliseconds, faults = timed(lambda: step(images), case["steps"])
    return {"milliseconds": statistics.median(milliseconds), "faults": statistics.median(faults)}


def summary(rounds: Sequence[Sequence[Mapping[str, float]]], width: float) -> list[dict[str, Any]]:
    """A row a case, of its numbers in every round."""
    times = [[found["milliseconds"] for found in one] for one in rounds]
    place = {(c["rule"], c["layout"], c["kept"]): i for i, c in enumerate(CASES)}
    rows: list[dict[str, Any]] = []
    for i, case in enumerate(CASES):
        row: dict[str, Any] = {**case, "width": width, "batch": 32, "n": len(rounds)}
        row["milliseconds"] = round(statistics.median(one[i] for one in times), 1)
        row["faults"] = round(statistics.median(one[i]["faults"] for one in rounds))
        against = {"of_bp": place[BASE, "ours", case["kept"]]}
        if case["layout"] == "published":
            against |= {"of_ours": place[case["rule"], "ours", True]}
            against |= {"of_ours_alike": place[case["rule"], "ours", case["kept"]]}
        for name, other in against.items():
            ratios = [one[i] / one[other] for one in times]
            values = (statistics.median(ratios), *interval(ratios))
            row |= {f"{name}{end}": round(v, 4) for end, v in zip(("", "_low", "_high"), values, strict=True)}
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=float, nargs="+", default=[1.0])
    parser.add_argument("--steps", type=int, nargs="+", default=[2], help="of a process, for every width")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    if a.one:
        print(json.dumps(measure(a.one)))
        return
    if a.out is None:
        parser.error("--out is required")
    if set_by_user := [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_TUNABLES"))]:
        parser.error(f"{', '.join(set_by_user)} would tell the C library what to keep: unset it first")
    rows: list[dict[str, Any]] = []
    busy = load()
    for width, steps in zip(a.widths, a.steps, strict=True):
        rounds: list[list[dict[str, float]]] = []
        for number in range(a.rounds):
            more = {"width": width, "steps": steps, "threads": a.threads}
            order = list(range(len(CASES)))[:: 1 if number % 2 else -1]
            found = {i: in_process(__file__, CASES[i] | more) for i in order}
            rounds.append([found[i] for i in range(len(CASES))])
            print(width, [round(f["milliseconds"]) for f in rounds[-1]], flush=True)
        rows += summary(rounds, width)
    write(a.out, a.threads, load=busy, rows=rows)


if __name__ == "__main__":
    main()
