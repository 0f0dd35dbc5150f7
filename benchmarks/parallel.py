"""Data parallel: seconds, bytes and the share of communication of a step in several processes of one thread each.

    python benchmarks/parallel.py --out benchmarks/results/parallel.json

vgg6 on random views of 32 x 32. "factors": samples are compared across processes, readouts go to all, and every process
makes the whole change of B from them. "matrices": every process compares its own samples, and all gradients are
averaged, B's too. In turn, repeat by repeat; medians. ``one`` is one process of one thread with the batch of all.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from shared import LOCAL, Made, make, random_views, write
from torch import Tensor, nn
from typing_extensions import override

from localssl import encoders
from localssl.parallel import Processes


class Timed(Processes):
    """Counts the seconds in which this process waits for others or talks to them."""

    seconds = 0.0

    @override
    def gather(self, rows: Tensor, views: int = 2) -> Tensor:
        began = time.perf_counter()
        found = super().gather(rows, views)
        self.seconds += time.perf_counter() - began
        return found

    @override
    def add_up(self, parameters: Iterable[nn.Parameter]) -> None:
        began = time.perf_counter()
        super().add_up(parameters)
        self.seconds += time.perf_counter() - began


def steps(made: Made, images: int, count: int, processes: Timed | None, exchange: str) -> float:
    """Seconds of ``count`` steps."""
    learner, optimiser = made
    view_a, view_b = random_views(images)
    began = time.perf_counter()
    for _ in range(count):
        across = processes if exchange == "factors" else None
        for _ in learner.updates(view_a, view_b, factored=exchange != "matrices", processes=across):
            if exchange == "matrices" and processes is not None:
                processes.average(learner.parameters())
            optimiser.step()
            optimiser.zero_grad()
    return time.perf_counter() - began


def work(rank: int, size: int, folder: str, arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=size)
    processes = Timed()
    rows: list[dict[str, Any]] = []
    for width in arguments.widths:
        for rule in arguments.rules:
            torch.manual_seed(0)
            rows += _measure(rule, width, make(rule, encoders.vgg6(width)), processes, arguments)
    if rank == 0:
        torch.save(rows, f"{folder}/rows")
    dist.barrier()
    dist.destroy_process_group()


def _measure(
    rule: str, width: float, made: Made, processes: Timed, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    found: dict[str, list[float]] = {"factors": [], "matrices": [], "one": []}
    talk: dict[str, list[float]] = {"factors": [], "matrices": []}
    sent: dict[str, int] = {}
    for repeat in range(arguments.repeats + 1):
        for exchange, times in found.items():
            dist.barrier()
            if exchange == "one":
                if processes.rank == 0:
                    whole = arguments.batch * processes.size
                    times.append(steps(made, whole, arguments.steps, None, exchange) / arguments.steps)
                dist.barrier()
                continue
            processes.seconds, processes.sent = 0.0, 0
            seconds = steps(made, arguments.batch, arguments.steps, processes, exchange)
            times.append(seconds / arguments.steps)
            talk[exchange].append(processes.seconds / seconds)
            sent[exchange] = processes.sent // arguments.steps
        if repeat == 0:  # warm
            for values in (*found.values(), *talk.values()):
                values.clear()
    if processes.rank:
        return []
    one = statistics.median(found["one"])
    rows = [
        {
            "rule": rule,
            "width": width,
            "processes": processes.size,
            "batch_of_each": arguments.batch,
            "exchange": exchange,
            "seconds": round(statistics.median(found[exchange]), 5),
            "one": round(one, 5),
            "speedup": round(statistics.median(a / b for a, b in zip(found["one"], found[exchange], strict=True)), 3),
            "bytes_sent": sent[exchange],
            "share_of_communication": round(statistics.median(talk[exchange]), 3),
            "n": arguments.repeats,
        }
        for exchange in ("factors", "matrices")
    ]
    for row in rows:
        print(row, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=float, nargs="+", default=[0.25])
    parser.add_argument("--rules", nargs="+", default=list(LOCAL))
    parser.add_argument("--batch", type=int, default=16, help="images of each process")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(work, (arguments.processes, folder, arguments), nprocs=arguments.processes)  # pyright: ignore[reportPrivateImportUsage]
        rows = torch.load(Path(folder) / "rows", weights_only=True)
    write(arguments.out, 1, rows=rows)


if __name__ == "__main__":
    main()
