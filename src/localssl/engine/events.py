"""The update as a synapse sees it: one view at a time, one event positive or negative (paper equation 6, unbatched)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from localssl import losses, readout
from localssl.credit import Step
from localssl.engine import factors, passes
from localssl.engine.blocks import plan
from localssl.engine.choice import refusal
from localssl.errors import UsageError
from localssl.rules.base import Batch, ScoreRule


class Event(NamedTuple):
    """One view presented after another.

    Args:
        context: the sample whose readout is the reference, 0..2n-1.
        sample: the one presented after it.
        sign: 1, the other view of the same image; -1, a negative.
        modulators: by reference, sign · γ of every layer (L,), what is broadcast to its synapses; with the hinge 1, 0
            or -1.
    """

    context: int
    sample: int
    sign: int
    modulators: dict[str, Tensor]


def events(step: Step) -> Iterator[Event]:
    """Every event of a batch: each sample twice the context, once of its positive and once of its negative.

    Before it is yielded, an event's gradient is added to ``.grad``: with γ its modulator, dL/dW = -γ · pre · gate ·
    (Bc) and dL/dB = -γ · z · cᵀ, over 2n. Their sum is the batch's, as long as nobody steps in between. Negatives that
    were not given are drawn once for all layers.

    Args:
        step: of a learner, ``learner.step(view_a, view_b, negatives)``.

    Raises:
        UsageError: a rule, form or encoder that has no such events.
    """
    rule, count = step.rule, len(step.x)
    why = refusal(step.encoder, rule)
    if why or not isinstance(rule, ScoreRule):
        raise UsageError(f"no events: {why}")
    if rule.loss_type == 1:
        raise UsageError("no events: with loss_type=1 a modulator needs the scores of both events; use loss_type=2")
    negatives = rule.draw(Batch([step.x.flatten(1)], step.negatives))
    for context in range(count):
        reference = [z for _, z in _present(step, context)]
        for sign, positive in ((1, context), (-1, int(negatives[context]))):
            sample = (positive + count // 2) % count  # positives are listed by the sample whose other view they are
            yield Event(context, sample, sign, _learn(step, rule, sample, reference, sign))


@torch.no_grad()
def _present(step: Step, sample: int) -> list[tuple[passes.Passed, Tensor]]:
    """One sample through the blocks: what each keeps, and its readout (1, d)."""
    blocks = plan(step.encoder)
    assert not isinstance(blocks, str)
    x, found = step.x[sample : sample + 1], list[tuple[passes.Passed, Tensor]]()
    for block, patch in zip(blocks, step.patches, strict=True):
        passed = passes.run(block, x)
        x = passed.z
        found.append((passed, readout.readout(x, patch)))
    return found


@torch.no_grad()
def _learn(step: Step, rule: ScoreRule, sample: int, reference: list[Tensor], sign: int) -> dict[str, Tensor]:
    """Add one event's gradient; the modulators that it had."""
    blocks, count = plan(step.encoder), len(step.x)
    assert not isinstance(blocks, str)
    found: dict[str, list[Tensor]] = {key: [] for key in rule.references}
    for layer, (passed, z) in enumerate(_present(step, sample)):
        soma = torch.zeros_like(z)
        for key, source in rule.references.items():
            projection = step.projections[key][layer]
            c = reference[source.source(layer, len(blocks))]
            g = factors.predict(projection, c)
            gamma = sign * factors.modulator(sign * losses.score(z, g.detach()), rule.f, rule.margin)
            found[key].append(gamma[0])
            soma -= gamma * g.detach() / count
            factors.change(projection, g, -gamma * z / count, c)
        passes.learn(blocks[layer], passed, soma, readout.kernel(passed.z.shape[2:], step.patches[layer]))
    return {key: torch.stack(values) for key, values in found.items()}
