"""Predictive coding: states settle towards a minimum of an energy, then (or meanwhile) the weights descend it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import cast

import torch
from torch import Tensor, nn
from typing_extensions import override

from localssl.credit.base import Step
from localssl.credit.feedback_alignment import Weighted, backward_weights, rerouted, weighted
from localssl.credit.local import Local
from localssl.encoders import Encoder, run_block
from localssl.errors import UsageError
from localssl.optimizer import add_grad
from localssl.projections import Dense
from localssl.rules.base import Rule
from localssl.rules.predictive_coding import PredictiveCoding as Options


class PredictiveCoding(Local):
    """F = Σ_{l<L} ½|h^l − μ^l|² + N · loss(μ^L),  μ^l = block_l(h^(l−1)), h^0 the N samples (sums over units, samples).

    From h^l = μ^l of a forward pass, T times v ← m v + dF/dh, h ← h − η_h v with the weights fixed; then one update of
    the weights by dF/dW / N at the last h. The losses yielded are those of the forward pass.

    With learnt feedback, dF/dh^(l−1) takes its way from h^l − μ^l down through backward weights W_fb^l of their own
    (part "backward"), whose update is that of W^l, transposed: Hebbian of the same two activities (Millidge et al.
    2020, arXiv:2010.01047). A head on μ^L is a layer like the others (part "backward_head"). With weight decay on both,
    W − W_fb decays (Kolen & Pollack 1994); without it stays.

    ``activities`` are cut before every block, so that ``Learner.losses(...).backward()`` reaches the last block alone.
    """

    crosses = True
    incremental = False  # whether weights learn at every step of inference

    @override
    def build(
        self, encoder: Encoder, rule: Rule, dims: Sequence[int], parts: Mapping[str, Sequence[nn.Module]]
    ) -> dict[str, list[nn.Module]]:
        if not _options(rule).learnt_feedback:
            return {}
        layers = {"backward": weighted(encoder)} | {f"backward_{key}": layers for key, layers in _heads(parts).items()}
        return {key: backward_weights(modules, learnt=True) for key, modules in layers.items()}

    @override
    def updates(self, step: Step) -> Iterator[Tensor]:
        rule = _options(step.rule)
        with torch.no_grad():
            states = [h.to(step.x.dtype) for h in step.encoder(step.x)[:-1]]
        torch.clear_autocast_cache()  # PyTorch 2.9 would go on with the weights that it has cast there, without a graph
        velocities = [torch.zeros_like(h) for h in states]
        weights = [p for p in (*step.encoder.parameters(), *_own(step)) if p.requires_grad]
        first: Tensor | None = None
        for t in range(rule.steps + (0 if self.incremental else 1)):
            states = [h.detach().requires_grad_() for h in states]
            energy, losses = _energy(step, states, rule.learnt_feedback)
            first = losses.detach() if first is None else first
            learn = self.incremental or t == rule.steps
            wanted = [*states, *(weights if learn else [])]
            found = cast(tuple[Tensor | None, ...], torch.autograd.grad(energy, wanted, allow_unused=True))
            for v, h, g in zip(velocities, states, found, strict=False):
                v.mul_(rule.momentum)
                if g is not None:
                    v.add_(g)
                h.detach().sub_(rule.eta_h * v)
            if learn:
                _add(weights, [None if g is None else g / len(step.x) for g in found[len(states) :]])
                if rule.learnt_feedback:
                    _transpose(step, dict(zip(weights, found[len(states) :], strict=True)))
                yield losses.detach() if self.incremental else first


class Incremental(PredictiveCoding):
    """iPC (Salvatori et al. 2024): T times, the gradients of F at one point for h and W; h steps, then the weights do.

    Yields T times a batch. From the forward start an error climbs down one block a step: with T < L only the last T
    blocks learn, and block l first hears of the loss by η_h^(L−l) times backpropagation's error.
    """

    incremental = repeated = True


def _options(rule: Rule) -> Options:
    if not isinstance(rule, Options):
        raise UsageError(
            f"credit {rule.credit!r} takes a rule made from localssl.rules.predictive_coding.PredictiveCoding, "
            f"got a {type(rule).__name__}"
        )
    return rule


def _own(step: Step) -> list[nn.Parameter]:
    """The rule's own trainable parts, without backward weights."""
    parts = [m for key, modules in step.projections.items() if not key.startswith("backward") for m in modules]
    return [p for module in parts for p in module.parameters()]


def _heads(parts: Mapping[str, Sequence[nn.Module]]) -> dict[str, list[Weighted]]:
    """By key, the layers of the rule's own that the loss sends its error down through.

    B of a score is none of them: it predicts from a constant, and z is told B c.
    """
    found: dict[str, list[Weighted]] = {}
    for key, modules in parts.items():
        within = [m for part in modules for m in part.modules()]
        layers = [m for m in within if isinstance(m, Weighted) and not isinstance(m, Dense)]
        if layers and not key.startswith("backward"):
            found[key] = layers
    return found


def _both_ways(step: Step) -> tuple[list[Weighted], list[Tensor]]:
    """Every layer, heads included, and its backward weights."""
    layers, feedback = weighted(step.encoder), [*step.projections["backward"]]
    for key, head in _heads(step.projections).items():
        layers += head
        feedback += step.projections[f"backward_{key}"]
    return layers, [cast(Tensor, m.weight) for m in feedback]


def _energy(step: Step, states: Sequence[Tensor], learnt_feedback: bool) -> tuple[Tensor, Tensor]:
    """F, a scalar, and the losses at μ^L."""
    predictions: list[Tensor] = []
    with rerouted(*_both_ways(step)) if learnt_feedback else nullcontext():
        for number, (block, h) in enumerate(zip(step.encoder.blocks, [step.x, *states], strict=True), start=1):
            predictions.append(run_block(block, h, number))
        losses = step.losses(predictions)
    errors = [(h - mu).square().sum() / 2 for h, mu in zip(states, predictions, strict=False)]
    return torch.stack([*errors, len(step.x) * losses.sum()]).sum(), losses


def _add(parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    for p, g in zip(parameters, gradients, strict=True):
        if g is not None:
            add_grad(p, g)


def _transpose(step: Step, gradients: dict[Tensor, Tensor | None]) -> None:
    """The forward weights' gradients for the backward weights, which are kept in the forward ones' shape."""
    layers, feedback = _both_ways(step)
    found = [gradients.get(module.weight) for module in layers]
    _add(feedback, [None if g is None else g / len(step.x) for g in found])


CREDITS = {"predictive-coding": PredictiveCoding(), "incremental-predictive-coding": Incremental()}
