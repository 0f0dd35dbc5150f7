"""How time and memory of a training step grow with width, depth, batch, image size and number of patches.

    python benchmarks/growth.py --out benchmarks/results/growth.json --figures docs/results/growth

Around one point (vgg6, width 0.25, 6 blocks, batch 32, 32 px, the data set's patches) one axis at a time moves; every
rule at every place is a fresh process. "seconds": the median of steps (dense B, default engine, optimiser included).
"activity" and "total": as in memory.py. Width and depth as there; larger images have patches as much larger, so that
their number and the size of B stay (as in the paper's Table A2); other patches have maps cut finer or coarser at 32 px.

The exponent of an axis is the slope of log y over log x through its last three places; beside it stands that of the
arithmetic (localssl.report.arithmetic) through the same places. Time: "products", multiply-adds, and "parameters",
which the optimiser reads and writes; the measured exponent lies between where nothing else counts. One plot an axis.

``low_rank``: along batch and image size (along depth: memory.py) the same two figures of memory, and no times, with the
low-rank B whose inner factor is fixed. ``--low-rank-only`` measures them alone and adds them to the file that is there:
memory does not depend on what else the machine does, times do.

``rates``: seconds = a x multiply-adds of the blocks + b x those of B + c x parameters + d, a to d not negative, by
least squares of relative errors over all rows: what this machine achieves.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls
from shared import BASE, LOCAL, MIB, activity, commit, deep, in_process, make, random_views, settled, status, write

from localssl import rules
from localssl.report import growth_figure
from localssl.report.arithmetic import Cost, step
from localssl.system.allocator import keep_freed
from localssl.system.files import write_text

RULES = (BASE, *LOCAL)
SIDES = (32, 16, 16, 8, 4, 2)  # of vgg6's maps at 32 px


@dataclass(frozen=True)
class Point:
    """Where a step is measured. ``patch`` is a factor on the patches' sides; 0: one patch, the mean over all places."""

    width: float = 0.25
    depth: int = 6
    batch: int = 32
    size: int = 32
    patch: float = 1.0

    def patches(self, usual: Sequence[int]) -> list[int | None]:
        """Of every block's readout: ``usual`` at 32 px."""
        if self.patch == 0:
            return [None] * len(usual)
        return [max(1, round(p * self.patch * self.size / 32)) for p in usual]


AXES: dict[str, tuple[str, Sequence[float]]] = {  # field of Point, and its places
    "width": ("width", (0.125, 0.25, 0.5, 1)),
    "depth": ("depth", (6, 12, 24, 48)),
    "batch": ("batch", (8, 16, 32, 64, 128)),
    "image size": ("size", (32, 64, 96, 128)),
    "patches": ("patch", (0, 4, 2, 1, 0.5)),
}
LOW_RANK, LOW_RANK_AXES = "low-rank-frozen", ("batch", "image size")  # along depth: memory.py
QUANTITIES = {"seconds": ("products", "parameters"), "activity": ("activity",), "total": ("total",)}  # and arithmetic


def one(case: Mapping[str, Any], least: int, seconds: float) -> dict[str, float]:
    """Time and memory at one place, in a process of its own."""
    before = settled()
    torch.manual_seed(0)
    point = Point(**case["point"])
    net, usual = deep(point.width, point.depth)
    shape = (3, point.size, point.size)
    made = make(case["rule"], net, shape, point.patches(usual), projection=case.get("projection", "dense"))
    views = random_views(point.batch, shape)
    found: list[float] = []
    for repeat in range(10_000):
        began = time.perf_counter()
        made.step(*views)
        if repeat:  # the first one makes the optimiser's state
            found.append(time.perf_counter() - began)
        if len(found) >= least and sum(found) > seconds:
            break
    peak = status("VmHWM")
    return {
        "seconds": statistics.median(found),
        "steps": len(found),
        "activity": round(activity(lambda: made.step(*views)), 2),
        "total": round((peak - before) / 1024, 1),
    }


def arithmetic(rule: str, point: Point) -> Cost:
    """What a step needs by arithmetic."""
    with torch.device("meta"):
        net, usual = deep(point.width, point.depth)
    return step(net, rules.get(rule), (3, point.size, point.size), point.patches(usual), point.batch)


