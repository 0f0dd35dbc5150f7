"""How near the engine is to autograd in float32: tensor by tensor, beside what its positives and negatives cancel.

A gradient is a sum over events (``engine.events``), and most of it cancels: of some biases one part in thousands is
left, under autograd as under the engine. So the error of a tensor is held against the sum of its events' norms.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Sequence

import pytest
import torch
from torch import Tensor

import localssl
from localssl import encoders, rules

from .engine_util import POOLS, RULES, SEQUENCES, Patches, batch, both_patches, learner, learner_of, sizes, update

BOUND = {"hinge": 1e-6, "linear": 1e-6, "softplus": 2e-6}  # softplus: γ, too, is rounded, by as much as its score is


@pytest.fixture(autouse=True)
def one_thread() -> Generator[None]:
    """Sums in the same order: in another, a unit of vgg6 at the edge of its gate may fall on its other side."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def assert_near(found: Sequence[Tensor | None], exact: Sequence[Tensor | None], least: Sequence[float], f: str) -> None:
    """The losses, which are differences of scores, to 1e-4; every gradient to ``BOUND`` of the size of its events."""
    (loss, *found), (other, *exact) = found, exact
    assert loss is not None
    assert other is not None
    torch.testing.assert_close(loss, other, rtol=1e-4, atol=1e-4)
    for index, (one, two, size) in enumerate(zip(found, exact, least, strict=True)):
        assert one is not None
        assert two is not None
        assert float((one - two).norm()) <= BOUND[f] * size, (index, f)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("kind", ["linear", *POOLS, *SEQUENCES])
def test_equal_to_autograd(kind: str, name: str) -> None:
    for seed, patches in itertools.product(range(3), both_patches(kind)):
        views = batch(kind, seed)
        least = sizes(learner(kind, rules.get(name, f="linear"), "auto", torch.float64, patches, seed), views)
        for f, loss_type in itertools.product(BOUND, (1, 2)):
            rule = rules.get(name, f=f, loss_type=loss_type)
            exact = update(learner(kind, rule, "autograd", torch.float32, patches, seed), views)
            for engine in ("hebbian", "hebbian-lean") if seed == 0 else ("hebbian",):
                assert_near(update(learner(kind, rule, engine, torch.float32, patches, seed), views), exact, least, f)


@pytest.mark.parametrize("name", RULES)
def test_vgg6_at_its_start(name: str) -> None:
    """The same bound where nothing is chosen to be small."""
    views = 2 * torch.randn(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def made(engine: str, dtype: torch.dtype, f: str) -> localssl.Learner:
        patches: Patches = (4, 4, 4, 2, 2, 1)
        rule = rules.get(name, f=f)
        return learner_of(lambda: encoders.vgg6(0.125), rule, engine, dtype, (3, 32, 32), patches)

    least = sizes(made("auto", torch.float64, "linear"), views)
    for f in ("hinge", "softplus"):
        exact = update(made("autograd", torch.float32, f), views)
        assert_near(update(made("hebbian", torch.float32, f), views), exact, least, f)
