"""Time of one batch of ``alignment.measure`` against one training step, vgg6 on random images, one thread.

python benchmarks/alignment_cost.py --out docs/results/alignment/cost.csv

Interleaved repeats, medians. The step: views are given; losses, gradients and Adam's update. The measurement: gradients
of the rules and of their references for one batch, inner products included; its first batch is computed twice (the
guard) and left out here.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch

from localssl import encoders, evaluate, rules
from localssl.alignment import measure
from localssl.learner import Learner

PATCHES, SHAPE = (4, 4, 4, 2, 2, 1), (3, 32, 32)
RULES = ("clapp++", "clapp++dfb", "clapp++both")


def seconds(learners: list[Learner], batches: int, images: int) -> float:
    """Of one batch more in a measurement."""
    found: list[float] = []
    for count in (1, 1 + batches):
        data = [tuple(torch.randn(2, images, *SHAPE)) for _ in range(count)]
        began = time.perf_counter()
        measure(learners[0].encoder, learners, data)
        found.append(time.perf_counter() - began)
    return (found[1] - found[0]) / batches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    encoder = encoders.vgg6(arguments.width)
    learners = [Learner(encoder, rules.get(rule), SHAPE, PATCHES) for rule in RULES]
    for learner in learners:
        learner.to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(learners[-1].parameters(), fused=True)
    step: list[float] = []
    one: list[float] = []
    three: list[float] = []
    for _ in range(arguments.repeats + 1):
        view_a, view_b = torch.randn(2, arguments.images, *SHAPE)
        began = time.perf_counter()
        for _ in range(3):
            learners[-1].accumulate_grads(view_a, view_b)
            optimiser.step()
            optimiser.zero_grad()
        step.append((time.perf_counter() - began) / 3)
        one.append(seconds(learners[-1:], 3, arguments.images))
        three.append(seconds(learners, 3, arguments.images))
    rows: list[list[object]] = []
    for name, times in (("clapp++both", one), (", ".join(RULES), three)):
        ratio = statistics.median(a / b for a, b in zip(times[1:], step[1:], strict=True))
        rows.append(
            [name, round(statistics.median(times[1:]), 4), round(statistics.median(step[1:]), 4), round(ratio, 2)]
        )
    comment = f"vgg6 at width {arguments.width:g}, {arguments.images} images, 1 thread, torch {torch.__version__}"
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    evaluate.to_csv(
        arguments.out, ["rules measured", "seconds a batch", "seconds a step of clapp++both", "ratio"], rows, comment
    )
    print(*rows, sep="\n")


if __name__ == "__main__":
    main()
