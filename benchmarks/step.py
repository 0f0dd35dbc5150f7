"""Whole training steps of local rules against backpropagation's, vgg6 on images of 32 x 32: ratios of times.

    python benchmarks/step.py --out benchmarks/results/step.json

Every repeat takes a step of ``bp-clapp++`` and one of the row's case, on the same images; a row has the median of their
ratios, and the distribution-free 95 % interval of that median. A step: losses, update and
the optimiser (fused AdamW, channels-last for all but "published"). The engine uses nothing of samples that are not
active, so that its time is the same in every state. "published" is the layout of the published code: one graph over
detached blocks, NCHW, AdamW not fused, every image augmented alone; its row and the two beside it include the views.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from shared import BASE, LOCAL, RANK, SHAPE, Made, interval, make, write
from torch import Tensor
from torchvision.transforms import v2

import localssl
from localssl import encoders, rules
from localssl.data.specs import spec_for
from localssl.data.views import Views, blur_kernel


@dataclass(frozen=True)
class Case:
    """A rule under an engine, on one layout."""

    rule: str
    engine: str = "auto"
    projection: str = "dense"
    layout: str = "ours"
    augmented: bool = False
    factored_moment: bool = False

    @property
    def name(self) -> str:
        """The rule as it stands in a row."""
        if self.factored_moment:
            return f"{self.rule}, factored second moment"
        return self.rule if self.projection == "dense" else f"{self.rule}, B {self.projection} {RANK}"


def step_of(case: Case, width: float) -> Callable[[Tensor], None]:
    """One training step on images (n, 3, 32, 32) of bytes."""
    torch.manual_seed(0)
    ours = case.layout == "ours"
    made = make(
        case.rule,
        encoders.vgg6(width),
        engine=case.engine,
        projection=case.projection,
        factored_moment=case.factored_moment,
    )
    if not ours:
        made.learner.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
        made = Made(made.learner, torch.optim.AdamW(made.learner.parameters(), 1e-4))
    views = _views(ours) if case.augmented else _no_views
    return lambda images: made.step(*views(images), factored=ours)


def _no_views(images: Tensor) -> tuple[Tensor, Tensor]:
    x = (images.float() / 255).to(memory_format=torch.channels_last)
    return x, x.flip(3)


def _views(ours: bool) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    spec = spec_for("cifar10")
    mean, std = spec.mean or (0.5,) * 3, spec.std or (0.25,) * 3
    if ours:
        made = Views(spec.augmentation, mean, std, 3, 32)
        return lambda images: made(images)
    one = v2.Compose(
        [
            v2.RandomResizedCrop(32, scale=spec.augmentation.crop_scale, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(blur_kernel(32), (0.1, 2.0))], p=0.5),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(list(mean), list(std)),
        ]
    )
    return lambda images: (torch.stack([one(i) for i in images]), torch.stack([one(i) for i in images]))


def measure(cases: tuple[Case, Case], width: float, batch: int, repeats: int) -> list[list[float]]:
    """Seconds of both cases' steps; the first round is not counted. Two at a time, for the memory of wide ones."""
    steps = [step_of(case, width) for case in cases]
    seconds: list[list[float]] = [[] for _ in cases]
    for repeat in range(repeats + 1):
        images = torch.randint(256, (batch, *SHAPE), dtype=torch.uint8)
        for step, found in zip(steps, seconds, strict=True):
            began = time.perf_counter()
            step(images)
            if repeat:
                found.append(time.perf_counter() - began)
    return seconds


def rows(against: Case, cases: list[Case], width: float, batch: int, repeats: int) -> list[dict[str, object]]:
    """One row a case."""
    found: list[dict[str, object]] = []
    for case in cases:
        base, mine = measure((against, case), width, batch, repeats)
        ratios = [a / b for a, b in zip(mine, base, strict=True)]
        low, high = interval(ratios)
        engine = localssl.Learner(encoders.vgg6(0.1), rules.get(case.rule), SHAPE, None, case.engine).engine
        row = {
            "rule": case.name,
            "against": against.name,
            "width": width,
            "batch": batch,
            "engine": engine,
            "layout": case.layout,
            "views": case.augmented,
            "state": "any",
            "ratio": round(statistics.median(ratios), 4),
            "low": round(low, 4),
            "high": round(high, 4),
            "n": len(ratios),
            "milliseconds": round(1e3 * statistics.median(mine), 1),
            "milliseconds_against": round(1e3 * statistics.median(base), 1),
        }
        found.append(row)
        print(f"{case.name:34s} {engine:13s} {case.layout:9s} {row['ratio']:.3f} [{low:.3f} {high:.3f}]", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=float, nargs="+", default=[0.25, 1.0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, nargs="+", default=[21, 5], help="for every width")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cases = [Case(rule) for rule in LOCAL]
    cases += [Case("clapp++dfb", "hebbian-lean"), Case("clapp++both", "hebbian-lean")]
    cases += [Case(rule, projection="low-rank-frozen") for rule in LOCAL]
    cases += [Case("clapp++both", factored_moment=True)]
    cases += [Case("clapp++", "autograd"), Case("clapp++dfb", "autograd")]
    layouts: list[Case] = []
    for rule in ("clapp++", "clapp++dfb"):
        layouts += [Case(rule, augmented=True), Case(rule, "autograd", layout="published", augmented=True)]
    found: list[dict[str, object]] = []
    for width, repeats in zip(arguments.widths, arguments.repeats, strict=True):
        print(f"width {width:g}, batch {arguments.batch}")
        found += rows(Case(BASE), cases, width, arguments.batch, repeats)
        found += rows(Case(BASE, augmented=True), layouts, width, arguments.batch, max(3, repeats // 2))
    write(arguments.out, arguments.threads, rows=found)


if __name__ == "__main__":
    main()