def place(axis: str, point: Point) -> float:
    """x of a point on an axis: the number itself; of patches, how many there are in all blocks."""
    if axis != "patches":
        return float(getattr(point, AXES[axis][0]))
    _, usual = deep(0.01, 6)
    sides = zip(SIDES, point.patches(usual), strict=True)
    return float(sum(1 if p is None else (side // min(p, side)) ** 2 for side, p in sides))


def row(axis: str, rule: str, point: Point, figures: Mapping[str, float]) -> dict[str, Any]:
    """One place of an axis: what was measured, and what arithmetic says (numbers of four bytes as MiB)."""
    cost = arithmetic(rule, point)
    predicted = {
        "products": cost.products,
        "convolutions": cost.convolutions,
        "parameters": cost.parameters,
        "b": cost.b,
        "activity": round(4 * cost.activity / MIB, 2),
        "total": round(4 * cost.total / MIB, 1),
    }
    measured = {k: round(v, 5) for k, v in figures.items()}
    return {"axis": axis, "rule": rule, "x": place(axis, point), **asdict(point), **measured, "arithmetic": predicted}


def slope(x: Sequence[float], y: Sequence[float], last: int = 3) -> float:
    """d log y / d log x through the last places, by least squares, to two digits."""
    return round(float(np.polyfit(np.log(x[-last:]), np.log(y[-last:]), 1)[0]), 2) + 0.0  # no -0


def exponents(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of every axis, rule and quantity: measured, and by arithmetic."""
    found: list[dict[str, Any]] = []
    for axis, rule in dict.fromkeys((r["axis"], r["rule"]) for r in rows):
        mine = sorted((r for r in rows if (r["axis"], r["rule"]) == (axis, rule)), key=lambda r: r["x"])
        x = [r["x"] for r in mine]
        for quantity, names in QUANTITIES.items():
            predicted = {name: slope(x, [r["arithmetic"][name] for r in mine]) for name in names}
            measured = slope(x, [r[quantity] for r in mine])
            entry = {"axis": axis, "rule": rule, "quantity": quantity, "exponent": measured, "arithmetic": predicted}
            found.append(entry)
    return found


def rates(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What the machine achieves, from all rows."""
    names = ("product", "product_of_b", "parameter", "step")
    needs = [r["arithmetic"] for r in rows]
    a = [(n["convolutions"], n["products"] - n["convolutions"], n["parameters"], 1) for n in needs]
    seconds = np.array([r["seconds"] for r in rows])
    scaled = np.array(a, dtype=float) / seconds[:, None]
    largest = scaled.max(0)
    fitted = nnls(scaled / largest, np.ones(len(rows)))[0] / largest
    errors = np.abs(np.array(a) @ fitted / seconds - 1)
    found = {f"seconds_a_{name}": float(v) for name, v in zip(names, fitted, strict=True)}
    return {**found, "median_error": round(float(np.median(errors)), 3), "largest_error": round(float(errors.max()), 3)}


def points(axis: str, tiny: bool) -> list[Point]:
    """The places of an axis."""
    field, values = AXES[axis]
    base = Point(width=0.05, batch=2) if tiny else Point()
    return [replace(base, **{field: 0.4 * value if tiny and field == "width" else value}) for value in values]


def low_rank(axes: Sequence[str], tiny: bool, threads: int) -> dict[str, Any]:
    """Memory with the low-rank B along these axes, and the commit that it was measured at."""
    found: dict[str, Any] = {"projection": LOW_RANK, "commit": commit(), "rows": []}
    known: dict[tuple[str, Point], dict[str, float]] = {}
    for axis in (axis for axis in axes if axis in LOW_RANK_AXES):
        for point in points(axis, tiny):
            for rule in LOCAL:
                if (rule, point) not in known:
                    case = {"rule": rule, "point": asdict(point), "steps": 2, "seconds": 0.0, "projection": LOW_RANK}
                    known[rule, point] = in_process(__file__, {**case, "threads": threads})
                memory = {name: known[rule, point][name] for name in ("activity", "total")}
                found["rows"].append({"axis": axis, "rule": rule, "x": place(axis, point), **asdict(point), **memory})
                print(f"{axis} {place(axis, point):g}  {rule}, B {LOW_RANK}: {memory}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", nargs="+", choices=list(AXES), default=list(AXES))
    parser.add_argument("--steps", type=int, default=3, help="timed steps, at least")
    parser.add_argument("--seconds", type=float, default=1.5, help="of timed steps, at least")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--figures", type=Path, help="folder of the plots (default: that of --out)")
    parser.add_argument("--tiny", action="store_true", help="a network too small to say anything: whether it runs")
    parser.add_argument("--low-rank-only", action="store_true", help="memory with the low-rank B, added to --out")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    keep_freed()  # as the commands do
    if a.one:
        torch.set_num_threads(a.one["threads"])
        print(json.dumps(one(a.one, a.one["steps"], a.one["seconds"])))
        return
    if a.out is None:
        parser.error("--out is needed")
    if a.low_rank_only:
        found = json.loads(a.out.read_text(encoding="utf-8")) if a.out.is_file() else {}
        found["low_rank"] = low_rank(a.axes, a.tiny, a.threads)
        write_text(a.out, json.dumps(found, indent=1) + "\n")
        return
    figures = a.figures or a.out.parent
    figures.mkdir(parents=True, exist_ok=True)  # now, not after half an hour
    rows: list[dict[str, Any]] = []
    known: dict[tuple[str, Point], dict[str, float]] = {}  # the middle of all axes is measured once
    for axis in a.axes:
        for point in points(axis, a.tiny):
            for rule in RULES:
                if (rule, point) not in known:
                    case = {"rule": rule, "point": asdict(point), "steps": a.steps, "seconds": a.seconds}
                    known[rule, point] = in_process(__file__, {**case, "threads": a.threads})
                rows.append(row(axis, rule, point, known[rule, point]))
                shown = "  ".join(f"{k} {rows[-1][k]:g}" for k in ("seconds", "activity", "total"))
                print(f"{axis} {rows[-1]['x']:g}  {rule}: {shown}", flush=True)
    fitted = exponents(rows)
    for e in fitted:
        predicted = ", ".join(f"{name} {value:.2f}" for name, value in e["arithmetic"].items())
        print(f"{e['axis']:10s} {e['rule']:12s} {e['quantity']:9s} {e['exponent']:5.2f}   arithmetic: {predicted}")
    cheap = low_rank(a.axes, a.tiny, a.threads)
    write(a.out, a.threads, base=asdict(Point()), rates=rates(rows), exponents=fitted, rows=rows, low_rank=cheap)
    for axis in a.axes:
        file = figures / f"{axis.replace(' ', '-')}.png"
        print(f"written: {growth_figure.draw(axis, rows, fitted, file)}")


if __name__ == "__main__":
    main()
