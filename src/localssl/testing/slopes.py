"""An update against the difference quotients of what it should descend."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from localssl.learner import Learner
from localssl.testing.bench import require
from localssl.testing.comparing import parameters_of

STEP = 1e-6  # of numerical differentiation
DERIVATIVE = 1e-5  # how far a derivative may be from the difference quotient, over the gradient's length


def require_slopes(
    learner: Learner,
    grads: Mapping[str, Tensor | None],
    total: Callable[[Learner], float],
    asked: Callable[[str], bool] = lambda part: True,
) -> None:
    """Require that along two directions per block and projection the update is the slope of a function, in float64.

    Args:
        learner: where the derivative is taken; it stays as it is.
        grads: the update, by parameter name.
        total: what should be descended, of a learner that was moved a little.
        asked: whether a part is, by its name ("encoder.blocks.0", "projections.lateral.2").
    """
    scale = abs(total(learner)) + 1
    parts: dict[str, list[str]] = {}
    for name, parameter in learner.named_parameters():
        part = ".".join(name.split(".")[:3])
        if parameter.requires_grad and asked(part):
            parts.setdefault(part, []).append(name)
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
    """The central difference quotient of a function along a direction."""
    ends: list[float] = []
    for sign in (1, -1):
        moved = copy.deepcopy(learner)
        for name, direction in way.items():
            moved.get_parameter(name).add_(sign * step * direction)
        with torch.enable_grad():
            ends.append(total(moved))
    return (ends[0] - ends[1]) / (2 * step)
