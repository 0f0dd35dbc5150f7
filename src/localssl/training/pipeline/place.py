"""Where a process stands in a layer-parallel run: which stage it is, and who has the same one of other replicas."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist

from localssl.parallel import PATIENCE, Processes
from localssl.runs.config import RunConfig


@dataclass(frozen=True)
class Place:
    """The place of this process. With nothing given it has all blocks, and all of the batch.

    Args:
        stage, stages: its number in its replica, and how many there are.
        group: the replica's processes in the order of their stages, through gloo; None: all processes that there are.
        peers: those of this stage in all replicas, each with its part of the batch; None: there is one replica.
        patience: how long this process waits for another.
    """

    stage: int = 0
    stages: int = 1
    group: dist.ProcessGroup | None = None
    peers: Processes | None = None
    patience: timedelta = PATIENCE

    @property
    def speaks(self) -> bool:
        """Whether this process writes and reports, of those of its stage."""
        return self.peers is None or self.peers.rank == 0

    def samples(self, config: RunConfig) -> tuple[int, int]:
        """Samples of a batch that run through this stage's blocks, and those that they are compared with."""
        whole = 2 * config.batch_size
        own = whole if self.peers is None else whole // self.peers.size
        return own, whole if config.across == "all" else own


ALONE = Place()


def place(world: Processes, stages: int, patience: timedelta = PATIENCE) -> Place:
    """The place of this process among all: number r is stage r % P of replica r // P, all of one machine if it can be.

    To be called by every process of the world at the same time. ``patience``: how long a process waits for another.
    """
    if stages == 1:
        return Place(peers=world, patience=patience)
    replicas = [[*range(first, first + stages)] for first in range(0, world.size, stages)]
    same_stage = [list(ranks) for ranks in zip(*replicas, strict=True)]
    group = subgroup(replicas, patience, "gloo")
    return Place(world.rank % stages, stages, group, Processes(world.device, subgroup(same_stage, patience)), patience)


def subgroup(ranks: list[list[int]], patience: timedelta, backend: str | None = None) -> dist.ProcessGroup:
    """The group of this process, of groups that all of the world make at the same time; by default with its backend."""
    own, _ = dist.new_subgroups_by_enumeration(ranks, timeout=patience, backend=backend)
    assert isinstance(own, dist.ProcessGroup)
    return own
