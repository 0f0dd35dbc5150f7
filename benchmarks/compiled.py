"""What torch.compile wins: whole training steps with one part compiled, against the same step without.

    python benchmarks/compiled.py --out benchmarks/results/compiled.json

vgg6 on images of 32 x 32, fused AdamW, channels-last. In turn, step by step; a row has the median of the ratios and its
distribution-free 95 % interval, and the seconds of the first two compiled steps, in which it compiles. Parts:
backpropagation's whole encoder, forward and backward; of the engine without autograd a block's run, or the spreading of
the dendritic signal over patch, pool and gate. Minutes; needs a C++ compiler.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from shared import BASE, interval, make, random_views, write

from localssl import encoders
from localssl.engine import passes, three_factor
from localssl.system.allocator import keep_freed

PARTS = ((BASE, "encoder"), ("clapp++dfb", "run"), ("clapp++dfb", "signal"), ("clapp++", "signal"))


@contextmanager
def replaced(owner: Any, name: str, by: Any) -> Generator[None]:
    """Within, ``owner`` has another thing of that name."""
    before = getattr(owner, name)
    setattr(owner, name, by)
    try:
        yield
    finally:
        setattr(owner, name, before)


def steps_of(rule: str, part: str, width: float, batch: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """A step as it is, and one with that part compiled."""
    torch.compiler.reset()
    torch.manual_seed(0)
    made = make(rule, encoders.vgg6(width))
    owner, name = {
        "encoder": (made.learner.encoder, "forward"),
        "run": (three_factor, "run"),
        "signal": (passes, "_at_drive"),
    }[part]
    compiled = torch.compile(getattr(owner, name), dynamic=False)

    def with_it() -> None:
        with replaced(owner, name, compiled):
            made.step(*random_views(batch))

    return lambda: made.step(*random_views(batch)), with_it


def timed(step: Callable[[], None]) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def row(rule: str, part: str, width: float, batch: int, repeats: int) -> dict[str, object]:
    plain, compiled = steps_of(rule, part, width, batch)
    plain()
    first = timed(compiled) + timed(compiled)
    pairs = [(timed(plain), timed(compiled)) for _ in range(repeats)]
    ratios = [mine / base for base, mine in pairs]
    low, high = interval(ratios)
    found: dict[str, object] = {
        "rule": rule,
        "compiled": part,
        "width": width,
        "batch": batch,
        "ratio": round(statistics.median(ratios), 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "n": repeats,
        "seconds_to_compile": round(first, 1),
        "milliseconds": round(1e3 * statistics.median(base for base, _ in pairs), 1),
    }
    print(found, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=float, nargs="+", default=[0.25, 1.0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, nargs="+", default=[21, 5], help="for every width")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    keep_freed()  # as the commands do
    torch.set_num_threads(arguments.threads)
    found: list[dict[str, object]] = []
    for width, repeats in zip(arguments.widths, arguments.repeats, strict=True):
        found += [row(rule, part, width, arguments.batch, repeats) for rule, part in PARTS]
    write(arguments.out, arguments.threads, rows=found)


if __name__ == "__main__":
    main()
