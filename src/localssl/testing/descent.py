"""What an update descends, by credit assignment, written down once more: ``differentiation`` asks for its slopes.

- local, backprop: the losses.
- direct-feedback-alignment: the loss, of the last block and the parts; of block l the readout along F^l δ^L.
- feedback-alignment, sign-symmetric: the loss, of the last block and the parts; of all blocks, end to end, once every
  backward weight is the forward one, which makes it backpropagation.
- predictive-coding: the energy at the states that inference ends with; incremental: its sum over all steps. Learnt
  backward weights are the forward ones here, and must be handed the same update.
- hebbian: no function; r Σ y (x - u w) / max|·|, x weight by weight as what comes through when all others are 0.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from localssl.learner import Learner
from localssl.rules import Batch
from localssl.rules.predictive_coding import PredictiveCoding
from localssl.rules.softhebb import HebbianRule
from localssl.testing.bench import Bench, Feed, require, same, update
from localssl.testing.comparing import TO_ROUNDING, distance
from localssl.testing.frozen import Frozen
from localssl.testing.slopes import require_slopes

Weighted = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear


def _losses(bench: Bench, asked: Callable[[str], bool] = lambda part: True) -> None:
    """The sum of the losses, as far as the rule's own graph reaches."""
    feed = bench.feed()
    grads = update(bench.learner(), feed).grads  # of another learner: an update may move buffers
    require_slopes(bench.learner(), grads, _held(lambda learner: learner.losses(*_arguments(feed)).sum()), asked)


def _held(value: Callable[[Learner], Tensor]) -> Callable[[Learner], float]:
    """A function of a learner with everything that it stops at its first value."""
    frozen = Frozen()

    def total(moved: Learner) -> float:
        at = copy.deepcopy(moved)  # with the buffers as they were
        torch.manual_seed(0)
        return float(frozen.run(lambda: value(at)).double())

    return total


def _arguments(feed: Feed) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    return feed.a, feed.b, feed.negatives, feed.labels


def _top(bench: Bench) -> str:
    return f"encoder.blocks.{len(bench.learner().encoder.blocks) - 1}"


def _direct(bench: Bench) -> None:
    top = _top(bench)
    _losses(bench, lambda part: part == top or part.startswith("projections."))
    learner, feed = bench.learner(), bench.feed()
    torch.manual_seed(0)
    given = learner.batch(*_arguments(feed))
    z = [h.detach() for h in given.z]
    leaf = z[-1].clone().requires_grad_()
    batch = Batch([*z[:-1], leaf], given.negatives, feed.labels, [h.detach() for h in given.maps])
    (error,) = torch.autograd.grad(learner.rule.losses(batch, learner.parts).sum(), leaf)
    grads = update(bench.learner(), feed).grads
    for layer, matrix in enumerate(learner.parts["direct"]):
        told = error @ cast(Tensor, matrix.weight).detach().T

        def along(moved: Learner, layer: int = layer, told: Tensor = told) -> float:
            torch.manual_seed(0)
            return float((moved.batch(*_arguments(feed)).z[layer].detach() * told).sum())

        require_slopes(learner, grads, along, lambda part, layer=layer: part == f"encoder.blocks.{layer}")


def _mirrored(bench: Bench) -> None:
    top = _top(bench)
    _losses(bench, lambda part: part == top or part.startswith("projections."))
    learner, feed = bench.learner(), bench.feed()
    _mirror(learner, uniform=getattr(learner.rule, "magnitudes", "fixed") == "uniform")
    grads = update(copy.deepcopy(learner), feed).grads
    require_slopes(learner, grads, _held(lambda moved: moved.end_to_end_loss(*_arguments(feed))))


def _layers(place: nn.Module) -> list[Weighted]:
    return [module for module in place.modules() if isinstance(module, Weighted)]


def _both_ways(learner: Learner) -> Iterator[tuple[Weighted, nn.Module]]:
    """Every layer that has backward weights, and those; heads among them."""
    yield from zip(_layers(learner.encoder.blocks), learner.parts["backward"], strict=True)
    for key in learner.parts:
        if key.startswith("backward_"):
            heads = _layers(learner.projections.get_submodule(key.removeprefix("backward_")))
            yield from zip(heads, learner.parts[key], strict=True)


@torch.no_grad()
def _mirror(learner: Learner, uniform: bool = False) -> None:
    """Make every backward weight the forward one; ``uniform``: of one size, which a mean of sizes leaves alone."""
    for module, part in _both_ways(learner):
        if uniform:
            module.weight.copy_(module.weight.sign() * module.weight.abs().mean())
        cast(Tensor, part.weight).copy_(module.weight)


