"""Two updates beside each other: how far apart, and in words; what draws at random."""

from __future__ import annotations

import math
import textwrap

import torch
from torch import Tensor

from localssl.learner import Learner
from localssl.testing.bench import Bench, Feed, Update

TO_ROUNDING = 1e-8  # relative, in float64


def draws(bench: Bench, feed: Feed) -> tuple[bool, bool]:
    """Whether the inputs, and the losses, take torch's random numbers."""
    learner = bench.learner()
    torch.manual_seed(0)
    states = [torch.get_rng_state()]
    x = learner.enter(feed.a, feed.b, feed.negatives, feed.labels)
    states.append(torch.get_rng_state())
    for _ in learner.credit.updates(learner.step_of(x, feed.negatives, feed.labels)):
        pass
    states.append(torch.get_rng_state())
    return not torch.equal(states[0], states[1]), not torch.equal(states[1], states[2])


def parameters_of(learner: Learner, names: list[str]) -> list[tuple[str, Tensor]]:
    """The named parameters of a learner."""
    return [(name, learner.get_parameter(name)) for name in names]


def distance(one: Tensor | None, other: Tensor | None) -> float:
    """Largest difference over the largest number of ``other``; 0 where both are missing or zero."""
    if one is None or other is None:
        present = one if other is None else other
        return 0.0 if present is None or not bool(present.any()) else math.inf
    if one.shape != other.shape:
        return math.inf
    size = float(other.detach().abs().max()) if other.numel() else 0.0
    off = float((one - other).detach().abs().max()) if other.numel() else 0.0
    return off / size if size else (math.inf if off > 1e-12 else 0.0)


def other_losses(one: Update, other: Update) -> str:
    """The losses that came, and those that were expected."""
    return f"{shown(other.losses)} instead of {shown(one.losses)}"


def shown(values: Tensor) -> str:
    """Numbers to six digits."""
    return str([float(f"{float(value):.6g}") for value in values])


def listed(names: list[str]) -> str:
    """The first three names and how many more."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def one_line(error: BaseException) -> str:
    """An error in one short line."""
    return textwrap.shorten(str(error), 80, placeholder=" …")
