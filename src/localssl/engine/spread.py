"""The batches of several processes that share one: all samples in each, or each with its own."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from typing_extensions import override

from localssl import traffic
from localssl.engine.factors import Among, parameters
from localssl.parallel import Processes, Route
from localssl.rules.base import Batch, Projections, Rule, ScoreRule


def sources(rule: ScoreRule, layers: int) -> list[tuple[int, ...]]:
    """For every layer the layers that its references come from."""
    return [tuple(r.source(layer, layers) for r in rule.references.values()) for layer in range(layers)]


def seen_by_all(rule: ScoreRule, layers: int, matrices: frozenset[int]) -> frozenset[int]:
    """The layers whose readouts go to all processes, where the changes of B of some layers are summed as matrices."""
    return traffic.gathered(sources(rule, layers), matrices)


def sizes(rule: Rule, projections: Projections, lengths: Sequence[int], images: int, processes: int) -> traffic.Sizes:
    """What the traffic of an update depends on.

    Args:
        rule, projections: a score rule, and its B.
        lengths: of the readouts.
        images: of each process.
        processes: how many.
    """
    assert isinstance(rule, ScoreRule)
    found: list[traffic.Layer] = []
    for layer, (d, known) in enumerate(zip(lengths, sources(rule, len(lengths)), strict=True)):
        weights = sum(p.numel() for p in parameters(rule, projections, layer) if p.requires_grad)
        found.append(traffic.Layer(d, known, weights))
    return traffic.Sizes(tuple(found), 2 * images, processes, rule.negatives == "random")


class Gathered(Among):
    """The samples of the whole batch, which this process has."""

    def __init__(self, processes: Processes):
        self.processes = processes

    @override
    def own(self, signal: Tensor) -> Tensor:
        return self.processes.own(signal)


class Apart(Among):
    """The samples of the whole batch, of which this process has its own.

    A negative comes from its process, and what is said to it goes there.
    """

    def __init__(self, processes: Processes):
        self.processes = processes

    @override
    def draw(self, rule: ScoreRule, batch: Batch) -> Tensor:
        whole = batch.z[0].new_empty(self.count(batch), 0)
        negatives = rule.draw(Batch([whole], batch.negatives, drawn=batch.drawn))
        self.route = Route(self.processes, negatives)
        return negatives

    @override
    def count(self, batch: Batch) -> int:
        return self.processes.size * 2 * batch.n

    @override
    def take(self, negatives: Tensor, z_pos: Tensor) -> Tensor:
        return self.route.take(z_pos)

    @override
    def give(self, negatives: Tensor, rows: Tensor, signal: Tensor) -> None:
        self.route.give(rows, signal)

    @override
    def mean(self, loss: Tensor) -> Tensor:
        return self.processes.sum(loss) / self.processes.size
