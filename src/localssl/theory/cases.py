"""One random instance of a statement: sizes and choices are in the case, everything random follows from its seed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from localssl.encoders import Encoder
from localssl.theory.gradients import Samples, Setting, gradients

FORMS = ("softplus", "linear", "hinge")


@dataclass(frozen=True)
class Case:
    """Args: layers L >= 2, units of a layer (of the last one where layers shrink), samples n, λ, f, type, seed."""

    depth: int
    width: int
    n: int
    weight_decay: float
    f: str
    loss_type: int
    seed: int

    def generator(self) -> torch.Generator:
        """A new generator of this case's random numbers."""
        return torch.Generator().manual_seed(self.seed)

    def setting(self, **choices: object) -> Setting:
        """Its f, type and λ, with these other choices."""
        return Setting(self.f, self.loss_type, self.weight_decay, **choices)  # pyright: ignore[reportArgumentType]


def draw(seed: int) -> Case:
    """A random case: 2 to 6 layers, 2 to 24 units, 1 to 12 samples, λ from 0.001 to 10 (uniform in its logarithm).

    At most a quarter of the squared width are samples: beyond half of it K is singular, and under the hinge the minimum
    over B then has a kink where a gradient is asked for.
    """
    generator = torch.Generator().manual_seed(seed)

    def whole(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    exponent = float(torch.rand((), generator=generator, dtype=torch.float64)) * 4 - 3
    width = whole(2, 24)
    n = whole(1, max(1, min(12, width**2 // 4)))
    return Case(whole(2, 6), width, n, 10**exponent, FORMS[whole(0, 2)], whole(1, 2), seed)


def normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Standard normal numbers in float64."""
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def samples(case: Case, features: int, generator: torch.Generator, own_negative_reference: bool = False) -> Samples:
    """Independent inputs (n, features) for positives, negatives and references (or references of both)."""
    made = [normal((case.n, features), generator) for _ in range(4)]
    return Samples(made[0], made[1], made[2], made[3] if own_negative_reference else None)


def larger(a: float, b: float) -> float:
    """The larger of two deviations; infinite where one is no number, which ``max`` may pass over."""
    return max(a, b) if math.isfinite(a) and math.isfinite(b) else math.inf


def deviation(found: list[Tensor], expected: list[Tensor]) -> float:
    """Largest |found - expected| / |expected| over the layers; |found| where nothing is expected."""
    worst = 0.0
    for a, b in zip(found, expected, strict=True):
        scale = float(b.norm())
        worst = larger(worst, float((a - b).norm()) / (scale or 1.0))
    return worst


def mismatch(encoder: Encoder, inputs: Samples, setting: Setting) -> float:
    """Largest relative difference of the layerwise gradient to the end-to-end one, over the layers."""
    return deviation(*gradients(encoder, inputs, setting))
