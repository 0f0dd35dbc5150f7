"""Peak memory of a training step by rule, engine and depth: of activity and temporaries, and of the whole process.

    python benchmarks/memory.py --out benchmarks/results/memory.json

Two figures a row, each of a fresh process. "activity": the allocator's peak within the third step above what is held
between steps (parameters, B, moments), from the profiler's allocation events; gradients, dense ΔB included, count.
"total": the kernel's high-water mark (VmHWM) after two steps less what the process held before the network was made,
when a tiny one had stepped already: what the libraries take at a first step is not in it.
Depth: vgg6 with blocks of as many channels as its third put in behind it. "checkpointing": backpropagation that runs
every block again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from shared import BASE, LOCAL, SHAPE, activity, deep, in_process, make, settled, status, write
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from typing_extensions import override

from localssl.encoders import Encoder
from localssl.system.allocator import keep_freed


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


def one(case: dict[str, object]) -> dict[str, float]:
    """Both figures of one case, in MiB; in a process of its own."""
    torch.set_num_threads(2)
    before = settled()
    torch.manual_seed(0)
    net, patches = deep(float(str(case["width"])), int(str(case["depth"])))
    again = case["engine"] == "checkpointing"
    if again:
        net = Encoder.from_blocks([Again(block) for block in net.blocks])
    engine = "autograd" if again else str(case["engine"])
    made = make(str(case["rule"]), net, SHAPE, patches, engine, str(case["projection"]))
    views = torch.rand(2, int(str(case["batch"])), *SHAPE)
    for _ in range(2):
        made.step(views[0], views[1])
    peak = status("VmHWM")
    highest = activity(lambda: made.step(views[0], views[1]))
    return {"activity": round(highest, 1), "total": round((peak - before) / 1024, 1)}


def cases(widths: list[float], depths: list[int], batch: int) -> list[dict[str, object]]:
    """All depths at the first width; six blocks at the others."""
    found: list[dict[str, object]] = []
    for width in widths:
        for depth in depths if width == widths[0] else [6]:
            kinds = [(BASE, "autograd", "dense"), (BASE, "checkpointing", "dense")]
            kinds += [(rule, "hebbian", p) for rule in LOCAL for p in ("dense", "low-rank-frozen")]
            kinds += [(rule, "hebbian", "low-rank") for rule in LOCAL if depth == 6]
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
    keep_freed()  # as the commands do
    if arguments.one:
        print(json.dumps(one(arguments.one)))
        return
    if arguments.out is None:
        parser.error("--out is needed")
    rows: list[dict[str, object]] = []
    base: dict[str, float] = {}
    for case in cases(arguments.widths, arguments.depths, arguments.batch):
        figures = in_process(__file__, case)
        base = figures if case["rule"] == BASE and case["engine"] == "autograd" else base
        ratios = {f"{key}_ratio": round(value / base[key], 3) for key, value in figures.items()}
        rows.append({**case, **figures, **ratios})
        print(*rows[-1].values(), flush=True)
    write(arguments.out, 2, rows=rows)


if __name__ == "__main__":
    main()
