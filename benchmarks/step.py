"""Whole training steps of local rules against backpropagation's, vgg6 on images of 32 x 32: ratios of times.

    python benchmarks/step.py --out benchmarks/results/step.json

Every repeat takes a step of ``bp-clapp++`` and one of the row's case, on the same images, now the one first, now the
other; a row has the median of their ratios, the distribution-free 95 % interval of that median, both medians in
milliseconds, and the load average before it. A load of more than the benchmark's own is warned of. A step: losses,
update and the optimiser (fused AdamW, channels-last for all but "published"). "published" is the layout of the
published code: one graph over detached blocks, NCHW, AdamW not fused, every image augmented alone; its row and the two
beside it include the views. "pool first": backpropagation through blocks that pool before ReLU and make the gradient of
their weights as the engine does (engine/weights.py); the rules are held against it, too.

State: "start", noise and weights as drawn, where nearly every sample is active. The engine skips no inactive sample, so
that its time should be the same later on. ``--trained STEPS`` measures that: both networks first learn from that many
batches of CIFAR-10, the same views for both, and are then timed on further ones:

    python benchmarks/step.py --trained 300 --widths 0.25 --repeats 21 --out benchmarks/results/step-trained.json

Freed memory is kept, as the commands of localssl have it. ``--as-it-is`` leaves the C library's allocator alone, as a
program of one's own does that says nothing.

    python benchmarks/step.py --as-it-is --widths 0.25 --repeats 21 --out benchmarks/results/step-as-it-is.json
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from loops import cifar10
from shared import BASE, LOCAL, RANK, SHAPE, Made, commit, interval, load, make, write
from torch import Tensor, nn
from torchvision.transforms import v2
from typing_extensions import override

import localssl
from localssl import encoders, rules
from localssl.data.sources import open_images
from localssl.data.specs import spec_for
from localssl.data.views import Views, blur_kernel
from localssl.encoders import Encoder
from localssl.engine import weights
from localssl.system.allocator import keep_freed

AT_START = "start"
Batches = Iterator[Tensor]


@dataclass(frozen=True)
class Case:
    """A rule under an engine, on one layout."""

    rule: str
    engine: str = "auto"
    projection: str = "dense"
    layout: str = "ours"
    augmented: bool = False
    factored_moment: bool = False
    pool_first: bool = False

    @property
    def name(self) -> str:
        """The rule as it stands in a row."""
        if self.factored_moment:
            return f"{self.rule}, factored second moment"
        if self.pool_first:
            return f"{self.rule} pool first"
        return self.rule if self.projection == "dense" else f"{self.rule}, B {self.projection} {RANK}"


def made_of(case: Case, width: float) -> Made:
    """The case's network, its rule and its optimiser."""
    torch.manual_seed(0)
    net = encoders.vgg6(width)
    made = make(
        case.rule,
        pool_first(net) if case.pool_first else net,
        engine=case.engine,
        projection=case.projection,
        factored_moment=case.factored_moment,
    )
    if case.layout == "ours":
        return made
    made.learner.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
    return Made(made.learner, torch.optim.AdamW(made.learner.parameters(), 1e-4))


class _Convolution(torch.autograd.Function):
    """A convolution of odd kernel that leaves the map as it is, whose weights' gradient is the engine's."""

    @staticmethod
    @override
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, layer: nn.Conv2d) -> Tensor:
        ctx.save_for_backward(x)
        ctx.layer = layer
        return nn.functional.conv2d(x, weight, bias, padding=layer.padding)  # pyright: ignore[reportArgumentType]

    @staticmethod
    @override
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        (x,), layer, (at_a,) = ctx.saved_tensors, ctx.layer, grad_outputs
        below = None
        if ctx.needs_input_grad[0]:
            geometry = ([1, 1], list(layer.padding), [1, 1], False, [0, 0], 1, [True, False, False])
            below = torch.ops.aten.convolution_backward(at_a, x, layer.weight, None, *geometry)[0]
        return below, *weights.change_of(layer, x, at_a, (True, True)), None


class _AsTheEngine(nn.Conv2d):
    """As ``nn.Conv2d`` where the engine takes oneDNN's gradient of weights, which makes both gradients in one call."""

    @override
    def forward(self, input: Tensor) -> Tensor:
        if not weights.by_places(self, input):
            return super().forward(input)
        assert (self.stride, self.dilation) == ((1, 1), (1, 1))
        found = _Convolution.apply(input, self.weight, self.bias, self)
        assert isinstance(found, Tensor)
        return found


