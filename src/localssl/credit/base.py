"""What a credit assignment is: how losses at the blocks come to an update of every block's weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from localssl.encoders import Encoder
from localssl.parallel import Processes
from localssl.rules.base import Batch, Projections, Rule


@dataclass(frozen=True)
class Step:
    """One batch under one rule: all that a credit assignment works with.

    Args:
        encoder: the blocks.
        rule: whose losses they are.
        projections: the rule's parts, and those that the credit assignment brought.
        x: what enters the first block, (N, ...).
        patches: of every block's readout.
        negatives: as given with the batch, or None.
        labels: as given with the batch, or None.
        drawn: choices of negatives that were drawn beforehand, as in ``Batch``, or None.
        factored: whether the gradient of a dense projection may be left as factors (``optimizer.leave_factors``).
        processes: those that the batch is spread over; x is then this process's part, the losses are the whole's.
        matrices: layers, from 0, whose changes of B each process makes from its own samples, to be summed up.
    """

    encoder: Encoder
    rule: Rule
    projections: Projections
    x: Tensor
    patches: Sequence[int | None]
    negatives: Tensor | None = None
    labels: Tensor | None = None
    factored: bool = False
    drawn: Iterator[Tensor] | None = None
    processes: Processes | None = None
    matrices: frozenset[int] = frozenset()

    def read(self, outputs: Sequence[Tensor]) -> Batch:
        """What the rule sees of the block outputs."""
        batch = Batch.read(outputs, self.patches, self.negatives, self.labels)
        if self.processes is not None:
            labels = None if self.labels is None else self.processes.gather(self.labels, views=1)
            batch = Batch([self.processes.gather(z) for z in batch.z], self.negatives, labels)
        return self.rule.with_negatives(batch)

    def losses(self, outputs: Sequence[Tensor]) -> Tensor:
        """The rule's losses of some block outputs."""
        return self.rule.losses(self.read(outputs), self.projections)


class Credit:
    """Base of all: the gradient of the sum of the losses, as far as the graph of ``activities`` reaches.

    Attributes:
        crosses: whether errors go from one block to another, and so need the derivative of all that lies in a block.
        repeated: whether weights must step between two updates of a batch; else they may as well after the last one.
    """

    crosses = True
    repeated = False

    def build(
        self, encoder: Encoder, rule: Rule, dims: Sequence[int], parts: Mapping[str, Sequence[nn.Module]]
    ) -> dict[str, list[nn.Module]]:
        """Parts of its own (feedback matrices, say), by key, next to the rule's.

        Args:
            encoder: the blocks.
            rule: whose updates it assigns.
            dims: ``dims[l]`` is the length of readout l.
            parts: what the rule has built.
        """
        return {}

    def check(self, rule: Rule, shapes: Sequence[tuple[int, ...]], patches: Sequence[int | None]) -> None:
        """Refuse block outputs of these shapes, read out over such patches, if they cannot be learnt from."""

    def activities(self, encoder: Encoder, x: Tensor) -> list[Tensor]:
        """Every block's output for inputs x (N, ...), in the graph that the losses are read from."""
        raise NotImplementedError

    def updates(self, step: Step) -> Iterator[Tensor]:
        """Add an update to ``.grad`` and yield the losses (detached); the optimiser steps between two of them.

        All but a few (incremental predictive coding) yield once a batch.
        """
        losses = step.losses(self.activities(step.encoder, step.x))
        losses.sum().backward()  # pyright: ignore[reportUnknownMemberType]
        yield losses.detach()
