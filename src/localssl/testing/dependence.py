"""Checks of what an update depends on: the blocks above, references, labels."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from localssl import encoders
from localssl.inputs import Inputs
from localssl.learner import Learner
from localssl.projections import Dense
from localssl.references import Reference
from localssl.rules import Batch, Rule, ScoreRule
from localssl.rules.predictive_coding import PredictiveCoding
from localssl.testing.bench import Bench, Feed, Skip, Update, of_layer, require, same, update
from localssl.testing.comparing import TO_ROUNDING, distance, listed, parameters_of
from localssl.testing.descent import Weighted

WAY_ON = (
    "; a score rule declares what it takes from there as its references, another rule says why: exceptions = "
    '{"locality": "…"}'
)
TOLD_ALONE = ("direct-feedback-alignment",)  # one loss for all blocks, of which only its error at the top comes down


def locality(bench: Bench) -> None:
    """Nothing from above changes a block's update, to the last bit, but what its declared references take from there.

    Blocks and projections above get other weights; outputs that are declared references keep their values. So does the
    last output where every block is told its error and nothing else.
    """
    told = bench.rule.credit in TOLD_ALONE
    _no_part_in_common(bench)
    count = len(bench.learner().encoder.blocks)
    for layer in range(count - 1):
        before, feed = bench.learner(), bench.feed()
        after = copy.deepcopy(before)
        _disturb(after, layer)
        kept = {count - 1} if told else _sources(bench.rule, range(layer + 1), count) - set(range(layer + 1))
        _hold(kept, before, after, feed)
        one, other = update(before, feed), update(after, feed)
        held = f", though the references (blocks {sorted(s + 1 for s in kept)}) kept their values" if kept else ""
        _same_below(layer, before, one, other, "other", held + WAY_ON)
        for lower in range(layer + 1):
            require(
                same(*(u.losses[0 if told else lower] for u in (one, other))),
                f"other weights above block {layer + 1} change the loss of block {lower + 1}{held}{WAY_ON}",
            )


def _same_below(layer: int, learner: Learner, one: Update, other: Update, weights: str, held: str) -> None:
    """Require that other weights above ``layer`` change no update up to it."""
    for lower in range(layer + 1):
        changed = one.differences(other, of_layer(learner, lower))
        require(
            not changed,
            f"{weights} weights above block {layer + 1} change the update of block {lower + 1} "
            f"({listed(changed)}){held}",
        )


def _hold(kept: set[int], before: Learner, after: Learner, feed: Feed) -> None:
    """Keep the outputs of these blocks at the values that they have before."""
    torch.manual_seed(0)
    with torch.no_grad():
        outputs = before.encoder(before.enter(feed.a, feed.b, feed.negatives, feed.labels))
    for learner in (before, after):
        for source in kept:
            learner.encoder.blocks[source] = _Held(learner.encoder.blocks[source], outputs[source])


def transport(bench: Bench) -> None:
    """No error comes through forward weights: those above, four times as large, change no update, to the last bit.

    Biases grow so that every drive does and every gate and maximum stays; the last output keeps its value. Predictive
    coding is told of drives, by the errors of the layers above: there all of them keep their values instead, the head's
    too, which is a layer above the last block.
    """
    if isinstance(bench.rule, PredictiveCoding):
        _transport_to_states(bench)
        return
    options = encoders.Options(**bench.rule.encoder_options)
    if options.norm is not None or options.activation not in ("relu", "relu-ste", "triangle"):
        raise Skip("its encoder has norms or an activation whose slope changes with the drive's size")
    count = len(bench.learner().encoder.blocks)
    for layer in range(count - 1):
        before, feed = bench.learner(), bench.feed()
        after = copy.deepcopy(before)
        with torch.no_grad():
            for above in range(layer + 1, count):
                for name, parameter in after.encoder.blocks[above].named_parameters():
                    parameter.mul_(4.0 ** (above - layer) if name.endswith("bias") else 4.0)
        _hold({count - 1}, before, after, feed)
        one, other = update(before, feed), update(after, feed)
        _same_below(layer, before, one, other, "larger", ", though all gates and the last output stay")


def _transport_to_states(bench: Bench) -> None:
    count = len(bench.learner().encoder.blocks)
    for layer in range(count):
        before, feed = bench.learner(), bench.feed()
        after = copy.deepcopy(before)
        for learner, factor in ((before, 1.0), (after, 4.0)):
            places = [*learner.encoder.blocks[layer + 1 :], *learner.projections.values()]
            for module in (m for place in places for m in place.modules()):
                if isinstance(module, Weighted) and not isinstance(module, Dense):
                    _keep_drive(module, factor)
        one, other = update(before, feed), update(after, feed)
        _same_below(layer, before, one, other, "larger", ", though all that leaves those layers stays")


@torch.no_grad()
def _keep_drive(module: Weighted, factor: float) -> None:
    """Multiply a layer's weights; its drive keeps its value, and its graph goes through the new weights."""
    as_it_was = copy.deepcopy(module)
    module.weight.mul_(factor)

    def hook(_: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        with torch.no_grad():
            value = as_it_was(*args)
        return value + (output - output.detach())  # exactly 0

    module.register_forward_hook(hook)


def _no_part_in_common(bench: Bench) -> None:
    """A part that is no layer's own, trained by the losses of several, carries what is above down at the next step."""
    learner, feed = bench.learner(), bench.feed()
    own = {name for layer in range(len(learner.encoder.blocks)) for name in of_layer(learner, layer)}
    common = {n: p for n, p in learner.named_parameters() if n not in own and p.requires_grad}
    if not common:
        return
    losses = learner.losses(feed.a, feed.b, feed.negatives, feed.labels)
    for name, parameter in common.items():
        grads = [torch.autograd.grad(loss, parameter, retain_graph=True, allow_unused=True)[0] for loss in losses]
        reached = [i + 1 for i, grad in enumerate(grads) if grad is not None and bool(grad.any())]
        require(len(reached) < 2, f"{name} is trained by the losses of blocks {reached}: give every layer its own")


def _sources(rule: Rule, layers: range, count: int) -> set[int]:
    declared: Mapping[str, Reference] = getattr(rule, "references", {})
    return {reference.source(layer, count) for reference in declared.values() for layer in layers}


@torch.no_grad()
def _disturb(learner: Learner, above: int) -> None:
    """New weights for every block above and for its projections."""
    generator = torch.Generator().manual_seed(99)
    names = [name for layer in range(above + 1, len(learner.encoder.blocks)) for name in of_layer(learner, layer)]
    for _, parameter in parameters_of(learner, names):
        parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))


