"""Some consecutive blocks of a network: they run, and learn when what they need from above is there."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from localssl.data import order
from localssl.encoders import run_block
from localssl.engine import passes
from localssl.engine.blocks import plan
from localssl.engine.three_factor import above, gathered, learn_block, make_changes, read
from localssl.errors import RunError
from localssl.learner import Learner
from localssl.parallel import Processes
from localssl.rules.base import Batch, ScoreRule
from localssl.training import divergence
from localssl.training.pipeline.exchange import names
from localssl.training.pipeline.link import Link
from localssl.training.prepared import Prepared

Negatives = Tensor | None  # (layers that are left, references, 2n), or None where nothing is drawn


class Graph(NamedTuple):
    """What is kept of a block that autograd ran: its output, with the block's graph, and without."""

    out: Tensor
    z: Tensor


Kept = passes.Passed | Graph


@dataclass
class Waiting:
    """A batch that has run and is not learnt yet: what is kept of every block, or of ``hebbian-lean`` its input."""

    kept: list[Kept]
    x: Tensor
    negatives: Negatives
    context: Callable[[], Tensor]


class Stage:
    """Blocks of a learner, in the process that trains them.

    Args:
        prepared: the whole learner; the stage changes its own blocks and projections only.
        layers: the blocks, from 0.
        step, last_step: steps that are done, and of the whole run: the learning rate follows them.
        link: to the stages before and behind; None where there are none.
        images: that are trained on, 0 where that is not known: an error names those of the batch.
        peers: that train the same blocks on other parts of the batch, as the configuration's ``across`` says.

    Attributes:
        sums: of the losses of its blocks, float32, (blocks,); whoever reads them may set them.
    """

    def __init__(
        self,
        prepared: Prepared,
        layers: range,
        step: int,
        last_step: int,
        link: Link | None,
        images: int = 0,
        peers: Processes | None = None,
    ):
        rule = prepared.learner.rule
        assert isinstance(rule, ScoreRule)
        self.prepared, self.rule, self.layers, self.link = prepared, rule, layers, link
        self.learner = prepared.learner
        self.step, self.last_step, self.images = step, last_step, images
        self.across, self.apart = (peers, None) if prepared.config.across == "all" else (None, peers)
        self.count = len(self.learner.encoder.blocks)
        parameters = dict(prepared.learner.named_parameters())
        own = {layer: [name for name in names(prepared, layer) if name in parameters] for layer in layers}
        self.named = {layer: [(name, parameters[name]) for name in found] for layer, found in own.items()}
        self.waits = bool(above(rule, self.count))
        self.lean = self.waits and self.learner.engine == "hebbian-lean"
        found = "autograd" if self.learner.engine == "autograd" else plan(self.learner.encoder)
        self.blocks = None if isinstance(found, str) else found
        matrices: frozenset[int] = frozenset()
        if self.across is not None and self.blocks is not None:
            matrices = self.learner.matrices(self.across, prepared.config.batch_size // self.across.size)
        factored = prepared.factored and self.apart is None  # a mean is taken of gradients, not of factors
        common = self.learner.step_of(torch.empty(0))
        self.common = replace(common, factored=factored, processes=self.across, matrices=matrices)  # of all batches
        self.waiting: deque[Waiting] = deque()
        self.sums = torch.zeros(len(layers), device=prepared.device)

    @property
    def gathers_context(self) -> bool:
        """Whether the last block's readout goes to all peers."""
        return self.count - 1 in gathered(self.common)

    @property
    def is_last(self) -> bool:
        """Whether the network ends here."""
        return self.layers.stop == self.count

    def take(self, x: Tensor, negatives: Negatives = None) -> None:
        """Run a batch, the activity (2n, ...) of the block below, and hand on what comes out.

        Without references from above it is learnt at once, block by block; else it waits for ``catch_up``.
        """
        with self._autocast():
            if self.waits:
                self.waiting.append(self._run(x, negatives))
                return
            drawn = self._begin(negatives)
            for layer in self.layers:
                kept = self._run_block(layer, x)
                x = kept.z
                if layer == self.layers[-1]:
                    self._hand_on(x, negatives)
                self._learn_block(layer, kept, x, drawn, None)
            self.step += 1

    def catch_up(self, allowed: int = 0) -> None:
        """Learn from the oldest batches until no more than ``allowed`` wait; their contexts are waited for."""
        with self._autocast():
            while len(self.waiting) > allowed:
                self._learn(self.waiting.popleft())

    def _run(self, x: Tensor, negatives: Negatives) -> Waiting:
        kept: list[Kept] = []
        z = x
        for layer in self.layers:
            one = self._run_block(layer, z, keep=not self.lean)
            z = one.z
            if not self.lean:
                kept.append(one)
        self._hand_on(z, negatives)
        if not self.is_last:
            assert self.link is not None
            return Waiting(kept, x, negatives, self.link.expect_context())
        context = read(self.common, z, self.count - 1)
        if self.link is not None:
            self.link.send_context(context)
        return Waiting(kept, x, negatives, lambda: context)

    def _learn(self, batch: Waiting) -> None:
        context = batch.context()
        drawn = self._begin(batch.negatives)
        batch.kept.reverse()  # taken from the end, so that each is freed as soon as it is learnt
        x = batch.x
        for layer in self.layers:
            kept = self._run_block(layer, x) if self.lean else batch.kept.pop()
            x = kept.z if self.lean else x
            self._learn_block(layer, kept, batch.x, drawn, context)
        self.step += 1

    def _begin(self, negatives: Negatives) -> Iterator[Tensor] | None:
        """Set the rate of the coming step; the negatives of these blocks, in the order of their use."""
        self.prepared.set_rate(self.step, self.last_step)
        return None if negatives is None else iter(negatives[: len(self.layers)].flatten(0, 1))

    def _hand_on(self, z: Tensor, negatives: Negatives) -> None:
        if self.link is not None and not self.is_last:
            self.link.send(z, None if negatives is None else negatives[len(self.layers) :])

    def _run_block(self, layer: int, x: Tensor, keep: bool = True) -> Kept:
        if self.blocks is not None:
            with torch.no_grad():
                return passes.run(self.blocks[layer], x, keep)
        out = run_block(self.learner.encoder.blocks[layer], x.detach(), layer + 1)
        return Graph(out, out.detach())

    def _learn_block(
        self, layer: int, kept: Kept, x: Tensor, drawn: Iterator[Tensor] | None, context: Tensor | None
    ) -> None:
        """One block's update, applied."""
        p = self.prepared
        known = {} if context is None else {self.count - 1: context}
        if isinstance(kept, Graph):
            loss = self.rule.layer_loss(self._batch(layer, kept.out, known, drawn), layer, self.learner.parts)
            loss.backward()  # pyright: ignore[reportUnknownMemberType]
        else:
            assert self.blocks is not None
            step = replace(self.common, x=x, drawn=drawn)
            loss, changes = learn_block(step, self.rule, self.blocks[layer], kept, known, layer)
            make_changes(step, self.rule, changes, layer)
        self._join(layer)
        if bad := divergence.not_finite(self.named[layer], loss[None], [f"loss_{layer + 1}"]):
            raise self._failed(layer, kept.z, bad)
        p.optimizer.step()
        p.optimizer.zero_grad()
        self.sums[layer - self.layers.start] += loss.detach()

    def _join(self, layer: int) -> None:
        """Make the gradients of a block's own part of the batch those of the whole, or the mean over all parts."""
        if self.across is not None:  # a projection's are whole already
            self.across.add_up(self.learner.encoder.blocks[layer].parameters())
        elif self.apart is not None:
            self.apart.average(p for _, p in self.named[layer])

    def _failed(self, layer: int, z: Tensor, bad: list[str]) -> RunError:
        """The error for a batch that a block cannot learn from: nothing of it was applied here."""
        config = self.prepared.config
        what = bad if bool(z.isfinite().all()) else ["its activity", *bad]
        batch = order.batch_of(config.seed, self.step, self.images, config.batch_size).tolist() if self.images else []
        found = divergence.Finding(self.step + 1, layer + 1, what, batch, "stop")
        return RunError(f"{found}; start anew with a lower --lr and another --out")

    def _batch(self, layer: int, out: Tensor, known: dict[int, Tensor], drawn: Iterator[Tensor] | None) -> Batch:
        """What the rule sees of a batch in this stage."""
        here = read(self.common, out, layer)
        z: Sequence[Tensor] = [here if i == layer else known.get(i, here[:, :0]) for i in range(self.count)]
        return Batch(z, drawn=drawn)

    def _autocast(self) -> AbstractContextManager[object]:
        return self.prepared.fabric.autocast()


def draw(learner: Learner, samples: int, device: torch.device) -> Negatives:
    """The negatives of all layers and references for 2n ``samples``, in the order in which one process draws them.

    None where nothing is drawn.
    """
    rule = learner.rule
    assert isinstance(rule, ScoreRule)
    if rule.negatives != "random":
        return None
    layers, stub = len(learner.encoder.blocks), Batch([torch.empty(samples, 0, device=device)])
    return torch.stack([torch.stack([rule.draw(stub) for _ in rule.references]) for _ in range(layers)])
