"""Images a second of training steps on a GPU, views included, and what bounds them.

    python benchmarks/gpu.py --device cuda --out benchmarks/results/gpu.json

vgg6 on noise of CIFAR-10's form that lies on the device: batches are drawn, augmented and learnt there. A row has the
median over repeats of images a second with its distribution-free 95 % interval, the same of steps on views that are
there already, the peak of the device's memory, and of some steps what torch.profiler saw: ``busy``, the share of time
in which the device ran a kernel (the rest is launches and Python), and the operations that took most of it.
``bound_by`` says which of the two it comes to. Weights in float32, under bf16 autocast with ``--precision bf16``;
``--matmul high`` lets float32 products take TF32 (``torch.set_float32_matmul_precision``). No CUDA graph, nothing
compiled. ``train`` also looks for NaN before it applies an update, which reads one number back from the device, or one
a block: that is not in these steps.

    python benchmarks/gpu.py --device cpu --tiny --out /tmp/gpu.json        # whether it runs, in seconds
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from shared import BASE, LOCAL, MIB, PATCHES, SHAPE, interval, make, write
from torch import Tensor
from torch.autograd import DeviceType  # pyright: ignore[reportPrivateImportUsage]
from torch.profiler import ProfilerActivity, profile

from localssl import encoders
from localssl.data.specs import spec_for
from localssl.data.views import Views
from localssl.system import devices

BUSY = 0.8  # share of time from which on the device's work is what bounds a step
SHOWN = 12  # operations of a profile
Step = Callable[[], None]


def steps_of(
    rule: str, engine: str, width: float, batch: int, device: torch.device, precision: str, images: int
) -> tuple[Step, Step]:
    """A step with its views, and one on views that are there already."""
    torch.manual_seed(0)
    made = make(rule, encoders.vgg6(width), SHAPE, PATCHES, engine)
    made.learner.to(device)
    spec = spec_for("cifar10")
    views = Views(spec.augmentation, spec.mean or (0.5,) * 3, spec.std or (0.25,) * 3, *SHAPE[:2]).to(device)
    data = torch.randint(256, (images, *SHAPE), dtype=torch.uint8, device=device)

    def learn(view_a: Tensor, view_b: Tensor) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            made.step(view_a, view_b)

    def whole() -> None:
        learn(*views(data[torch.randint(images, (batch,), device=device)]))

    given = views(data[:batch])
    return whole, lambda: learn(*given)


def rate(step: Step, batch: int, steps: int, repeats: int, device: torch.device) -> list[float]:
    """Images a second of every repeat; the clock is read when the device is done. Some steps before do not count."""
    found: list[float] = []
    for repeat in range(repeats + 1):
        began = time.perf_counter()
        for _ in range(steps):
            step()
        devices.wait(device)
        if repeat:
            found.append(batch * steps / (time.perf_counter() - began))
    return found


def seen(step: Step, steps: int, device: torch.device) -> dict[str, Any]:
    """What the profiler saw of some steps: share of time the device was busy, and the dearest operations."""
    on_cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
    devices.wait(device)
    began = time.perf_counter()
    for _ in range(steps):  # the profiler slows what it watches down: the time is that of steps without it
        step()
    devices.wait(device)
    seconds = time.perf_counter() - began
    with profile(activities=activities) as profiled:
        for _ in range(steps):
            step()
        devices.wait(device)
    events = profiled.key_averages()
    own = "self_device_time_total" if on_cuda else "self_cpu_time_total"
    kernels = [e for e in events if not on_cuda or e.device_type == DeviceType.CUDA]
    busy = min(1.0, sum(getattr(e, own) for e in kernels if on_cuda or e.key.startswith("aten::")) / 1e6 / seconds)
    named = sorted((e for e in events if e.key.startswith("aten::")), key=lambda e: -getattr(e, own))[:SHOWN]
    operations = {e.key.removeprefix("aten::"): round(getattr(e, own) / 1e3 / steps, 3) for e in named}
    first = next(iter(operations), "nothing")
    bound = f"the device's work, most of it {first}" if busy >= BUSY else "launches and Python: the device waits"
    return {"busy": round(busy, 3), "bound_by": bound, "milliseconds_of_operations": operations}


def row(rule: str, batch: int, a: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """All of one rule at one batch size."""
    whole, bare = steps_of(rule, a.engine, a.width, batch, device, a.precision, a.images)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    rates = rate(whole, batch, a.steps, a.repeats, device)
    peak = torch.cuda.max_memory_allocated(device) / MIB if device.type == "cuda" else None
    low, high = interval(rates)
    return {
        "rule": rule,
        "engine": a.engine,
        "width": a.width,
        "batch": batch,
        "precision": a.precision,
        "matmul": a.matmul,
        "images_per_second": round(statistics.median(rates), 1),
        "low": round(low, 1),
        "high": round(high, 1),
        "images_per_second_without_views": round(statistics.median(rate(bare, batch, a.steps, a.repeats, device)), 1),
        "peak_mib": None if peak is None else round(peak, 1),
        "n": len(rates),
        **seen(whole, a.steps, device),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=devices.CHOICES, default="cuda")
    parser.add_argument("--rules", nargs="+", default=[BASE, *LOCAL])
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--matmul", choices=("highest", "high"), default="highest")
    parser.add_argument("--steps", type=int, default=50, help="of every repeat")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--images", type=int, default=10_000, help="that lie on the device")
    parser.add_argument("--tiny", action="store_true", help="a network too small to say anything: whether it runs")
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args()
    if a.tiny:
        a.width, a.batches, a.steps, a.repeats, a.images = 0.02, [2], 1, 2, 8
    device = devices.choose(a.device)
    torch.set_float32_matmul_precision(a.matmul)
    rows: list[dict[str, Any]] = []
    for rule in a.rules:
        for batch in a.batches:
            rows.append(row(rule, batch, a, device))
            print({k: v for k, v in rows[-1].items() if k != "milliseconds_of_operations"}, flush=True)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    write(a.out, torch.get_num_threads(), device=name, rows=rows)


if __name__ == "__main__":
    main()
