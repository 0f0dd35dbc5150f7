"""Images a second of the whole loop of ``localssl train`` against its bare step, and the share that views take.

    python benchmarks/throughput.py --data-root DATA --out benchmarks/results/throughput.json

vgg6 on CIFAR-10 (noise of its form where it is not there), at width 0.25, and at width 1 the rule of the shortest step,
in which views weigh most. Every repeat, in turn, on as many batches each: the loop
itself (reading batches, views, step, loss rows, progress line), the views alone, and the step alone on views that are
there already. ``of_step_and_views``: the loop's images a second over those of views and step one after the other, what
the loop itself costs. ``of_step``: over those of the step alone, which nothing that makes views in between can reach.
``ahead_of_step``: steps on views that a process of PyTorch's DataLoader makes ahead, over the step alone; ``train`` has
no such process, this says what one would be worth.
``views_share``: of views in the time of views and step. Medians of the repeats' ratios with the distribution-free 95 %
interval. Online monitors are off; a checkpoint's seconds stand apart, ``train`` writes one every ten minutes and at the
end.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from loops import cifar10, prepare
from shared import BASE, LOCAL, interval, write
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from typing_extensions import override

from localssl.system.allocator import keep_freed
from localssl.training.loop import Loop

Times = dict[str, float]
CASES: dict[float, tuple[tuple[str, ...], int, int]] = {  # of a width: rules, steps of a repeat, repeats
    0.25: ((BASE, *LOCAL), 20, 11),
    1: (("clapp++dfb",), 5, 6),  # a step takes fifteen times as long
}


def once(rule: str, width: float, batch: int, steps: int, root: Path | None, folder: Path, threads: int) -> Times:
    """Seconds of the loop, the views and the steps of as many batches, and of a checkpoint."""
    folder.mkdir(parents=True)
    bare = prepare(rule, width, batch, steps, root, folder / "bare", threads)
    views = [bare.views(bare.images.batch(index)) for index in bare.order(0)[:2]]
    for view_a, view_b in views:  # the first steps make the optimiser's state
        _step(bare, view_a, view_b)
    found: Times = {"views": 0.0, "step": 0.0}
    for index in bare.order(0):
        images = bare.images.batch(index)
        began = time.perf_counter()
        view_a, view_b = bare.views(images)
        made = time.perf_counter()
        _step(bare, view_a, view_b)
        found["step"] += time.perf_counter() - made
        found["views"] += made - began
    found["ahead"] = _ahead(prepare(rule, width, batch, steps + 2, root, folder / "ahead", threads), steps)
    return found | _loop_of(prepare(rule, width, batch, steps + 2, root, folder / "loop", threads), steps)


class _Ahead(IterableDataset[tuple[Tensor, Tensor]]):
    """Views of a run's batches, over and over, made where they are asked for."""

    def __init__(self, loop: Loop):
        self.loop = loop

    @override
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for index in itertools.cycle(self.loop.order(0)):
            yield self.loop.views(self.loop.images.batch(index))


def _ahead(loop: Loop, steps: int) -> float:
    """Seconds of ``steps`` steps on views that another process makes, two batches ahead, and goes on making."""
    made = DataLoader(_Ahead(loop), batch_size=None, num_workers=1, prefetch_factor=2, multiprocessing_context="fork")
    views = iter(made)
    for _ in range(2):  # the first ones start the process and make the optimiser's state
        _step(loop, *next(views))
    began = time.perf_counter()
    for _ in range(steps):
        _step(loop, *next(views))
    return time.perf_counter() - began


def _step(loop: Loop, view_a: Tensor, view_b: Tensor) -> None:
    for _ in loop.learner.updates(view_a, view_b, factored=loop.prepared.factored):
        loop.prepared.optimizer.step()
        loop.prepared.optimizer.zero_grad()


def _loop_of(loop: Loop, steps: int) -> Times:
    """Seconds of the loop's last ``steps`` steps, and of the checkpoint that ends it."""
    clock: dict[str, float] = {}
    train_step, save = loop.train_step, loop.save

    def stepped(*batch: Tensor) -> None:
        if loop.step == loop.last_step - steps:
            clock["began"] = time.perf_counter()
        train_step(*batch)

    def saved() -> None:
        clock["ended"] = time.perf_counter()
        save()
        clock["saved"] = time.perf_counter()

    loop.train_step, loop.save = stepped, saved
    loop.run()
    return {"loop": clock["ended"] - clock["began"], "checkpoint": clock["saved"] - clock["ended"]}


def row(rule: str, width: float, batch: int, steps: int, times: Sequence[Times]) -> dict[str, Any]:
    """Of the repeats' times."""

    def of(name: str, values: Sequence[float], digits: int = 4) -> dict[str, float]:
        low, high = interval(values)
        median = statistics.median(values)
        return {name: round(median, digits), f"{name}_low": round(low, digits), f"{name}_high": round(high, digits)}

    images = batch * steps
    return {
        "rule": rule,
        "width": width,
        "batch": batch,
        **of("of_step_and_views", [(t["step"] + t["views"]) / t["loop"] for t in times]),
        **of("of_step", [t["step"] / t["loop"] for t in times]),
        **of("ahead_of_step", [t["step"] / t["ahead"] for t in times]),
        **of("views_share", [t["views"] / (t["step"] + t["views"]) for t in times]),
        "images_per_second": round(statistics.median([images / t["loop"] for t in times]), 1),
        "step_images_per_second": round(statistics.median([images / t["step"] for t in times]), 1),
        "checkpoint_seconds": round(statistics.median([t["checkpoint"] for t in times]), 3),
        "steps": steps,
        "n": len(times),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", nargs="+", type=float, choices=list(CASES), default=list(CASES))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args()
    keep_freed()  # as the commands do
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        most = max(CASES[width][1] for width in a.widths)
        root, data = cifar10(a.data_root, folder, (most + 2) * a.batch)
        for width, rule in [(w, rule) for w in a.widths for rule in CASES[w][0]]:
            _, steps, repeats = CASES[width]
            times = [
                once(rule, width, a.batch, steps, root, folder / f"{rule}-{width:g}-{repeat}", a.threads)
                for repeat in range(repeats)
            ]
            rows.append(row(rule, width, a.batch, steps, times))
            print(rows[-1], flush=True)
    write(a.out, a.threads, data=data, rows=rows)


if __name__ == "__main__":
    main()
