"""Small learners of every kind of block, and one batch's update of them: what the tests of the engine compare."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

import localssl
from localssl import rules
from localssl.encoders import Encoder
from localssl.engine.choice import refused_rule
from localssl.engine.events import events

SHAPE, N = (2, 12, 12), 5
Patches = Sequence[int | None] | None
RULES = tuple(name for name in rules.names() if refused_rule(rules.get(name)) is None)  # a new one is tested, too
FORMS = tuple(itertools.product(("hinge", "softplus", "linear"), (1, 2), ("next", "random")))
POOLS: dict[str, list[nn.Module]] = {
    "none": [],
    "max": [nn.MaxPool2d(2)],
    "average": [nn.AvgPool2d(2)],
    "overlapping": [nn.MaxPool2d(3, 2, 1)],
    "overlapping average": [nn.AvgPool2d(3, 2, 1, count_include_pad=False)],
}
SEQUENCES: dict[str, list[nn.Module]] = {
    "sequence": [],
    "max of a sequence": [nn.MaxPool1d(2)],
    "average of a sequence": [nn.AvgPool1d(2)],
    "overlapping of a sequence": [nn.MaxPool1d(3, 3, 1, ceil_mode=True)],
    "overlapping average of a sequence": [nn.AvgPool1d(3, 2, 1, count_include_pad=False)],
    "dilated of a sequence": [nn.MaxPool1d(2, 1, 1, 2)],
}
SEQUENCE = (2, 24)


def stack(kind: str) -> Encoder:
    """Three blocks: "linear" or a name of ``POOLS`` or ``SEQUENCES``."""
    widths = (SHAPE[0], 6, 5, 4)
    if kind == "linear":
        sizes = (SHAPE[0] * SHAPE[1] * SHAPE[2], 9, 7, 4)
        blocks = [nn.Sequential(nn.Linear(i, o, bias=o != 7), nn.ReLU()) for i, o in itertools.pairwise(sizes)]
        blocks[0] = nn.Sequential(nn.Flatten(), *blocks[0])
    elif kind in SEQUENCES:
        blocks = [
            nn.Sequential(nn.Conv1d(i, o, 3, padding=1, bias=o != 5), nn.ReLU(), *SEQUENCES[kind])
            for i, o in itertools.pairwise(widths)
        ]
    else:
        blocks = [
            nn.Sequential(nn.Conv2d(i, o, 3, padding=1, bias=o != 5), nn.ReLU(), *POOLS[kind])
            for i, o in itertools.pairwise(widths)
        ]
    return Encoder.from_blocks(blocks)


def both_patches(kind: str) -> list[Patches]:
    """Of readouts: the mean over all positions, and patches, where there is a map."""
    return [None] if kind == "linear" else [None, (3, 1, 1)]


def learner(
    kind: str, rule: rules.Rule, engine: str, dtype: torch.dtype, patches: Patches = None, seed: int = 0
) -> localssl.Learner:
    return learner_of(lambda: stack(kind), rule, engine, dtype, SEQUENCE if kind in SEQUENCES else SHAPE, patches, seed)


def learner_of(
    made: Callable[[], Encoder],
    rule: rules.Rule,
    engine: str,
    dtype: torch.dtype,
    shape: Sequence[int] = SHAPE,
    patches: Patches = None,
    seed: int = 0,
) -> localssl.Learner:
    torch.manual_seed(seed)
    learner = localssl.Learner(made().to(dtype), rule, shape, patches, engine=engine)
    with torch.no_grad():
        for parameter in learner.projections.parameters():
            parameter.mul_(4)  # scores on both sides of the margin
    return learner


def update(made: localssl.Learner, views: Tensor, negatives: Tensor | None = None) -> list[Tensor | None]:
    """The losses and every gradient of one batch."""
    torch.manual_seed(7)
    dtype = next(made.parameters()).dtype
    losses = made.accumulate_grads(*views.to(dtype), negatives)
    return [losses, *(p.grad for p in made.parameters())]


def batch(kind: str, seed: int = 0) -> Tensor:
    shape = SEQUENCE if kind in SEQUENCES else SHAPE
    images = torch.randn(2, N, *shape, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    return 5 * images  # so that activities differ by more than their common part, in which events cancel


def joined(gradients: Sequence[Tensor | None]) -> Tensor:
    return torch.cat([g.flatten() for g in gradients if g is not None])


def relative(found: Tensor, exact: Tensor, least: float = 0) -> float:
    """|found - exact| / |exact|, with a floor under the latter for gradients that are nothing but rounding."""
    return float((found - exact).norm() / exact.norm().clamp_min(least))


def assert_equal(found: Sequence[Tensor | None], exact: Sequence[Tensor | None], case: object = None) -> None:
    """Losses and gradients in float64, tensor by tensor to 1e-12 of its norm."""
    assert [g is None for g in found] == [g is None for g in exact]
    pairs = [(one, other) for one, other in zip(found, exact, strict=True) if one is not None and other is not None]
    least = 1e-6 * max(float(other.norm()) for _, other in pairs)
    for index, (one, other) in enumerate(pairs):
        assert relative(one, other, least) <= 1e-12, (index, case)


def assert_engines_equal(
    made: Callable[[str], localssl.Learner], views: Tensor, negatives: Tensor | None = None, case: object = None
) -> None:
    """Both modes of the engine do what autograd does; ``made(engine)`` builds the learner."""
    exact = update(made("autograd"), views, negatives)
    assert float(joined(exact[1:]).norm()) > 0
    for engine in ("hebbian", "hebbian-lean"):
        learner = made(engine)
        assert learner.engine == engine
        assert_equal(update(learner, views, negatives), exact, (engine, case))


def sizes(made: localssl.Learner, views: Tensor) -> list[float]:
    """For every parameter |dL/dp| as it would be if nothing cancelled: the events' own norms, γ = 1, summed.

    ``made``: in float64, of f = "linear" and type 2.
    """
    total = torch.zeros(len(list(made.parameters())), dtype=torch.float64)
    for _ in events(made.step(*views.double())):
        total += torch.stack([p.grad.norm() for p in made.parameters() if p.grad is not None])
        made.zero_grad(set_to_none=False)
    return total.tolist()
