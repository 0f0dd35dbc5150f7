"""Checks of an update against other ways to it: numerical differentiation, the engine without autograd."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor

from localssl.learner import Learner
from localssl.testing.bench import Bench, Skip, require, update
from localssl.testing.comparing import TO_ROUNDING, parameters_of
from localssl.testing.frozen import Frozen

STEP = 1e-6  # of numerical differentiation
DERIVATIVE = 1e-5  # how far a derivative may be from the difference quotient, over the gradient's length


def differentiation(bench: Bench) -> None:
    """The update equals numerical differentiation of the losses, everything that the rule stops held at its value.

    Central differences in two directions per block and projection, in float64. Held are: what ``detach`` or ``.data``
    returned, what was computed under ``torch.no_grad``, and numbers read by ``item`` or ``float`` (see ``frozen.py``).
    """
    feed, learner = bench.feed(), bench.learner()
    grads = update(bench.learner(), feed).grads  # of another learner: an update may move buffers
    frozen = Frozen()

    def total(moved: Learner) -> float:
        at = copy.deepcopy(moved)  # with the buffers as they were
        torch.manual_seed(0)
        return float(frozen.run(lambda: at.losses(feed.a, feed.b, feed.negatives, feed.labels)).double().sum())

    scale = abs(total(learner)) + 1
    parts: dict[str, list[str]] = {}
    for name, parameter in learner.named_parameters():
        if parameter.requires_grad:
            parts.setdefault(".".join(name.split(".")[:3]), []).append(name)
    generator = torch.Generator().manual_seed(3)
    for part, names in parts.items():
        gradient = {
            name: torch.zeros_like(p) if (g := grads[name]) is None else g for name, p in parameters_of(learner, names)
        }
        length = math.sqrt(sum(float(g.square().sum()) for g in gradient.values()))
        for _ in range(2):
            noise = {
                name: torch.randn(g.shape, generator=generator, dtype=torch.float64) for name, g in gradient.items()
            }
            size = math.sqrt(sum(float(v.square().sum()) for v in noise.values()))
            way = {name: v / size + (gradient[name] / length if length else 0) for name, v in noise.items()}
            expected = sum(float((gradient[name] * v).sum()) for name, v in way.items())
            bound = DERIVATIVE * length + 1e-8 * scale
            nearest = math.inf
            for step in (STEP, 10 * STEP, STEP / 10):  # a kink may lie in the way of one
                found = _quotient(learner, way, step, total)
                nearest = min(found, nearest, key=lambda value: abs(value - expected))
                if abs(nearest - expected) <= bound:
                    break
            ratio = f", ratio {expected / nearest:.4g}" if nearest else ""
            require(
                abs(nearest - expected) <= bound,
                f"the update of {part} has slope {expected:.6g} along a direction, the losses {nearest:.6g}{ratio}",
            )


@torch.no_grad()
def _quotient(learner: Learner, way: dict[str, Tensor], step: float, total: Callable[[Learner], float]) -> float:
    """The central difference quotient of the losses along a direction."""
    ends: list[float] = []
    for sign in (1, -1):
        moved = copy.deepcopy(learner)
        for name, direction in way.items():
            moved.get_parameter(name).add_(sign * step * direction)
        with torch.enable_grad():
            ends.append(total(moved))
    return (ends[0] - ends[1]) / (2 * step)


def engines(bench: Bench) -> None:
    """The engine without autograd gives autograd's update, in both of its modes, wherever it takes the rule."""
    if (learner := bench.learner()).engine == "autograd":
        raise Skip(learner.engine_note or "")
    feed, want = bench.feed(), update(bench.learner(engine="autograd"), bench.feed())
    for engine in ("hebbian", "hebbian-lean"):
        found = update(bench.learner(engine=engine), feed)
        for name, gradient in want.grads.items():
            other = found.grads[name]
            require((other is None) == (gradient is None), f"engine {engine}: an update of {name}, or none, alone")
            if other is not None and gradient is not None:
                off = float((other - gradient).norm() / (gradient.norm() + 1e-12))
                require(off < TO_ROUNDING, f"engine {engine}: the update of {name} is off by {off:.1g}")
