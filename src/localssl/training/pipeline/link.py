"""What a stage says to the others, over torch.distributed: activity to the next one, contexts from the last one.

A message is one flat buffer of bytes: an order (BATCH: one follows), the negatives of the blocks that are left, the
activity. Buffers are made once and used in turn; what comes next is received while the stage works.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from localssl.parallel import guarded
from localssl.training.pipeline.place import Place, subgroup

AHEAD = 2  # messages that a stage may have sent before the first of them is taken
ACTIVITY, CONTEXT, REPORT = 1, 2, 3  # tags
ALIGNMENT = 64  # bytes, PyTorch's own: from another place the same product may have other last digits
BATCH, END = 0, 1  # orders; all others are the business of those who give and take them


@dataclass(frozen=True)
class Shapes:
    """What is sent.

    Args:
        negatives: (layers that are left, references, 2n), or () where nothing is drawn; of the whole batch where its
            samples are compared across replicas.
        activity: (2n, ...).
        dtype: of the activity.
    """

    negatives: tuple[int, ...]
    activity: tuple[int, ...]
    dtype: torch.dtype


class Message:
    """A buffer, and what lies where in it."""

    def __init__(self, shapes: Shapes, device: torch.device, pinned: bool):
        draws = math.prod(shapes.negatives) if shapes.negatives else 0
        middle = -(-8 * (1 + draws) // ALIGNMENT) * ALIGNMENT
        size = middle + math.prod(shapes.activity) * shapes.dtype.itemsize
        self.whole = torch.zeros(size, dtype=torch.uint8, device=device, pin_memory=pinned)
        self.order = self.whole[:8].view(torch.int64)
        self.negatives = self.whole[8 : 8 * (1 + draws)].view(torch.int64).view(shapes.negatives) if draws else None
        self.activity = laid_out(self.whole[middle:].view(shapes.dtype), shapes.activity)
        self.work: dist.Work | None = None

    def send(self, rank: int, group: dist.ProcessGroup | None, tag: int) -> None:
        """Begin to send it."""
        self.work = guarded(lambda: dist.isend(self.whole, group=group, tag=tag, group_dst=rank))

    def receive(self, rank: int, group: dist.ProcessGroup | None, tag: int) -> None:
        """Begin to receive it."""
        self.work = guarded(lambda: dist.irecv(self.whole, group=group, tag=tag, group_src=rank))

    def wait(self) -> None:
        """Until it has gone, or come."""
        if self.work is not None:
            self.work, work = None, self.work
            guarded(work.wait)


def laid_out(flat: Tensor, shape: Sequence[int]) -> Tensor:
    """Numbers that lie one after another as an activity; maps with channels last, as they are computed."""
    if len(shape) != 4:
        return flat.view(tuple(shape))
    n, channels, height, width = shape
    return flat.view(n, height, width, channels).permute(0, 3, 1, 2)


class Groups(NamedTuple):
    """The process groups of a replica for activity and for contexts, and where their buffers lie.

    With NCCL each has its own, for its messages pass in order. Gloo carries both in one, from the CPU.
    """

    activity: dist.ProcessGroup | None
    context: dist.ProcessGroup | None
    device: torch.device
    pinned: bool


def groups(device: torch.device, place: Place) -> Groups:
    """NCCL where every process has a CUDA device of its own, else gloo; to be called by all processes."""
    world = dist.get_world_size()
    alone = place.peers is not None or torch.cuda.device_count() >= world  # with peers: started as many as devices
    if device.type == "cuda" and alone:
        replicas = [[*range(first, first + place.stages)] for first in range(0, world, place.stages)]
        activity, context = (subgroup(replicas, place.patience, "nccl") for _ in range(2))
        return Groups(activity, context, device, False)
    return Groups(place.group, place.group, torch.device("cpu"), device.type == "cuda")


class Link:
    """The messages of one stage.

    Args:
        place: of the stage among others.
        groups: see there.
        device: where the stage computes.
        before, behind: what comes from the stage before and goes to the one behind; None at the ends.
        context: what the last stage sends to all others; None where nobody waits for it.
        staleness: batches that may wait in a stage, whose buffers are still in use.
    """

    def __init__(
        self,
        place: Place,
        groups: Groups,
        device: torch.device,
        before: Shapes | None,
        behind: Shapes | None,
        context: Shapes | None,
        staleness: int,
    ):
        self.rank, self.last = place.stage, place.stages - 1
        self.groups, self.device = groups, device

        def buffers(shapes: Shapes | None, count: int) -> deque[Message]:
            if shapes is None:
                return deque()
            return deque(Message(shapes, groups.device, groups.pinned) for _ in range(count))

        self.incoming = buffers(before, staleness + 2)
        self.outgoing = buffers(behind, AHEAD)
        self.contexts = buffers(context, staleness + 2 if self.rank < self.last else AHEAD * self.last)
        self.coming = self._expect() if self.incoming else None

    def receive(self) -> tuple[int, Tensor, Tensor | None]:
        """The next order, and with ``BATCH`` its activity and negatives; they stay for ``staleness`` + 1 batches."""
        message = self.coming
        assert message is not None
        message.wait()
        order = int(message.order)
        self.coming = None if order == END else self._expect()
        negatives = None if message.negatives is None else message.negatives.to(self.device)
        return order, message.activity.to(self.device), negatives

    def _expect(self) -> Message:
        message = _next(self.incoming)
        message.receive(self.rank - 1, self.groups.activity, ACTIVITY)
        return message

    def send(self, z: Tensor, negatives: Tensor | None) -> None:
        """Activity (2n, ...) to the stage behind."""
        message = _next(self.outgoing)
        message.wait()
        message.order.fill_(BATCH)
        message.activity.copy_(z)
        if message.negatives is not None and negatives is not None:
            message.negatives.copy_(negatives)
        message.send(self.rank + 1, self.groups.activity, ACTIVITY)

    def send_order(self, order: int) -> None:
        """An order to the stage behind, which reaches it after all activity."""
        if self.rank == self.last:
            return
        message = _next(self.outgoing)
        message.wait()
        message.order.fill_(order)
        message.send(self.rank + 1, self.groups.activity, ACTIVITY)

    def send_context(self, c: Tensor) -> None:
        """The last layer's readout (2n, d) to all other stages."""
        for rank in range(self.last):
            message = _next(self.contexts)
            message.wait()
            message.activity.copy_(c)
            message.send(rank, self.groups.context, CONTEXT)

    def expect_context(self) -> Callable[[], Tensor]:
        """Begin to receive the context of the batch that has just run; the answer waits for it."""
        message = _next(self.contexts)
        message.receive(self.last, self.groups.context, CONTEXT)

        def context() -> Tensor:
            message.wait()
            return message.activity.to(self.device)

        return context

    def flush(self) -> None:
        """Wait until everything that was sent has gone."""
        for message in (*self.outgoing, *(self.contexts if self.rank == self.last else ())):
            message.wait()


def _next(buffers: deque[Message]) -> Message:
    """The buffer that was used longest ago."""
    buffers.rotate(-1)
    return buffers[-1]


def send_bytes(data: bytes, place: Place, stage: int) -> None:
    """Bytes to a stage of the same replica, through gloo."""
    body = torch.frombuffer(bytearray(data or b"\0"), dtype=torch.uint8)
    for part in (torch.tensor([len(data)]), body):
        guarded(lambda part=part: dist.send(part, group=place.group, tag=REPORT, group_dst=stage))


def receive_bytes(place: Place, stage: int) -> bytes:
    """Bytes that a stage sends with ``send_bytes``."""

    def receive(part: Tensor) -> Tensor:
        guarded(lambda: dist.recv(part, group=place.group, tag=REPORT, group_src=stage))
        return part

    length = int(receive(torch.zeros(1, dtype=torch.int64)))
    return receive(torch.empty(max(1, length), dtype=torch.uint8)).numpy().tobytes()[:length]