def _energy(bench: Bench) -> None:
    learner, feed = bench.learner(), bench.feed()
    rule = learner.rule
    assert isinstance(rule, PredictiveCoding)
    if rule.learnt_feedback:
        _mirror(learner)
    x = learner.enter(*_arguments(feed))
    found = _inferred(learner, rule, x, feed)
    visited = found[:-1] if rule.credit == "incremental-predictive-coding" else found[-1:]

    def total(moved: Learner) -> Tensor:
        return torch.stack([_of_states(moved, x, states, feed) for states in visited]).sum() / len(x)

    grads = update(copy.deepcopy(learner), feed).grads
    require_slopes(learner, grads, _held(total), lambda part: not part.startswith("projections.backward"))
    if rule.learnt_feedback:
        names = {id(parameter): name for name, parameter in learner.named_parameters()}
        for module, part in _both_ways(learner):
            forward, backward = names[id(module.weight)], names[id(part.weight)]
            require(same(grads[forward], grads[backward]), f"{backward} does not get the update of {forward}")


def _of_states(learner: Learner, x: Tensor, states: list[Tensor], feed: Feed) -> Tensor:
    """F = Σ ½|h - μ|² + N · loss(μ^L)."""
    inputs = [x, *states]
    mu = [block(h) for block, h in zip(learner.encoder.blocks, inputs, strict=True)]
    loss = learner.rule.losses(learner.read(mu, feed.negatives, feed.labels), learner.parts).sum()
    return len(x) * loss + sum(((h - m) ** 2).sum() / 2 for h, m in zip(states, mu, strict=False))


def _inferred(learner: Learner, rule: PredictiveCoding, x: Tensor, feed: Feed) -> list[list[Tensor]]:
    """The states from the forward pass on to the last step, steps + 1 of them."""
    states: list[Tensor] = []
    for block in list(learner.encoder.blocks)[:-1]:
        states.append(block(states[-1] if states else x).detach())
    found, pace = [states], [torch.zeros_like(h) for h in states]
    for _ in range(rule.steps):
        here = [h.clone().requires_grad_() for h in found[-1]]
        slopes = torch.autograd.grad(_of_states(learner, x, here, feed), here)
        pace = [rule.momentum * v + g for v, g in zip(pace, slopes, strict=True)]
        found.append([h.detach() - rule.eta_h * v for h, v in zip(here, pace, strict=True)])
    return found


def _hebbian(bench: Bench) -> None:
    learner, feed = bench.learner(), bench.feed()
    rule = learner.rule
    assert isinstance(rule, HebbianRule)
    grads = update(bench.learner(), feed).grads
    learner.train()
    torch.manual_seed(0)
    x = learner.enter(*_arguments(feed))
    for number, block in enumerate(learner.encoder.blocks):
        (layer,) = _layers(block)
        seen: list[Tensor] = []
        handle = layer.register_forward_pre_hook(_noting(seen))
        with torch.no_grad():
            x = block(x)
        handle.remove()
        wanted = _written_out(rule, number, layer, seen[0])
        name = next(name for name, p in learner.named_parameters() if p is layer.weight)
        off = distance(grads[name], wanted)
        require(off < TO_ROUNDING, f"the update of {name} is not -r Σ y (x - u w) / max|·|: off by {off:.1g}")
        bias = None if layer.bias is None else grads[name.removesuffix("weight") + "bias"]  # pyright: ignore[reportUnnecessaryComparison]
        require(bias is None or not bool(bias.any()), f"the bias of {name} moves")


def _noting(seen: list[Tensor]) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    """A hook that keeps what enters a module."""

    def hook(module: nn.Module, entering: tuple[Any, ...]) -> None:
        seen.append(entering[0])

    return hook


@torch.no_grad()
def _written_out(rule: HebbianRule, number: int, layer: Weighted, x: Tensor) -> Tensor:
    """-ΔW, one weight after the other."""

    def drive(weight: Tensor) -> Tensor:
        return F.linear(x, weight) if isinstance(layer, nn.Linear) else layer._conv_forward(x, weight, None)  # pyright: ignore

    u = drive(layer.weight)
    y = rule.activity(u, number)
    others = [d for d in range(u.ndim) if d != 1]
    rows = layer.weight.flatten(1)
    total = torch.zeros_like(rows)
    for j in range(rows.shape[1]):
        one = torch.zeros_like(rows[:1])
        one[0, j] = 1
        presynaptic = drive(one.view(1, *layer.weight.shape[1:]))  # (N, 1, ...): x_j at every position
        total[:, j] = (y * (presynaptic - u * rows[:, j].view(-1, *[1] * (u.ndim - 2)))).sum(others)
    rate = rule.rate(rows.norm(dim=1), number)
    return -(rate[:, None] * total / total.abs().max()).view_as(layer.weight)


DESCENDED: Mapping[str, Callable[[Bench], Any]] = {
    "local": _losses,
    "backprop": _losses,
    "direct-feedback-alignment": _direct,
    "feedback-alignment": _mirrored,
    "sign-symmetric": _mirrored,
    "predictive-coding": _energy,
    "incremental-predictive-coding": _energy,
    "hebbian": _hebbian,
}
