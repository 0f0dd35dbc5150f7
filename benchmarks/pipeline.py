"""Throughput of layer-parallel training: images a second of several processes of one thread against one process's.

    python benchmarks/pipeline.py --out benchmarks/results/pipeline.json

vgg6 on random images of 32 x 32 x 3 bytes, views included. Every repeat takes ``--steps`` steps in one process of one
thread, then as many in ``--processes`` of one thread each, until all is learnt (what it takes to fill and empty the
pipe counts); a row has the median of the ratios of images a second, and the distribution-free 95 % interval of that
median. Staleness is in batches; lateral rules (clapp++) need none.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
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
    """Blocks of every process; seconds of all repeats alone and layer-parallel, the first of each not counted."""
    alone, apart = prepare(config, "cpu"), prepare(config, "cpu")
    divided = pipeline.divide(apart.learner, options, config)
    sizes = [len(layers) for layers in divided]
    views = make_views(config)
    images = torch.randint(256, (config.batch_size, *SHAPE), dtype=torch.uint8)
    total = steps * (repeats + 1)
    setup = pipeline.Setup.of(config, "cpu", divided, 0, total, [0.0] * sum(sizes), False)

    def alone_steps() -> None:
        for _ in range(steps):
            _step(alone, *views(images))

    with pipeline.begun(apart, setup) as first:

        def apart_steps() -> None:
            for _ in range(steps):
                first.feed(apart.learner.step(*views(images)).x)
            first.settle()

        seconds = [[_time(work) for work in (alone_steps, apart_steps)] for _ in range(repeats + 1)]
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
    ratios = [alone / apart for alone, apart in seconds]
    low, high = interval(ratios)
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
        "images_per_second": round(images / statistics.median(apart for _, apart in seconds), 1),
        "images_per_second_alone": round(images / statistics.median(alone for alone, _ in seconds), 1),
    }
    print(f"{rule:12s} staleness {staleness}: {found['ratio']:.3f} [{low:.3f} {high:.3f}], blocks {sizes}", flush=True)
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
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that are started
    torch.set_num_threads(1)
    found = [row(rule, staleness, arguments) for rule, staleness in CASES]
    record = {
        "torch": torch.__version__,
        "threads": 1,
        "processor": platform.processor() or platform.machine(),
        "commit": commit(),
        "rows": found,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(arguments.out, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
