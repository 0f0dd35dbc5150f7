"""Peak memory of a training step by rule, engine and depth: of activity and temporaries, and of the whole process.

    python benchmarks/memory.py --out benchmarks/results/memory.json

Two figures a row, each of a fresh process. "activity": the allocator's peak within the third step above what is held
between steps (parameters, B, moments), from the profiler's allocation events; gradients, dense ΔB included, count.
"total": the kernel's high-water mark (VmHWM) after three steps less what the process held before the network was made.
Depth: vgg6 with blocks of as many channels as its third put in behind it. "checkpointing": backpropagation that runs
every block again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch
from step import BASE, LOCAL, RANK, SHAPE, commit
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint
from typing_extensions import override

import localssl
from localssl import encoders, rules
from localssl.encoders import Encoder
from localssl.files import write_text
from localssl.optimizer import FactoredAdamW

MIB = 2**20


class Again(nn.Module):
    """A block whose activity is computed again in the backward pass."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block = block

    @override
    def forward(self, x: Tensor) -> Tensor:
        found = checkpoint(self.block, x, use_reentrant=False)
        assert isinstance(found, Tensor)
        return found


def encoder(width: float, depth: int) -> tuple[Encoder, tuple[int, ...]]:
    """vgg6 with ``depth`` - 6 further blocks behind its third, and its patches."""
    blocks = list(encoders.vgg6(width).blocks)
    channels = round(width * encoders.VGG6_CHANNELS[2])
    blocks[3:3] = [encoders.conv_block(channels, channels, False) for _ in range(depth - 6)]
    return Encoder.from_blocks(blocks), (4, 4, 4, *[4] * (depth - 6), 2, 2, 1)


def one(case: dict[str, object]) -> dict[str, float]:
    """Both figures of one case, in MiB; in a process of its own."""
    torch.manual_seed(0)
    torch.set_num_threads(2)
    torch.zeros(8, 8) @ torch.zeros(8, 8)  # what the libraries hold
    before = status("VmRSS")
    net, patches = encoder(float(str(case["width"])), int(str(case["depth"])))
    if case["engine"] == "checkpointing":
        net = Encoder.from_blocks([Again(block) for block in net.blocks])
    options = {} if case["projection"] == "dense" else {"projection": case["projection"], "rank": RANK}
    engine = "autograd" if case["engine"] == "checkpointing" else str(case["engine"])
    learner = localssl.Learner(net, rules.get(str(case["rule"]), **options), SHAPE, patches, engine)
    learner.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimiser = FactoredAdamW([p for p in learner.parameters() if p.requires_grad], weight_decay=0)
    views = torch.rand(2, int(str(case["batch"])), *SHAPE)

    def step() -> None:
        for _ in learner.updates(views[0], views[1], factored=True):
            optimiser.step()
            optimiser.zero_grad()

    for _ in range(2):
        step()
    peak = status("VmHWM")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    held = highest = 0
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    return {"activity": round(highest / MIB, 1), "total": round((peak - before) / 1024, 1)}


def status(key: str) -> int:
    """A line of /proc/self/status, in KiB."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(key):
            return int(line.split()[1])
    raise SystemExit("no /proc/self/status here: this benchmark needs Linux")


def cases(widths: list[float], depths: list[int], batch: int) -> list[dict[str, object]]:
    """All depths at the first width; six blocks at the others."""
    found: list[dict[str, object]] = []
    for width in widths:
        for depth in depths if width == widths[0] else [6]:
            kinds = [(BASE, "autograd", "dense"), (BASE, "checkpointing", "dense")]
            kinds += [(rule, "hebbian", p) for rule in LOCAL for p in ("dense", "low-rank-frozen")]
            kinds += [(rule, "hebbian-lean", "dense") for rule in LOCAL[1:]]
            kinds += [("clapp++", "autograd", "dense")]
            found += [
                {"rule": r, "engine": e, "projection": p, "width": width, "depth": depth, "batch": batch}
                for r, e, p in kinds
            ]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=float, nargs="+", default=[0.25, 1.0])
    parser.add_argument("--depths", type=int, nargs="+", default=[6, 12, 24, 48])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(arguments.one)))
        return
    if arguments.out is None:
        parser.error("--out is needed")
    rows: list[dict[str, object]] = []
    base: dict[str, float] = {}
    for case in cases(arguments.widths, arguments.depths, arguments.batch):
        command = [sys.executable, __file__, "--one", json.dumps(case)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        figures: dict[str, float] = json.loads(done.stdout)
        base = figures if case["rule"] == BASE and case["engine"] == "autograd" else base
        ratios = {f"{key}_ratio": round(value / base[key], 3) for key, value in figures.items()}
        rows.append({**case, **figures, **ratios})
        print(*rows[-1].values(), flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    record = {"torch": torch.__version__, "threads": 2, "commit": commit(), "rows": rows}
    write_text(arguments.out, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
