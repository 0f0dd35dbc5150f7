"""Data parallel for losses that compare samples: processes that hold parts of one batch and train as one process would.

Every process runs its own images through the blocks. With rows the readouts go to all of them, and each computes the
losses of the whole batch: what it then lacks is the others' part of the change of W, a sum; the change of B it has
whole, since B's factors are the readouts. With matrices each computes the losses of its own samples, against negatives
that others may have, and the changes of B are summed, too. Which way: ``localssl.traffic``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from localssl.errors import RunError, UsageError

T = TypeVar("T")
PATIENCE = timedelta(days=1)  # on one machine: stopped for a while is not lost; a process that ends is seen at once
LARGE = 2**18  # numbers of a gradient


class Lost(RunError):
    """Another process of the run is gone."""


def guarded(call: Callable[[], T]) -> T:
    """Call what may find that another process is gone; its answer.

    Raises:
        Lost: it is.
    """
    try:
        return call()
    except RuntimeError as error:
        if found := re.search(r"[Tt]imed out waiting (\d+)ms", str(error)):  # gloo's
            minutes = f"{int(found[1]) / 60_000:.2g}"
            raise Lost(f"no word from another process for {minutes} minutes (its machine cut off?)") from error
        raise Lost("another process of the run ended before its time (killed, or out of memory?)") from error


class Processes:
    """The processes that share a batch: process r has images r n … (r + 1) n − 1 of the whole batch's N n.

    Args:
        device: where numbers that go to the others lie.
        group: of ``torch.distributed``, initialised; None: all processes.

    Attributes:
        rank, size: this process's number, and how many there are.
        exchange: how the changes of B come about (``localssl.traffic``): "rows", "matrices"; "auto": what takes
            less time, as is reckoned from the sizes.
        threads: of the process that has fewest; all must know the same.
        sent: bytes that this process has given to the others so far, as a ring sends them.
    """

    def __init__(self, device: torch.device | str = "cpu", group: dist.ProcessGroup | None = None) -> None:
        if not dist.is_initialized():
            raise UsageError("there are no processes yet: call torch.distributed.init_process_group first")
        self.device, self.group = torch.device(device), group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.exchange, self.threads = "auto", 1
        self.sent = 0

    def gather(self, rows: Tensor, views: int = 2) -> Tensor:
        """The rows of all processes in the order of the whole batch; this process's own keep their graph.

        Args:
            rows: (views · n, ...), stacked view a then view b; of as many images in every process.
            views: how many lie above each other (labels: 1).

        Returns:
            (views · N n, ...): view a of all images, then view b.
        """
        with torch.no_grad():
            own = rows.detach().contiguous()
            parts = [torch.empty_like(own) for _ in range(self.size)]
            guarded(lambda: dist.all_gather(parts, own, group=self.group))
        self.sent += (self.size - 1) * own.numel() * own.element_size()
        parts[self.rank] = rows
        chunks = [part.chunk(views) for part in parts]
        return torch.cat([chunk[view] for view in range(views) for chunk in chunks])

    def own(self, rows: Tensor, views: int = 2) -> Tensor:
        """This process's part of rows in the order of the whole batch: what ``gather`` had from it."""
        return torch.cat([view.chunk(self.size)[self.rank] for view in rows.chunk(views)])

    def share(self, count: int, rank: int | None = None) -> slice:
        """Which of ``count`` rows a process holds where they are dealt out: as many as another, or one more or less."""
        r = self.rank if rank is None else rank
        return slice(count * r // self.size, count * (r + 1) // self.size)

    def beside(self, columns: Tensor, count: int) -> Tensor:
        """The columns of all processes side by side; this process's own keep their graph.

        Args:
            columns: (S, this process's share of ``count``), of the same S samples in every process.
            count: of the columns of all.

        Returns:
            (S, count).
        """
        widest = -(-count // self.size)
        with torch.no_grad():  # gloo takes parts of one size only
            own = F.pad(columns.detach(), (0, widest - columns.shape[1])).contiguous()
            parts = [torch.empty_like(own) for _ in range(self.size)]
            guarded(lambda: dist.all_gather(parts, own, group=self.group))
        self.sent += (self.size - 1) * own.numel() * own.element_size()
        shares = [self.share(count, rank) for rank in range(self.size)]
        parts = [part[:, : share.stop - share.start] for part, share in zip(parts, shares, strict=True)]
        parts[self.rank] = columns
        return torch.cat(parts, 1)

    def collect(self, rows: Tensor, count: int) -> Tensor:
        """The rows of all processes, (count, ...), in the first one's main memory; the others get their own back.

        Args:
            rows: this process's share of ``count``. They come one process after the other, so that no device holds
                more than two parts.
        """
        if self.rank:
            if len(rows):
                guarded(lambda: dist.send(rows.contiguous(), group=self.group, group_dst=0))
                self.sent += rows.numel() * rows.element_size()
            return rows
        whole = torch.empty(count, *rows.shape[1:], dtype=rows.dtype)
        whole[self.share(count)] = rows.cpu()
        for rank in range(1, self.size):
            share = self.share(count, rank)
            part = rows.new_empty(share.stop - share.start, *rows.shape[1:])
            if len(part):
                guarded(lambda part=part, rank=rank: dist.recv(part, group=self.group, group_src=rank))
            whole[share] = part.cpu()
        return whole

    def deal(self, columns: Tensor, count: int) -> Tensor:
        """All columns of this process's samples, (2n, count), of those columns of all samples that each process has.

        Args:
            columns: (2 N n, this process's share of ``count``), in the order of the whole batch.
            count: of the columns of all.
        """
        n = len(columns) // (2 * self.size)
        by_process = columns.view(2, self.size, n, -1).transpose(0, 1).flatten()
        widths = [share.stop - share.start for share in (self.share(count, rank) for rank in range(self.size))]
        of = [2 * n * width for width in widths]
        found = self.swap(by_process, [2 * n * columns.shape[1]] * self.size, of).split(of)
        return torch.cat([part.view(2 * n, width) for part, width in zip(found, widths, strict=True)], 1)

    def swap(self, rows: Tensor, to: Sequence[int], of: Sequence[int]) -> Tensor:
        """Rows to every process, one's after the other's; what every process has for this one.

        Args:
            rows: (sum of ``to``, ...).
            to, of: how many rows every process gets from this one, and this one from every process.
        """
        found = rows.new_empty(sum(of), *rows.shape[1:])
        guarded(lambda: dist.all_to_all_single(found, rows.contiguous(), list(of), list(to), group=self.group))
        self.sent += (len(rows) - to[self.rank]) * math.prod(rows.shape[1:]) * rows.element_size()
        return found

    def add_up(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its sum over the processes; all must have gradients for the same parameters."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        for large in filter(_is_large, gradients):
            self.sum(large)
        for same in _by_kind([g for g in gradients if not _is_large(g)]):
            flat = self.sum(torch.cat([g.flatten() for g in same]))
            for g, part in zip(same, flat.split([g.numel() for g in same]), strict=True):
                g.copy_(part.view_as(g))

    def average(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its mean over the processes."""
        given = list(parameters)
        self.add_up(given)
        for p in given:
            if p.grad is not None:
                p.grad /= self.size

    def sum(self, numbers: Tensor) -> Tensor:
        """The sum over the processes, in place."""
        guarded(lambda: dist.all_reduce(numbers, group=self.group))
        self.sent += 2 * (self.size - 1) * numbers.numel() * numbers.element_size() // self.size
        return numbers

    def any(self, flag: bool) -> bool:
        """Whether any process says so."""
        return self.any_of(flag)[0]

    def any_of(self, *flags: bool) -> list[bool]:
        """Of each flag whether any process says so."""
        return (self.sum(torch.tensor(flags, dtype=torch.float32, device=self.device)) > 0).tolist()

    def least(self, number: int) -> int:
        """The least of the processes' whole numbers."""
        return int(self.gather(torch.tensor([number], dtype=torch.int64, device=self.device), views=1).min())

    def agree(self, *numbers: int) -> bool:
        """Whether all processes have the same whole numbers; nobody goes on before all have said theirs."""
        said = self.gather(torch.tensor([numbers], dtype=torch.int64, device=self.device), views=1)
        return bool((said == said[0]).all())


class Route:
    """Which rows of other processes the samples of this one use, and theirs of this one's.

    Args:
        processes: that share the batch.
        index: (2 N n,), for each sample of the whole batch a sample of the whole batch; the same in all processes.
    """

    def __init__(self, processes: Processes, index: Tensor):
        self.processes, size, rank = processes, processes.size, processes.rank
        n = len(index) // (2 * size)
        view, image = index // (n * size), index % (n * size)
        owners = (image // n).view(2, size, n).transpose(0, 1).flatten(1)  # by process, in its own order
        places = (image % n + n * view).view(2, size, n).transpose(0, 1).flatten(1)
        self.order = owners[rank].argsort(stable=True)
        self.places = places[owners == rank]
        self.of: list[int] = owners[rank].bincount(minlength=size).tolist()
        self.to: list[int] = (owners == rank).sum(1).tolist()

    def take(self, rows: Tensor) -> Tensor:
        """What every sample of this process uses, (2n, ...), of the rows (2n, ...) that each process has."""
        found = torch.empty_like(rows)
        found[self.order] = self.processes.swap(rows[self.places], self.to, self.of)
        return found

    def give(self, rows: Tensor, into: Tensor) -> None:
        """Add each of the rows (2n, ...), one a sample of this process, to what it uses, in that process's ``into``."""
        into.index_add_(0, self.places, self.processes.swap(rows[self.order], self.of, self.to))


def _is_large(gradient: Tensor) -> bool:
    """Whether a gradient is summed where it lies, in a message of its own: a copy of it would be too much."""
    return gradient.numel() >= LARGE and gradient.is_contiguous()


def _by_kind(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Tensors of one type together, in the same order in every process."""
    kinds: dict[torch.dtype, list[Tensor]] = {}
    for t in tensors:
        kinds.setdefault(t.dtype, []).append(t)
    return list(kinds.values())
