"""Where the time of an engine's step goes, and what other sizes of its chunks and tiles take.

    python benchmarks/parts.py --out benchmarks/results/parts.json

"parts": milliseconds of every ATen operation of steps of a rule, by torch.profiler, grouped by what they are for, and
what of the step lies outside of them (Python, the profiler itself). "variants": the step's time against ``bp-clapp++``
(median of ratios with its interval, in turn, one process) with other bytes of drive a chunk, and with ΔB as a whole
("dense") or in tiles ("tiled").
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from shared import BASE, LOCAL, MIB, Made, interval, make, random_views, write
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from localssl import encoders
from localssl.engine import passes, weights
from localssl.system.allocator import keep_freed

CHANGE = "gradient of weights by products"
PURPOSES = {  # of operations that do work themselves
    "convolutions": ("mkldnn_convolution", "convolution_backward", "_slow_conv2d", "thnn_conv2d"),
    "g and ΔB": ("mm", "addmm", "_linear_pointwise"),
    "optimiser": ("_fused_adamw_",),
    "pool, gate, spreading": (
        "relu_",
        "relu",
        "max_pool2d_with_indices",
        "max_pool2d_with_indices_backward",
        "threshold_backward",
        "avg_pool2d",
        "avg_pool2d_backward",
    ),
}


def built(rule: str, width: float) -> Made:
    torch.manual_seed(0)
    return make(rule, encoders.vgg6(width))


def step(made: Made, views: tuple[Tensor, Tensor], tiled: bool = True) -> float:
    """Seconds of one step."""
    began = time.perf_counter()
    made.step(*views, factored=tiled)
    return time.perf_counter() - began


def parts(made: Made, batch: int, repeats: int) -> dict[str, float]:
    """Milliseconds a step, by purpose."""
    views = random_views(batch)
    step(made, views)
    usual = weights.by_products

    def marked(layer: nn.Conv2d, x: Tensor, at_a: Tensor) -> Tensor:
        with record_function(CHANGE):
            return usual(layer, x, at_a)

    weights.by_products = marked
    try:
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            total = sum(step(made, views) for _ in range(repeats))
    finally:
        weights.by_products = usual
    found = dict.fromkeys([*PURPOSES, "other"], 0.0)
    for event in profiled.events() or ():
        library, _, name = event.name.partition("::")
        purpose = next((p for p, names in PURPOSES.items() if name in names), "other")
        if _within(event, CHANGE):
            purpose = "convolutions"  # their weights' gradient, products and copies
        if library in ("aten", "mkldnn"):
            found[purpose] += event.self_cpu_time_total / 1e3 / repeats
    whole = 1e3 * total / repeats
    found |= {"outside": whole - sum(found.values()), "step": whole}
    return {k: round(v, 1) for k, v in found.items()}


def _within(event: Any, name: str) -> bool:
    """Whether an event lies in one of that name."""
    while event is not None:
        if event.name == name:
            return True
        event = event.cpu_parent
    return False


def variants(rule: str, width: float, batch: int, repeats: int) -> list[dict[str, Any]]:
    """Ratios to backpropagation's step."""
    base, mine, usual = built(BASE, width), built(rule, width), passes.CHUNK
    tried = [(chunk, tiled) for chunk in (2, 4, 8, 1024) for tiled in (True, False)]
    ratios: list[list[float]] = [[] for _ in tried]
    for repeat in range(repeats + 1):
        views = random_views(batch)
        against = step(base, views)
        for (chunk, tiled), found in zip(tried, ratios, strict=True):
            passes.CHUNK = chunk * MIB
            seconds = step(mine, views, tiled)
            if repeat:
                found.append(seconds / against)
    passes.CHUNK = usual
    rows: list[dict[str, Any]] = []
    for (chunk, tiled), r in zip(tried, ratios, strict=True):
        row = {"rule": rule, "width": width, "chunk_mib": chunk, "b": "tiled" if tiled else "dense", "n": len(r)}
        values = dict(zip(("ratio", "low", "high"), (statistics.median(r), *interval(r)), strict=True))
        rows.append(row | {k: round(v, 3) for k, v in values.items()})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=float, nargs="+", default=[0.25, 1.0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, nargs="+", default=[15, 6], help="for every width")
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args()
    keep_freed()  # as the commands do
    torch.set_num_threads(2)
    found: list[dict[str, Any]] = []
    tried: list[dict[str, Any]] = []
    for width, repeats in zip(a.widths, a.repeats, strict=True):
        for rule in (BASE, *LOCAL):
            found.append({"rule": rule, "width": width, **parts(built(rule, width), a.batch, repeats)})
            print(found[-1], flush=True)
        for rule in (LOCAL[0], LOCAL[2]):
            tried += variants(rule, width, a.batch, repeats)
            print(*tried[-8:], sep="\n", flush=True)
    write(a.out, 2, batch=a.batch, parts=found, variants=tried)


if __name__ == "__main__":
    main()
