"""Data parallel: seconds, bytes and the share of communication of a step in several processes of one thread each.

    python benchmarks/parallel.py --out benchmarks/results/parallel.json

vgg6 on random views of 32 x 32, samples compared across processes. "rows": readouts go to all, and every process makes
the whole change of B from them. "matrices": each makes its own samples' part, and the parts are summed. "sharded": each
keeps some rows of B. In turn, repeat by repeat; medians. ``one`` is one process of one thread with the batch of all.
``of_matrices``: the step's time over that with matrices, paired, with the distribution-free 95 % interval.

The local rules at one width, and two of them at two small widths with batches from below to beyond the size at which
matrices are fewer bytes than rows. ``pace``: how fast a thread multiplies, two processes send, and a message of nothing
goes its way; ``localssl.traffic`` reckons from these which way takes less time. 20 minutes on two idle cores.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from shared import LOCAL, Made, interval, make, random_views, write
from torch import Tensor, nn
from typing_extensions import override

from localssl import encoders, traffic
from localssl.optimizer import FactoredAdamW
from localssl.parallel import Processes
from localssl.products import product
from localssl.system.allocator import keep_freed
from localssl.training import sharding
from localssl.training.prepared import parameter_groups

WAYS = ("rows", "matrices", "sharded")
SMALL = (0.0625, 0.125)
BATCHES = (64, 192, 512)  # of each process; up to 192 and 384 rows are fewer bytes, at the small widths


class Case(NamedTuple):
    """A rule, a width, and the images of each process."""

    rule: str
    width: float
    batch: int


class Timed(Processes):
    """Counts the seconds in which this process waits for others or talks to them."""

    seconds = 0.0
    talking = False

    @contextmanager
    def talk(self) -> Generator[None]:
        """Its time counts, once where one call makes another."""
        if self.talking:
            yield
            return
        self.talking, began = True, time.perf_counter()
        yield
        self.seconds += time.perf_counter() - began
        self.talking = False

    @override
    def gather(self, rows: Tensor, views: int = 2) -> Tensor:
        with self.talk():
            return super().gather(rows, views)

    @override
    def beside(self, columns: Tensor, count: int) -> Tensor:
        with self.talk():
            return super().beside(columns, count)

    @override
    def swap(self, rows: Tensor, to: Sequence[int], of: Sequence[int]) -> Tensor:
        with self.talk():
            return super().swap(rows, to, of)

    @override
    def add_up(self, parameters: Iterable[nn.Parameter]) -> None:
        with self.talk():
            super().add_up(parameters)

    @override
    def sum(self, numbers: Tensor) -> Tensor:
        with self.talk():
            return super().sum(numbers)


def made_for(case: Case, processes: Timed, sharded: bool) -> Made:
    """The learner and its optimiser, of a sharded B what is here."""
    torch.manual_seed(0)
    made = make(case.rule, encoders.vgg6(case.width))
    if not sharded:
        return made
    sharding.shard(made.learner, processes, "adam")
    return Made(made.learner, FactoredAdamW(parameter_groups(made.learner, False), lr=1e-4, weight_decay=0))


def seconds_of(made: Made, images: int, count: int, processes: Timed | None) -> float:
    """Seconds of a step, of ``count``."""
    learner, optimiser = made
    view_a, view_b = random_views(images)
    began = time.perf_counter()
    for _ in range(count):
        for _ in learner.updates(view_a, view_b, factored=True, processes=processes):
            optimiser.step()
            optimiser.zero_grad()
    return (time.perf_counter() - began) / count


def work(rank: int, size: int, folder: str, cases: list[Case], steps: int, repeats: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=size)
    processes = Timed()
    rows: list[dict[str, Any]] = []
    for case in cases:
        rows += _measure(case, processes, max(2, steps * 16 // case.batch), repeats)
    found = pace(processes)
    if rank == 0:
        torch.save(rows, f"{folder}/rows")
        torch.save(found, f"{folder}/pace")
    dist.barrier()
    dist.destroy_process_group()


def pace(processes: Processes, d: int = 1024, samples: int = 64, repeats: int = 200) -> dict[str, float]:
    """Medians, all processes at the same time: multiply-adds and bytes a second, seconds of a message of nothing."""
    c, delta, b = torch.randn(samples, d), torch.randn(samples, d), torch.randn(d, d)
    large, nothing = torch.zeros(2**22), torch.zeros(1)

    def median(call: Callable[[], object], count: int) -> float:
        took: list[float] = []
        for _ in range(count):
            dist.barrier()
            began = time.perf_counter()
            call()
            took.append(time.perf_counter() - began)
        return statistics.median(took[count // 10 :])

    both = median(lambda: (product(c, b), product(delta.T.contiguous(), c.T.contiguous())), repeats)
    message = median(lambda: processes.sum(nothing), repeats)
    ring = median(lambda: processes.sum(large), repeats // 10)
    sent = 2 * (processes.size - 1) / processes.size * large.nbytes
    rates = {"multiply_adds_a_second": 2 * samples * d * d / both, "bytes_a_second": sent / ring}
    return {**{name: float(f"{rate:.3g}") for name, rate in rates.items()}, "message_seconds": round(message, 6)}


def _measure(case: Case, processes: Timed, steps: int, repeats: int) -> list[dict[str, Any]]:
    times: dict[str, list[float]] = {way: [] for way in (*WAYS, "one")}
    talk: dict[str, list[float]] = {way: [] for way in WAYS}
    sent: dict[str, int] = {}
    whole, part = made_for(case, processes, sharded=False), made_for(case, processes, sharded=True)
    for repeat in range(repeats + 1):
        for way in WAYS:
            dist.barrier()
            processes.seconds, processes.sent = 0.0, 0
            processes.exchange = "auto" if way == "sharded" else way
            seconds = seconds_of(part if way == "sharded" else whole, case.batch, steps, processes)
            times[way].append(seconds)
            talk[way].append(processes.seconds / steps / seconds)
            sent[way] = processes.sent // steps
        dist.barrier()
        if processes.rank == 0:
            times["one"].append(seconds_of(whole, case.batch * processes.size, steps, None))
        dist.barrier()
        if repeat == 0:  # warm
            for values in (*times.values(), *talk.values()):
                values.clear()
    if processes.rank:
        return []
    one = statistics.median(times["one"])
    against = {way: [a / b for a, b in zip(times[way], times["matrices"], strict=True)] for way in WAYS}
    rows = [
        {
            "rule": case.rule,
            "width": case.width,
            "processes": processes.size,
            "batch_of_each": case.batch,
            "exchange": way,
            "seconds": round(statistics.median(times[way]), 5),
            "one": round(one, 5),
            "speedup": round(statistics.median(a / b for a, b in zip(times["one"], times[way], strict=True)), 3),
            "of_matrices": round(statistics.median(against[way]), 3),
            **dict(zip(("low", "high"), (round(edge, 3) for edge in interval(against[way])), strict=True)),
            "bytes_sent": sent[way],
            "share_of_communication": round(statistics.median(talk[way]), 3),
            "auto": _chosen(whole, case.batch, processes),
            "numbers_of_b": sum(
                p.numel() for p in (part if way == "sharded" else whole).learner.projections.parameters()
            ),
            "n": repeats,
            "load": round(os.getloadavg()[0], 2),
        }
        for way in WAYS
    ]
    for row in rows:
        print(row, flush=True)
    return rows


def _chosen(made: Made, images: int, processes: Processes) -> list[int]:
    """The blocks whose changes of B ``--exchange auto`` sums as matrices."""
    sizes = made.learner.sizes(processes, images)
    assert not isinstance(sizes, str)
    return [layer + 1 for layer in sorted(traffic.choose(sizes))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--rules", nargs="+", default=list(LOCAL))
    parser.add_argument("--batch", type=int, default=16, help="images of each process")
    parser.add_argument("--small-widths", type=float, nargs="*", default=SMALL)
    parser.add_argument("--batches", type=int, nargs="*", default=BATCHES, help="images of each, at the small widths")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10, help="for batches of 16; fewer for larger ones")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    keep_freed()  # as the commands do
    os.environ["OMP_NUM_THREADS"] = "1"
    cases = [Case(rule, arguments.width, arguments.batch) for rule in arguments.rules]
    cases += [
        Case(rule, width, batch)
        for width in arguments.small_widths
        for rule in LOCAL[:2]
        for batch in arguments.batches
    ]
    size = arguments.processes
    with tempfile.TemporaryDirectory() as folder:
        given = (size, folder, cases, arguments.steps, arguments.repeats)
        mp.spawn(work, given, nprocs=size)  # pyright: ignore[reportPrivateImportUsage]
        rows, found = (torch.load(Path(folder) / name, weights_only=True) for name in ("rows", "pace"))
    write(arguments.out, 1, rows=rows, pace=found)


if __name__ == "__main__":
    main()
