"""The certificate of one rule: a verdict with its reasons, from the trace of one real update."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from localssl.certificate.costs import Cost, costs
from localssl.certificate.reading import ERROR, GRADIENT, INSIDE, MANY, READS, REASONS, Read, read
from localssl.certificate.tracing import interactions, trace
from localssl.errors import UsageError
from localssl.learner import Learner
from localssl.rules import Rule
from localssl.testing.bench import benches, the_rule

IMAGES = (10, 11, 13, 17, 19)  # in a batch; the first that makes no number of samples that is a number of units, too
LARGE = 48  # images of a second batch, for rules whose samples interact widely in the first


@dataclass(frozen=True)
class Certificate:
    """What one update of a rule read, and what it cost.

    Args:
        rule: the rule's name.
        reads: all that was read, by parameter.
        layers: number of blocks.
        samples: number of samples that entered the encoder.
        cost: of all layers, one sample.
        layer_costs: of every layer.
        labels_enter: whether the labels are part of what enters the encoder.
        silent: parameters whose update was zero or not there, of which nothing is known.
    """

    rule: str
    reads: tuple[Read, ...]
    layers: int
    samples: int
    cost: Cost
    layer_costs: tuple[Cost, ...]
    labels_enter: bool
    silent: tuple[str, ...]

    @cached_property
    def reasons(self) -> tuple[str, ...]:
        """Why the rule is not local (or block-local), without repetition; () where it is local."""
        found = {r.reason for r in self.reads if r.reason}
        if GRADIENT in found:  # which brings the error along
            found.discard(ERROR)
        return tuple(reason for reason in REASONS if reason in found)

    @property
    def verdict(self) -> str:
        """ "local", "block-local" (gradients stay inside blocks of several layers) or "not local"."""
        if not self.reasons:
            return "local"
        return "block-local" if self.reasons == (INSIDE,) else "not local"

    @property
    def distance(self) -> int:
        """Layers between a weight and the farthest thing that its update read."""
        return max((r.distance for r in self.reads), default=0)

    @property
    def untraced(self) -> tuple[int, ...]:
        """Blocks without an update, of which nothing can be said."""
        traced = {r.layer for r in self.reads if r.of == "ΔW"}
        return tuple(layer for layer in range(1, self.layers + 1) if layer not in traced)

    def names(self, of: str, layer: int | None = None) -> tuple[str, ...]:
        """What ΔW or ΔB read, without repetition: of all layers, or of one."""
        found = {r.what for r in self.reads if r.of == of and layer in (None, r.layer)}
        return tuple(what for what in READS if what in found)

    def because(self, reason: str) -> tuple[Read, ...]:
        """What stands behind a reason."""
        return tuple(r for r in self.reads if r.reason == reason)


def certify(subject: Learner | Rule | type[Rule] | str, seed: int = 0) -> Certificate:
    """Trace one update and say what it read.

    Args:
        subject: a rule, its class, its name or PATH.py:CLASS, which is traced on a small network of three blocks; or a
            learner, of which a copy is traced in float64 on the CPU with random images.
        seed: of images, labels and whatever the rule draws.

    Raises:
        UsageError: no such rule, or no small network that it takes.
    """
    with torch.random.fork_rng(), torch.enable_grad():
        if isinstance(subject, Learner):
            learner = copy.deepcopy(subject).cpu().double().train()
        else:
            learner = benches(the_rule(subject))[0][0].learner()
        batch = _batch(learner, _images(learner), seed)
        found = trace(copy.deepcopy(learner), *batch, seed)
        if max(found.interacting.values(), default=0) > MANY:  # a mean, or a chain of pairs that ends somewhere?
            far = interactions(copy.deepcopy(learner), *_batch(learner, LARGE, seed), seed)
            found = replace(found, far=far)
        torch.manual_seed(seed)
        cost, layer_costs = costs(copy.deepcopy(learner), *batch, found.samples)
    return Certificate(
        rule=learner.rule.name or type(learner.rule).__name__,
        reads=tuple(read(found, learner)),
        layers=len(learner.encoder.blocks),
        samples=found.samples,
        cost=cost,
        layer_costs=tuple(layer_costs),
        labels_enter=found.labels_enter,
        silent=tuple(found.zero),
    )


def count(learner: Learner, seed: int = 0) -> tuple[Cost, tuple[Cost, ...]]:
    """What one update of a learner costs a sample, as in its certificate: of all layers, and of every layer."""
    with torch.random.fork_rng(), torch.enable_grad():
        learner = copy.deepcopy(learner).cpu().double().train()
        batch = _batch(learner, _images(learner), seed)
        torch.manual_seed(seed)
        samples = len(learner.inputs(batch[0], batch[1], None, batch[2]))
        cost, layer_costs = costs(learner, *batch, samples)
    return cost, tuple(layer_costs)


def _batch(learner: Learner, n: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Two views of n random images, (n, C, H, W) each, and labels (n,), all classes in turn."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(n, *learner.input_shape, generator=generator, dtype=torch.float64)
    a, b = (image + 0.3 * torch.randn(image.shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return a, b, torch.arange(n) % int(getattr(learner.rule, "classes", 10))


def _images(learner: Learner) -> int:
    """How many images: so that a row of one number a sample cannot be taken for one of one number a unit."""
    taken = {size for p in (*learner.parameters(), *learner.buffers()) for size in p.shape}
    taken |= {size for shape in learner.output_shapes for size in (*shape, math.prod(shape[1:]))}
    shape = learner.inputs.shape(learner.input_shape)
    for n in IMAGES:
        views = torch.zeros(n, *learner.input_shape, dtype=torch.float64)
        samples = len(learner.inputs(views, views, None, torch.zeros(n, dtype=torch.long)))
        if samples not in taken | set(shape):
            return n
    raise UsageError(
        f"no batch of {', '.join(map(str, IMAGES))} images has a number of samples that is not a number of units, too; "
        "certify the rule on another width"
    )