def pool_first(net: Encoder) -> Encoder:
    """The same blocks with the engine's order and gradient of weights, which come to the same numbers."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.__class__ = _AsTheEngine

    def order(module: nn.Module) -> int:
        return (_AsTheEngine, nn.MaxPool2d, nn.ReLU).index(type(module))  # pyright: ignore[reportArgumentType]

    return Encoder.from_blocks([nn.Sequential(*sorted(block.children(), key=order)) for block in net.blocks])


def step_of(case: Case, made: Made) -> Callable[[Tensor], None]:
    """One training step on images (n, 3, 32, 32) of bytes."""
    ours = case.layout == "ours"
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


def measure(
    cases: tuple[Case, Case], width: float, batch: int, repeats: int, trained: int, batches: Batches
) -> list[list[float]]:
    """Seconds of both cases' steps; the first round is not counted. Two at a time, for the memory of wide ones."""
    made = [made_of(case, width) for case in cases]
    if trained:  # views are made beforehand, so that both rules see the same
        views = _views(ours=True)
        for _ in range(trained):
            both = views(next(batches))
            for one in made:
                one.step(*both)
        steps: list[Callable[[Any], None]] = [lambda x, one=one: one.step(*x) for one in made]
        given = (views(images) for images in batches)
    else:
        steps = [step_of(case, one) for case, one in zip(cases, made, strict=True)]
        given = (torch.randint(256, (batch, *SHAPE), dtype=torch.uint8) for _ in range(repeats + 1))
    seconds: list[list[float]] = [[] for _ in cases]
    for repeat, x in zip(range(repeats + 1), given, strict=False):
        for case in (0, 1) if repeat % 2 else (1, 0):
            began = time.perf_counter()
            steps[case](x)
            if repeat:
                seconds[case].append(time.perf_counter() - began)
    return seconds


def photographs(root: Path | None, folder: Path, batch: int) -> tuple[Batches, str]:
    """Batches of CIFAR-10 for ever, drawn from all of it, and what they are; noise of its form where it is not."""
    root, name = cifar10(root, folder, 4 * batch)
    images = open_images("cifar10", root=root)

    def batches() -> Batches:
        drawn = torch.Generator().manual_seed(0)
        while True:
            yield images.batch(torch.randint(len(images), (batch,), generator=drawn))

    return batches(), name


def rows(
    against: Case, cases: Sequence[Case], width: float, batch: int, repeats: int, trained: int, batches: Batches
) -> list[dict[str, object]]:
    """One row a case."""
    found: list[dict[str, object]] = []
    for case in cases:
        busy = load()
        base, mine = measure((against, case), width, batch, repeats, trained, batches)
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
            "state": f"{trained} steps" if trained else AT_START,
            "ratio": round(statistics.median(ratios), 4),
            "low": round(low, 4),
            "high": round(high, 4),
            "n": len(ratios),
            "milliseconds": round(1e3 * statistics.median(mine), 1),
            "milliseconds_against": round(1e3 * statistics.median(base), 1),
            "load": busy,
            "torch": torch.__version__,
            "commit": commit(),
        }
        found.append(row)
        print(f"{case.name:34s} {engine:13s} {case.layout:9s} {row['ratio']:.3f} [{low:.3f} {high:.3f}]", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=float, nargs="+", default=[0.25, 1.0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, nargs="+", default=[21, 9], help="for every width")
    parser.add_argument("--trained", type=int, default=0, metavar="STEPS", help="rows of networks that learnt so long")
    parser.add_argument("--as-it-is", action="store_true", help="rows of a process that gives freed memory back")
    parser.add_argument("--data-root", type=Path, help="where CIFAR-10 lies, for --trained")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    arguments, began = parser.parse_args(), time.perf_counter()
    if not arguments.as_it_is:
        keep_freed()  # as the commands do
    torch.set_num_threads(arguments.threads)
    cases = [Case(BASE, pool_first=True), *(Case(rule) for rule in LOCAL)]
    cases += [Case("clapp++dfb", "hebbian-lean"), Case("clapp++both", "hebbian-lean")]
    cases += [Case(rule, projection=kind) for kind in ("low-rank-frozen", "low-rank") for rule in LOCAL]
    cases += [Case("clapp++both", factored_moment=True)]
    cases += [Case("clapp++", "autograd"), Case("clapp++dfb", "autograd")]
    layouts: list[Case] = []
    for rule in ("clapp++", "clapp++dfb"):
        layouts += [Case(rule, augmented=True), Case(rule, "autograd", layout="published", augmented=True)]
    both = [Case(rule, projection=kind) for kind in ("dense", "low-rank-frozen") for rule in LOCAL]
    found: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        batches, data = iter(()), "noise"
        if arguments.trained:
            batches, data = photographs(arguments.data_root, Path(folder), arguments.batch)
        for width, repeats in zip(arguments.widths, arguments.repeats, strict=True):
            print(f"width {width:g}, batch {arguments.batch}")
            if arguments.trained or arguments.as_it_is:
                found += rows(Case(BASE), both, width, arguments.batch, repeats, arguments.trained, batches)
                continue
            found += rows(Case(BASE), cases, width, arguments.batch, repeats, 0, batches)
            local = [Case(rule) for rule in LOCAL]
            found += rows(Case(BASE, pool_first=True), local, width, arguments.batch, repeats, 0, batches)
            few = max(3, repeats // 2)
            found += rows(Case(BASE, augmented=True), layouts, width, arguments.batch, few, 0, batches)
    took = round(time.perf_counter() - began)
    kept = not arguments.as_it_is
    write(arguments.out, arguments.threads, data=data, kept=kept, seconds=took, rows=found)


if __name__ == "__main__":
    main()
