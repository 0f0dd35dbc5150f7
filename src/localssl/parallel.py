"""Data parallel for losses that compare samples: processes that hold parts of one batch and train as one process would.

Every process runs its own images through the blocks, the readouts go to all of them, and each computes the losses of
the whole batch. What a process then lacks is the others' part of the change of W: a sum. The change of B it has whole,
since B's factors are the readouts: no matrix of its size is ever sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from localssl.errors import UsageError


class Processes:
    """The processes that share a batch: process r has images r n … (r + 1) n − 1 of the whole batch's N n.

    Args:
        group: of ``torch.distributed``, initialised; None: all processes.

    Attributes:
        rank, size: this process's number, and how many there are.
        sent: bytes that this process has given to the others so far, as a ring sends them.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        if not dist.is_initialized():
            raise UsageError("there are no processes yet: call torch.distributed.init_process_group first")
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
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
            dist.all_gather(parts, own, group=self.group)
        self.sent += (self.size - 1) * own.numel() * own.element_size()
        parts[self.rank] = rows
        chunks = [part.chunk(views) for part in parts]
        return torch.cat([chunk[view] for view in range(views) for chunk in chunks])

    def own(self, rows: Tensor, views: int = 2) -> Tensor:
        """This process's part of rows in the order of the whole batch: what ``gather`` had from it."""
        return torch.cat([view.chunk(self.size)[self.rank] for view in rows.chunk(views)])

    def add_up(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its sum over the processes; all must have gradients for the same parameters."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        for same in _by_kind(gradients):
            flat = torch.cat([g.flatten() for g in same])
            dist.all_reduce(flat, group=self.group)
            self.sent += 2 * (self.size - 1) * flat.numel() * flat.element_size() // self.size
            for g, part in zip(same, flat.split([g.numel() for g in same]), strict=True):
                g.copy_(part.view_as(g))


def _by_kind(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Tensors of one type together, in the same order in every process."""
    kinds: dict[torch.dtype, list[Tensor]] = {}
    for t in tensors:
        kinds.setdefault(t.dtype, []).append(t)
    return list(kinds.values())
