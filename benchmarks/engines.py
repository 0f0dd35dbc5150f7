"""Whether the engine without autograd is the faster one: steps of both in turn, by network, batch and rule.

    python benchmarks/engines.py --out benchmarks/results/engines.json

``--engine auto`` chooses by the size of a step (``engine.autograd_is_faster``); "auto" is what it comes to. Here
a step of each, on the same random views, now the one first, now the other; a row has the median of ratios hebbian /
autograd and its distribution-free 95 % interval. Networks: vgg6 on 3 x 32 x 32, vgg5 on 16 x 16, cnn1d on series of
128, of some width, and mlp, six layers of some units, on 784. Fused AdamW; under autograd it gets dense gradients of B.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from shared import LOCAL, PATCHES, SHAPE, Made, interval, load, make, write
from torch import Tensor

from localssl import encoders
from localssl.encoders import Encoder
from localssl.engine import autograd_is_faster
from localssl.system.allocator import keep_freed

ENGINES = ("autograd", "hebbian")


Case = tuple[str, float, int]  # network, width (of mlp: units of a layer), images of a batch
CASES: tuple[Case, ...] = (
    ("vgg6", 1, 4),
    *[("vgg6", 0.25, batch) for batch in (8, 16, 32)],
    *[("vgg6", 0.125, batch) for batch in (32, 64)],
    *[("vgg5", 1, batch) for batch in (32, 128, 512)],
    *[("cnn1d", 1, batch) for batch in (32, 128, 512)],
    *[("mlp", 512, batch) for batch in (32, 512)],
    ("mlp", 2048, 32),
)
TINY: tuple[Case, ...] = (("cnn1d", 0.1, 2),)


def network(name: str, width: float) -> tuple[Encoder, tuple[int, ...], tuple[int | None, ...]]:
    """The encoder of that name, the shape of one input, and its patches."""
    if name == "vgg6":
        return encoders.vgg6(width), SHAPE, PATCHES
    if name == "vgg5":
        return encoders.vgg5(width), (1, 16, 16), (4, 4, 2, 2, 1)
    if name == "mlp":
        return encoders.mlp(widths=(round(width),) * 6), (784,), (None,) * 6
    return encoders.cnn1d(width), (1, 128), (None,) * 4


def measure(made: Sequence[Made], shape: Sequence[int], batch: int, repeats: int) -> list[list[float]]:
    """Seconds of every engine's steps; the first round, which makes the optimiser's state, does not count."""
    seconds: list[list[float]] = [[] for _ in made]
    for repeat in range(repeats + 1):
        views: Tensor = torch.rand(2, batch, *shape)
        for i in (0, 1) if repeat % 2 else (1, 0):
            began = time.perf_counter()
            made[i].step(views[0], views[1])
            if repeat:
                seconds[i].append(time.perf_counter() - began)
    return seconds


def row(case: Case, rule: str, repeats: int) -> dict[str, Any]:
    """Both engines on one network by one rule."""
    busy = load()
    name, width, batch = case
    made: list[Made] = []
    for engine in ENGINES:
        torch.manual_seed(0)
        encoder, shape, patches = network(name, width)
        made.append(make(rule, encoder, shape, patches, engine))
    _, shape, _ = network(name, width)
    learner = made[0].learner
    weights = sum(p.numel() for p in learner.parameters())
    small = autograd_is_faster(learner.encoder, learner.output_shapes, weights, batch)
    autograd, hebbian = measure(made, shape, batch, repeats)
    ratios = [h / a for h, a in zip(hebbian, autograd, strict=True)]
    low, high = interval(ratios)
    return {
        "encoder": name,
        "width": width,
        "batch": batch,
        "rule": rule,
        "auto": ENGINES[0] if small else ENGINES[1],
        "ratio": round(statistics.median(ratios), 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "n": len(ratios),
        "milliseconds": round(1e3 * statistics.median(hebbian), 2),
        "milliseconds_autograd": round(1e3 * statistics.median(autograd), 2),
        "load": busy,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tiny", action="store_true", help="a network too small to say anything: whether it runs")
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args()
    keep_freed()  # as the commands do
    torch.set_num_threads(a.threads)
    rows: list[dict[str, Any]] = []
    for case in TINY if a.tiny else CASES:
        for rule in LOCAL:
            rows.append(row(case, rule, a.repeats))
            print(rows[-1], flush=True)
    write(a.out, a.threads, rows=rows)


if __name__ == "__main__":
    main()
