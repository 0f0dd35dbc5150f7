"""Multiply-adds of a comparison, rule by rule, and how long one core takes for them: python benchmarks/comparison.py

Counted, not timed: the products and convolutions of one whole training step of every rule (forward, backward, update
of B), by PyTorch's counter, times the images of the study. Hours: at --rate multiply-adds a second, by default what
docs/results/cifar10/speed.csv came to on one core (bp-clapp++ at width 0.25). Views, optimiser, probe and alignment are
not in the count; --more is what they are taken to add.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from typing_extensions import override

from localssl import encoders, rules
from localssl.data.specs import default_patches, spec_for
from localssl.experiments.comparison import HELD_OUT, SEARCH_IMAGES
from localssl.experiments.rows import named
from localssl.learner import Learner
from localssl.runs.config import parse_options
from localssl.runs.run import get_rule

SPEED = Path(__file__).parents[1] / "docs" / "results" / "cifar10" / "speed.csv"
BATCH = 64


class Counter(TorchDispatchMode):
    """Multiply-adds of whatever runs within (PyTorch's own mode does not go with gradients inside of a step)."""

    total = 0

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if (count := flop_registry.get(func.overloadpacket)) is not None:
            self.total += count(*args, **(kwargs or {}), out_val=out) // 2
        return out


def step(
    rule: rules.Rule,
    data: str,
    width: float,
    name: str | None = None,
    options: Mapping[str, Any] | None = None,
    patches: Sequence[int] | None = None,
) -> float:
    """Multiply-adds of one training step, over the images of the batch."""
    spec = spec_for(data)
    size = spec.image_size or 32
    shape, name = (spec.channels, size, size), name or spec.encoder
    encoder = encoders.build(name, shape, width, options, rule.encoder_options)
    learner = Learner(encoder, rule, shape, patches or default_patches(name, size))
    a, b = torch.randn(2, BATCH, *shape)
    with Counter() as counter:
        for _ in learner.updates(a, b, labels=torch.arange(BATCH) % 10):
            pass
    return counter.total / BATCH


def rate() -> float:
    """Multiply-adds a second of the committed measurement."""
    lines = [line for line in SPEED.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    images = {row["rule"]: float(row["images_per_second"]) for row in csv.DictReader(lines)}
    return images["bp-clapp++"] * step(rules.get("bp-clapp++"), "cifar10", 0.25)


def main() -> None:
    """Print a table and its sum."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--rules", nargs="*", default=["all"])
    parser.add_argument("--width", type=float, default=0.125)
    parser.add_argument("--encoder", default=None, help="as localssl compare --encoder")
    parser.add_argument("--encoder-options", nargs="*", default=[])
    parser.add_argument("--patches", nargs="*", type=int, default=None)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--rates", type=int, default=4, help="rates of the search")
    parser.add_argument("--search-epochs", type=int, default=1)
    parser.add_argument("--rate", type=float, default=None, help="multiply-adds a second")
    parser.add_argument("--more", type=float, default=0.5, help="what else a cell does, over the count")
    a = parser.parse_args()
    speed = a.rate or rate()
    trial = min(SEARCH_IMAGES, 4 * a.images // 5)
    cell, total, longest = a.images * a.epochs, 0.0, 0.0
    images = a.seeds * cell + a.rates * trial * a.search_epochs
    net = a.encoder or spec_for(a.data).encoder
    print(f"{a.data}, {net} at width {a.width:g}: {images:,} images a rule; search judged on {HELD_OUT:,} at most")
    print(f"{speed / 1e9:.1f} billion multiply-adds a second; {a.more:.0%} more for what is not counted")
    for row in named(a.rules, a.data):
        rule, options = get_rule(row.rule, dict(row.options)), parse_options(a.encoder_options)
        each = step(rule, a.data, a.width, a.encoder, options, a.patches)
        hours = each * (1 + a.more) / speed / 3600
        total, longest = total + images * hours, max(longest, cell * hours)
        minutes = cell * hours * 60
        print(f"{row.label:24s} {each / 1e6:9.1f} M an image  {minutes:6.1f} min a cell  {images * hours:5.2f} h")
    print(f"all: {total:.2f} core-hours, the longest cell {longest * 60:.0f} minutes")


if __name__ == "__main__":
    main()