class _Held(nn.Module):
    """A block whose output stays at a value while its graph stays whole: held + (z - z), and z - z is exactly 0.

    A gradient that leaked down from above still passes, through the changed weights.
    """

    def __init__(self, block: nn.Module, held: Tensor) -> None:
        super().__init__()
        self.block, self.held = block, held

    def forward(self, x: Tensor) -> Tensor:
        """The value; the gradient is the block's."""
        z = self.block(x)
        return self.held + (z - z.detach())


def references(bench: Bench) -> None:
    """No gradient reaches a reference, nor what else the rule declares constant (`constants`).

    The activities are leaves here. Score rules of the two views: dL/dz in closed form for f linear. Rules with
    ``constants``: the parts are set to zero but one, whose terms then are all that can send a gradient. All: a loss
    does not reach the activities of other layers than its own.
    """
    held = _constants(bench)
    if getattr(bench.rule, "references", {}):
        _declared_references(bench)
    elif not held:
        raise Skip("under these options it declares nothing constant")


def _constants(bench: Bench) -> bool:
    """Whether any is declared; none gets a gradient."""
    learner, feed = bench.learner(), bench.feed()
    torch.manual_seed(0)
    given = learner.batch(feed.a, feed.b, feed.negatives, feed.labels)
    z = [h.detach().requires_grad_() for h in given.z]
    maps = [h.detach() for h in given.maps]

    def signals(part: str | None) -> list[Tensor]:
        """dL/dz of every layer with all parts at zero but one."""
        alone = copy.deepcopy(learner)
        with torch.no_grad():
            for other, modules in alone.parts.items():
                for parameter in (p for m in modules for p in m.parameters() if other != part):
                    parameter.zero_()
        torch.manual_seed(0)
        losses = learner.rule.losses(Batch(z, feed.negatives, feed.labels, maps), alone.parts)
        if not losses.requires_grad:
            return [torch.zeros_like(h) for h in z]
        grads: tuple[Tensor | None, ...] = torch.autograd.grad(losses.sum(), z, allow_unused=True)
        return [torch.zeros_like(h) if g is None else g for h, g in zip(z, grads, strict=True)]

    declared = {part: list(learner.rule.constants(part, len(z[0]))) for part in learner.parts}
    if not any(declared.values()):
        return False
    without = signals(None)
    for part, held in declared.items():
        for layer, (grad, rest) in enumerate(zip(signals(part), without, strict=True), start=1):
            change = grad - rest
            require(bool(change.any()) or not held, f"block {layer} gets no gradient by part {part!r}: nothing to see")
            reached = [i for i in held if bool(change[i].any())]
            require(
                not reached,
                f"the terms of part {part!r} have a gradient into samples {reached[:3]} of block {layer}, which are "
                f"declared constant",
            )
    return True


