"""Training on a shard set larger than the memory allowed: order, resume in mid-epoch, resident memory, throughput.

    python benchmarks/large_data.py --folder /tmp --out benchmarks/results/large_data.json

100,000 JPEGs of 128 x 128, 1 GB or more, are written as tar shards into a folder within --folder, which is deleted
afterwards. Every image carries its number in black and white squares, which is read from the pixels that reach the
training step.

"order": an epoch of ``train`` from disk with a net too small to matter, stopped in its middle by SIGINT and resumed in
another process: the numbers that came, against the order of (seed, epoch); "memory": the resident set of those
processes from the tenth step on, and what opening the shards took. "rows": images a second of the training loop of
vgg6, from disk and in memory in turn, on the same batches; the median of the ratios and its 95 % interval.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tarfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from shared import MIB, interval, status, write

from localssl.data.sources import open_images
from localssl.runs.config import TrainConfig
from localssl.runs.resume import begin
from localssl.system import devices
from localssl.system.allocator import keep_freed
from localssl.training.loop import Loop
from localssl.training.train import train

SIDE, EACH = 128, 1000  # pixels; images of a shard
BITS, SQUARE = (2, 10), 12  # rows and columns of the squares, and their side
LEAST = 10**9  # bytes
WARM = 10  # steps
SEED = 0


def generate(folder: Path, count: int, name: str = "train") -> int:
    """Shards of so many images; returns their bytes."""
    draw = np.random.default_rng(SEED)
    coarse = draw.integers(0, 256, (64, 8, 8, 3), dtype=np.uint8)
    smooth = [np.asarray(Image.fromarray(c).resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float32) for c in coarse]
    texture = draw.normal(0, 14, (2 * SIDE, 2 * SIDE, 3)).astype(np.float32)
    total = 0
    for first in range(0, count, EACH):
        file = folder / f"{name}-{first // EACH:06}.tar"
        with tarfile.open(file, "w") as tar:
            for number in range(first, min(first + EACH, count)):
                top, left = draw.integers(0, SIDE, 2)
                picture = smooth[number % len(smooth)] + texture[top : top + SIDE, left : left + SIDE]
                stream = io.BytesIO()
                marked = _marked(picture.clip(0, 255).astype(np.uint8), number)
                Image.fromarray(marked).save(stream, "JPEG", quality=94)
                for kind, data in (("jpg", stream.getvalue()), ("cls", str(number % 10).encode())):
                    member = tarfile.TarInfo(f"{number:08}.{kind}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        total += file.stat().st_size
    return total


def _marked(picture: NDArray[np.uint8], number: int) -> NDArray[np.uint8]:
    rows, columns = BITS
    bits = [number >> bit & 1 for bit in range(rows * columns)]
    squares = np.asarray(bits, dtype=np.uint8).reshape(BITS) * 255
    picture[: rows * SQUARE, : columns * SQUARE] = np.kron(squares, np.ones((SQUARE, SQUARE), np.uint8))[..., None]
    return picture


def numbers(pixels: torch.Tensor) -> list[int]:
    """The numbers that images uint8 (n, 3, s, s) carry."""
    rows, columns = BITS
    at = [[int((i + 0.5) * SQUARE * pixels.shape[-1] / SIDE) for i in range(n)] for n in BITS]
    lit = pixels[:, 1][:, at[0]][:, :, at[1]] > 127
    return (lit.flatten(1).long() << torch.arange(rows * columns)).sum(1).tolist()


def options(case: dict[str, Any], **changes: Any) -> TrainConfig:
    """A run on the shards: one epoch, no monitors, no checkpoints by the clock."""
    given: dict[str, Any] = {"rule": case["rule"], "data": f"shards:{case['shards']}", "width": case["width"]}
    given |= {"batch_size": case["batch"], "image_size": case["size"], "threads": case["threads"]}
    given |= {"epochs": 1, "probe_every": 0, "device": "cpu", "checkpoint_every": 1e6, "seed": SEED}
    return TrainConfig(**given | changes)


def part(case: dict[str, Any]) -> dict[str, Any]:
    """Train from disk up to a step, where SIGINT comes, or from there to the end: the numbers that came, and memory."""
    open_images("digits")  # what any data set takes
    before = status("VmRSS")
    came: list[list[int]] = []
    held: list[int] = []
    wanted: list[list[int]] = []
    own = Loop.train_step

    def step(loop: Loop, index: torch.Tensor, pixels: torch.Tensor | None = None, *rest: Any) -> None:
        assert pixels is not None
        if not held:
            wanted.extend(i.tolist() for i in loop.order(0))
        came.append(numbers(pixels))
        own(loop, index, pixels, *rest)
        held.append(status("VmRSS"))
        if loop.step == case["until"]:
            os.kill(os.getpid(), signal.SIGINT)

    images = open_images(f"shards:{case['shards']}", image_size=case["size"], memory_limit=0)
    opened = status("VmRSS")
    del images
    Loop.train_step = step  # type: ignore[method-assign]
    try:
        train(options(case, out=Path(case["out"]), memory=0.0, resume=case["resume"]), report=lambda _: None)
    except KeyboardInterrupt:
        pass
    finally:
        Loop.train_step = own  # type: ignore[method-assign]
    steady = held[min(WARM, len(held)) - 1 :]
    return {
        "came": came,
        "wanted": wanted,
        "opening_mib": round((opened - before) / 1024, 1),
        "at_step_ten_mib": round(steady[0] / 1024, 1),
        "highest_mib": round(max(steady) / 1024, 1),
        "growth_mib": round((max(steady) - steady[0]) / 1024, 1),
    }


def order(case: dict[str, Any], folder: Path, apart: bool = True) -> dict[str, Any]:
    """An epoch in two halves, each a process of its own, against the order of seed and epoch."""
    halves: list[dict[str, Any]] = []
    for number, resume in enumerate((False, True)):
        half = {**case, "out": str(folder / "run"), "until": -1 if resume else case["until"], "resume": resume}
        if not apart:
            halves.append(part(half))
            continue
        file = folder / f"part-{number}.json"
        command = [sys.executable, __file__, "--one", json.dumps({**half, "file": str(file)})]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} ended with status {done.returncode}:\n{done.stdout}")
        halves.append(json.loads(file.read_text(encoding="utf-8")))
    came, wanted = halves[0]["came"] + halves[1]["came"], halves[0]["wanted"]
    each = [i for batch in came for i in batch]
    found: dict[str, Any] = {
        "steps": len(came),
        "stopped_at": len(halves[0]["came"]),
        "as_ordered": came == wanted,
        "each_once": len(set(each)) == len(each),
    }
    for key in ("opening_mib", "at_step_ten_mib", "highest_mib", "growth_mib"):
        found[key] = max(half[key] for half in halves)
    return found


def throughput(case: dict[str, Any], folder: Path, steps: int, repeats: int) -> dict[str, Any]:
    """Images a second of the loop from disk and in memory, in turn."""
    torch.set_num_threads(case["threads"])
    loops: dict[str, Loop] = {}
    for kind, memory in (("memory", 1e6), ("disk", 0.0)):
        out = folder / f"{kind}-{case['size']}"
        config = options(case, out=out, memory=memory)
        resolved, images, state = begin(config, out, lambda _: None)
        loops[kind] = Loop(config, resolved, images, state, lambda _: None)
        out.mkdir(parents=True)
    seconds: dict[str, list[float]] = {kind: [] for kind in loops}
    for repeat in range(repeats + 1):
        for kind, loop in loops.items():
            batches = loop.order(0)
            batches = [batches[(repeat * steps + i) % len(batches)] for i in range(steps)]
            loop.saved_at = time.monotonic()
            began = time.perf_counter()
            with closing(loop.images.ahead(batches, devices.spare(torch.device("cpu")))) as pixels:
                loop.train_on([(b, b) for b in batches], pixels, lambda: False, None)
            seconds[kind].append((time.perf_counter() - began) / (steps * case["batch"]))
    ratios = [m / d for m, d in list(zip(seconds["memory"], seconds["disk"], strict=True))[1:]]  # the first: warm
    low, high = interval(ratios)
    rates = {kind: round(1 / statistics.median(s[1:]), 1) for kind, s in seconds.items()}
    return {
        "rule": case["rule"],
        "width": case["width"],
        "size": case["size"],
        "batch": case["batch"],
        "images_per_second": rates["disk"],
        "in_memory": rates["memory"],
        "ratio": round(statistics.median(ratios), 3),
        "low": round(low, 3),
        "high": round(high, 3),
        "n": repeats,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the shards are made, and deleted")
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--rule", default="clapp++dfb")
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--sizes", type=int, nargs="*", default=[32, 64, 96], help="96 is what train takes by itself")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10, help="of a repeat")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    keep_freed()  # as the commands do
    if a.one:
        Path(a.one["file"]).write_text(json.dumps(part(a.one)), encoding="utf-8")
        return
    if a.out is None or a.folder is None:
        parser.error("--folder and --out are needed")
    made = a.folder / "localssl-large-data"
    made.mkdir(parents=True)  # an error where it is there: nothing of somebody else's is deleted
    try:
        free = shutil.disk_usage(made).free
        if free < 15_000 * a.images:
            raise SystemExit(
                f"{a.folder} has {free / 1e9:.1f} GB free, {a.images:,} images may need {a.images / 7e4:.1f}"
            )
        shards = made / "shards"
        shards.mkdir()
        generate(shards, a.batch, "val")
        size = generate(shards, a.images)
        print(f"{a.images:,} images, {size / 1e9:.3f} GB in shards", flush=True)
        case = {
            "shards": str(shards),
            "rule": a.rule,
            "width": 0.02,
            "size": 32,
            "batch": a.batch,
            "threads": a.threads,
        }
        began = time.perf_counter()
        found = order({**case, "until": a.images // a.batch // 2}, made)
        print(found, f"{time.perf_counter() - began:.0f} s", flush=True)
        rows: list[dict[str, Any]] = []
        for pixels in a.sizes:
            rows.append(throughput({**case, "width": a.width, "size": pixels}, made, a.steps, a.repeats))
            print(rows[-1], f"{time.perf_counter() - began:.0f} s", flush=True)
    finally:
        shutil.rmtree(made)
    whole = a.images >= 100_000 and size >= LEAST
    write(a.out, a.threads, images=a.images, mib=round(size / MIB), whole=whole, order=found, rows=rows)


if __name__ == "__main__":
    main()
