"""The first stage of a layer-parallel run: it feeds the blocks, and gathers what the others have learnt."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from localssl.training.pipeline import exchange
from localssl.training.pipeline.assembly import REPORT, ROW, STATES, WEIGHTS, Setup, stage
from localssl.training.pipeline.link import END, receive_bytes, send_bytes
from localssl.training.pipeline.place import ALONE, Place
from localssl.training.pipeline.processes import started
from localssl.training.pipeline.split import words
from localssl.training.pipeline.stage import Stage, draw
from localssl.training.prepared import Prepared


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

    def __init__(self, own: Stage, setup: Setup, place: Place):
        self.own, self.setup, self.place, self.prepared = own, setup, place, own.prepared
        self.others = range(1, place.stages)

    def feed(self, x: Tensor) -> None:
        """Send samples (2n, ...) on their way; what waited for this is learnt before.

        All replicas draw their negatives here, and must draw the same.
        """
        self.own.catch_up(self.prepared.config.staleness)
        _, compared = self.place.samples(self.prepared.config)
        self.own.take(x, draw(self.prepared.learner, compared, x.device))

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
        for other in self.others:
            sums_there, bad_there = json.loads(receive_bytes(self.place, other))
            sums, bad = sums + sums_there, bad + bad_there
            for _ in self.setup.layers(other) if weights or states else ():
                exchange.unpack(self.prepared, receive_bytes(self.place, other))
        return Report(torch.tensor(sums, device=self.prepared.device), bad)

    def forget(self) -> None:
        """Free the optimiser's state of the blocks that others train."""
        exchange.forget(self.prepared, range(self.own.layers.stop, self.own.count))


@contextmanager
def begun(prepared: Prepared, setup: Setup, place: Place = ALONE) -> Generator[First]:
    """Tell the other stages what to do, for as long as the context lasts; after an error in it they are told nothing.

    Args:
        prepared, setup: of the run.
        place: of this process. One that has no other stages starts them, and ends them after an error.

    Raises:
        UsageError: this program uses torch.distributed already.
        Lost: a process is gone; says which and why, as far as that can be known.
    """
    with ExitStack() as stack:
        if place.stages < setup.stages:
            stack.enter_context(started([words(setup.layers(other)) for other in range(1, setup.stages)]))
            place = Place(0, setup.stages)
        for other in range(1, place.stages):
            send_bytes(setup.to_bytes(), place, other)
        first = First(stage(prepared, setup, place), setup, place)
        if setup.resumed and first.others:
            for other in first.others:
                for layer in setup.layers(other):
                    send_bytes(exchange.packed(prepared, layer, states=True), place, other)
            first.forget()
        yield first
        if first.own.link is not None:
            first.own.link.send_order(END)
            first.own.link.flush()