def _declared_references(bench: Bench) -> None:
    learner, feed, rule = bench.learner(), bench.feed(), bench.rule
    torch.manual_seed(0)
    given = learner.batch(feed.a, feed.b, feed.negatives, feed.labels)
    z = [h.detach().requires_grad_() for h in given.z]
    scores = isinstance(rule, ScoreRule) and type(learner.inputs) is Inputs
    linear = dataclasses.replace(rule, f="linear") if scores else rule  # pyright: ignore[reportCallIssue]
    losses = linear.losses(Batch(z, feed.negatives, feed.labels, [h.detach() for h in given.maps]), learner.parts)
    layers = range(len(z)) if rule.per_layer else [len(z) - 1]
    require(len(losses) == len(layers), f"{len(losses)} losses, expected {len(layers)}")
    for i, layer in enumerate(layers):
        grads: tuple[Tensor | None, ...] = (
            torch.autograd.grad(losses[i], z, retain_graph=True, allow_unused=True)
            if losses[i].requires_grad
            else (None,) * len(z)
        )
        for other, grad in enumerate(grads):
            reached = other != layer and grad is not None and bool(grad.any())
            require(not reached, f"the loss of block {layer + 1} has a gradient into block {other + 1}'s activity")
        if isinstance(linear, ScoreRule) and scores and feed.negatives is not None:
            expected = _linear_signal(linear, z, learner, i, layer, feed.negatives)
            off = distance(grads[layer], expected)
            require(
                off < TO_ROUNDING,
                f"dL/dz of block {layer + 1} is not what its targets alone give for f linear "
                f"(off by {off:.1g} of its length): a gradient into the reference?",
            )


def _linear_signal(
    rule: ScoreRule, z: list[Tensor], learner: Learner, place: int, layer: int, negatives: Tensor
) -> Tensor:
    """dL/dz of a score rule with f linear: every sample as a positive and as a negative; nothing as a reference."""
    total = len(z[layer])
    samples = torch.arange(total)
    positives = (samples + total // 2) % total
    expected = torch.zeros_like(z[layer])
    with torch.no_grad():
        for key, reference in rule.references.items():
            g = learner.parts[key][place](z[reference.source(layer, len(z))]) / total
            expected.index_add_(0, positives, -g)
            expected.index_add_(0, positives[negatives], g)
    return expected


def labels(bench: Bench) -> None:
    """Labels change nothing, and need not be there: the rule does not declare ``uses_labels``."""
    feed = bench.feed()
    assert feed.labels is not None
    one = update(bench.learner(), feed)
    for other, what in ((feed.labels.flip(0), "other labels change"), (None, "absent labels change")):
        found = update(bench.learner(), dataclasses.replace(feed, labels=other))
        changed = one.differences(found)
        require(same(one.losses, found.losses), f"{what} the losses, and uses_labels is not declared")
        require(not changed, f"{what} the update of {listed(changed)}, and uses_labels is not declared")
