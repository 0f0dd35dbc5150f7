"""The first process of a layer-parallel run: it feeds the blocks, and gathers what the others have learnt."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from localssl.pipeline import exchange
from localssl.pipeline.assembly import REPORT, ROW, STATES, WEIGHTS, Setup, stage
from localssl.pipeline.link import END, receive_bytes, send_bytes
from localssl.pipeline.processes import started
from localssl.pipeline.split import words
from localssl.pipeline.stage import Stage, draw
from localssl.prepared import Prepared


@dataclass(frozen=True)
class Report:
    """What all stages say when every batch is learnt.

    Args:
        sums: of the losses of every block since the last row, float32, (L,).
        bad: parameters that are not finite.
    """

    sums: Tensor
    bad: list[str]


class First:
    """The first stage, and the way to all others; with one stage alone, that of the whole network."""

    def __init__(self, own: Stage, setup: Setup):
        self.own, self.setup, self.prepared = own, setup, own.prepared
        self.others = range(1, len(setup.bounds) - 1)

    def feed(self, x: Tensor) -> None:
        """Send samples (2n, ...) on their way; what waited for this is learnt before."""
        self.own.catch_up(self.prepared.config.staleness)
        self.own.take(x, draw(self.prepared.learner, x))

    def settle(self, row: bool = False, weights: bool = False, states: bool = False) -> Report:
        """Wait until all batches are learnt.

        Args:
            row: count the losses anew from here on.
            weights: take over the weights that the others have.
            states: and their optimisers' state, until ``forget``.
        """
        if self.others:
            assert self.own.link is not None
            flags = zip((row, weights, states), (ROW, WEIGHTS, STATES), strict=True)
            self.own.link.send_order(REPORT + sum(bit for wanted, bit in flags if wanted))
        self.own.catch_up()
        sums, bad = self.own.sums.tolist(), []
        if row:
            self.own.sums.zero_()
        for rank in self.others:
            of_rank, bad_there = json.loads(receive_bytes(rank))
            sums, bad = sums + of_rank, bad + bad_there
            for _ in self.setup.layers(rank) if weights or states else ():
                exchange.unpack(self.prepared, receive_bytes(rank))
        return Report(torch.tensor(sums, device=self.prepared.device), bad)

    def forget(self) -> None:
        """Free the optimiser's state of the blocks that others train."""
        exchange.forget(self.prepared, range(self.own.layers.stop, self.own.count))


@contextmanager
def begun(prepared: Prepared, setup: Setup) -> Generator[First]:
    """Start the other processes, for as long as the context lasts; after an error in it they are ended.

    Raises:
        UsageError: this program uses torch.distributed already.
        Lost: a process is gone; says which and why, as far as that can be known.
    """
    if len(setup.bounds) == 2:
        yield First(stage(prepared, setup), setup)
        return
    with started([words(setup.layers(rank)) for rank in range(1, len(setup.bounds) - 1)]):
        for rank in range(1, len(setup.bounds) - 1):
            send_bytes(setup.to_bytes(), rank)
        first = First(stage(prepared, setup), setup)
        if setup.resumed:
            for rank in first.others:
                for layer in setup.layers(rank):
                    send_bytes(exchange.packed(prepared, layer, states=True), rank)
            first.forget()
        yield first
        assert first.own.link is not None
        first.own.link.send_order(END)
        first.own.link.flush()
