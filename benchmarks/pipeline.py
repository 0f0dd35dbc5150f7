"""Throughput of layer-parallel training: images a second of several processes of one thread against one process's.

    python benchmarks/pipeline.py --out benchmarks/results/pipeline.json

vgg6 on random images of 32 x 32 x 3 bytes, views included. Every repeat takes ``--steps`` steps in one process of one
thread, as many in ``--processes`` of one thread each, until all is learnt (what it takes to fill and empty the pipe
counts), and as many in one process of ``--processes`` threads. ``ratio``: images a second against one process of one
thread; ``against_threads``: against that of all the threads. Medians of the repeats' ratios with the distribution-free
95 % interval. Staleness is in batches; lateral rules (clapp++) need none.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from shared import PATCHES, SHAPE, commit, interval
from torch import Tensor

from localssl import encoders
from localssl.data.specs import spec_for
from localssl.runs.config import RunConfig, TrainConfig
from localssl.runs.run import make_views
from localssl.system.allocator import keep_freed
from localssl.system.devices import processor
from localssl.system.files import write_text
from localssl.training import pipeline
from localssl.training.prepared import Prepared, prepare

CASES = (
    ("clapp++", 0),
    ("clapp++dfb", 0),
    ("clapp++dfb", 1),
    ("clapp++dfb", 2),
    ("clapp++both", 0),
    ("clapp++both", 1),
)


def configuration(rule: str, staleness: int, width: float, batch: int) -> RunConfig:
    """As ``localssl train --data cifar10`` would resolve it, without the data."""
    spec = spec_for("cifar10")
    return RunConfig(
        rule=rule,
        rule_options={},
        data="cifar10",
        image_size=SHAPE[1],
        channels=SHAPE[0],
        mean=spec.mean or (0.5,) * 3,
        std=spec.std or (0.25,) * 3,
        augmentation=spec.augmentation,
        limit_images=None,
        skip_bad=False,
        encoder=encoders.vgg6(width).config or {},
        patches=PATCHES,
        epochs=1,
        batch_size=batch,
        lr=1e-4,
        weight_decay=0.0,
        optimizer="adam",
        schedule="constant",
        seed=0,
        precision="32-true",
        probe_every=0,
        engine="hebbian",
        staleness=staleness,
    )


def measure(config: RunConfig, options: TrainConfig, steps: int, repeats: int) -> tuple[list[int], list[list[float]]]:
    """Blocks of every process; seconds of a repeat alone, layer-parallel, with as many threads; not of the first."""
    alone, apart, threaded = (prepare(config, "cpu") for _ in range(3))
    divided = pipeline.divide(apart.learner, options, config)
    sizes = [len(layers) for layers in divided]
    views = make_views(config)
    images = torch.randint(256, (config.batch_size, *SHAPE), dtype=torch.uint8)
    total = steps * (repeats + 1)
    setup = pipeline.Setup.of(config, "cpu", divided, 0, total, [0.0] * sum(sizes), False)

    def alone_steps() -> None:
        for _ in range(steps):
            _step(alone, *views(images))

    def threaded_steps() -> None:
        torch.set_num_threads(len(sizes))
        for _ in range(steps):
            _step(threaded, *views(images))
        torch.set_num_threads(1)

    with pipeline.begun(apart, setup) as first:

        def apart_steps() -> None:
            for _ in range(steps):
                first.feed(apart.learner.step(*views(images)).x)
            first.settle()

        seconds = [[_time(work) for work in (alone_steps, apart_steps, threaded_steps)] for _ in range(repeats + 1)]
    return sizes, seconds[1:]


def _step(p: Prepared, view_a: Tensor, view_b: Tensor) -> None:
    for _ in p.learner.updates(view_a, view_b, factored=p.factored):
        p.optimizer.step()
        p.optimizer.zero_grad()


def _time(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def row(rule: str, staleness: int, arguments: argparse.Namespace) -> dict[str, object]:
    """One case."""
    config = configuration(rule, staleness, arguments.width, arguments.batch)
    split = None if arguments.split is None else tuple(arguments.split)
    options = TrainConfig(pipeline=arguments.processes, split=split)
    sizes, seconds = measure(config, options, arguments.steps, arguments.repeats)
    ratios = [alone / apart for alone, apart, _ in seconds]
    low, high = interval(ratios)
    against = [threaded / apart for _, apart, threaded in seconds]
    against_low, against_high = interval(against)
    images = arguments.steps * arguments.batch
    found: dict[str, object] = {
        "rule": rule,
        "staleness": staleness,
        "processes": arguments.processes,
        "split": sizes,
        "width": arguments.width,
        "batch": arguments.batch,
        "steps": arguments.steps,
        "ratio": round(statistics.median(ratios), 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "n": len(ratios),
        "images_per_second": round(images / statistics.median(apart for _, apart, _ in seconds), 1),
        "images_per_second_alone": round(images / statistics.median(alone for alone, _, _ in seconds), 1),
        "images_per_second_threads": round(images / statistics.median(threaded for _, _, threaded in seconds), 1),
        "against_threads": round(statistics.median(against), 4),
        "against_threads_low": round(against_low, 4),
        "against_threads_high": round(against_high, 4),
    }
    print(
        f"{rule:12s} staleness {staleness}: {found['ratio']:.3f} [{low:.3f} {high:.3f}], blocks {sizes}; against one "
        f"process of {len(sizes)} threads {found['against_threads']:.3f} [{against_low:.3f} {against_high:.3f}]",
        flush=True,
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--split", type=int, nargs="+", help="blocks of every process; default: as train chooses")
    parser.add_argument("--steps", type=int, default=30, help="of a repeat")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    keep_freed()  # as the commands do
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that are started
    torch.set_num_threads(1)
    found = [row(rule, staleness, arguments) for rule, staleness in CASES]
    record = {
        "torch": torch.__version__,
        "threads": 1,
        "processor": processor(),
        "commit": commit(),
        "rows": found,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(arguments.out, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
