"""The instrument: cosines against the oracle's, the shuffled null, and what it refuses to average."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import localssl
from localssl import oracle
from localssl.alignment import QUANTITIES, measure
from localssl.encoders import Encoder
from localssl.errors import UsageError

from .util import PATCHES, SHAPE, N, numpy, small_learner, to_oracle, views

NEGATIVES = (np.arange(2 * N) + 1) % (2 * N)


def oracle_cosines(learner: localssl.Learner, key: str, seed: int) -> list[float]:
    """Per block, from gradients that NumPy loops computed: the rule's, and bp-clapp++'s with the rule's own B^L."""
    rule, patches = learner.rule.name, PATCHES["vgg"]
    a, b = (numpy(view) for view in views(seed))
    weights = {key: [numpy(m.weight) for m in learner.projections[key]]}
    blocks = to_oracle(learner.encoder)
    local = oracle.reference(rule, blocks, weights, a, b, NEGATIVES, None if rule == "clapp" else patches)
    last = {"lateral": [weights[key][-1]]}
    spatial = rule != "clapp"
    end_to_end = oracle.reference("bp-clapp++", blocks, last, a, b, NEGATIVES, patches, spatial=spatial)
    found: list[float] = []
    for mine, theirs in zip(local.block_grads, end_to_end.block_grads, strict=True):
        x, y = mine["weight"].ravel(), theirs["weight"].ravel()
        found.append(float(x @ y / np.sqrt((x @ x) * (y @ y))))
    return found


@pytest.mark.parametrize(("rule", "key"), [("clapp", "lateral"), ("clapp++", "lateral"), ("clapp++dfb", "feedback")])
def test_cosines_are_the_oracles(rule: str, key: str) -> None:
    learner = small_learner("vgg", localssl.rules.get(rule))
    seeds = (0, 1, 2)
    rows = [row for row in measure(learner, [views(seed) for seed in seeds]) if row.quantity == "cosine"]
    expected = np.array([oracle_cosines(learner, key, seed) for seed in seeds])
    assert [row.block for row in rows] == [1, 2, 3]
    assert np.allclose([row.mean for row in rows], expected.mean(0), rtol=0, atol=1e-9)
    assert rows[-1].mean == pytest.approx(1, abs=1e-12)
    assert rows[0].mean < 0.999  # or the comparison would compare nothing


def test_the_null_pairs_gradients_of_different_batches() -> None:
    learner = small_learner("vgg", localssl.rules.get("clapp++"))
    batches = [views(0), views(1)]
    rows = {(row.block, row.quantity): row for row in measure(learner, batches)}
    single = {(row.block, row.quantity): row for row in measure(learner, batches[:1])}
    assert rows[3, "cosine"].mean == pytest.approx(1, abs=1e-12)
    assert rows[3, "cosine"].null < 0.99
    assert math.isnan(single[3, "cosine"].null)
    twice = {(row.block, row.quantity): row for row in measure(learner, [views(0), views(0)])}
    for place, row in twice.items():  # the same batch twice: shuffling changes nothing
        assert row.null == pytest.approx(row.mean, rel=1e-9)
        assert row.mean == pytest.approx(single[place].mean, rel=1e-9)


def test_a_gradient_that_is_random_is_refused() -> None:
    blocks = [nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Dropout(0.5)) for _ in range(1)]
    encoder = Encoder.from_blocks(blocks).double()
    learner = localssl.Learner(encoder, localssl.rules.get("clapp"), SHAPE)
    with pytest.raises(UsageError, match=r"computed twice.*eval"):
        measure(learner, [views(0)])
    assert len(measure(learner.eval(), [views(0)])) == len(QUANTITIES)


def test_a_zero_gradient_is_left_out_and_not_averaged() -> None:
    learner = small_learner("vgg", localssl.rules.get("clapp++"))
    dark = torch.zeros(N, *SHAPE, dtype=torch.float64)
    with torch.no_grad():
        for name, parameter in learner.encoder.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    rows = measure(learner, [views(0), (dark, dark), views(1)])
    alone = measure(learner, [views(0), views(1)])
    assert {row.batches for row in rows} == {2}
    assert [row.mean for row in rows] == pytest.approx([row.mean for row in alone], rel=1e-12)
    only = measure(learner, [(dark, dark)])
    assert all(math.isnan(row.mean) and row.batches == 0 for row in only)


def test_no_batch_is_refused() -> None:
    with pytest.raises(UsageError, match="at least one batch"):
        measure(small_learner("vgg", localssl.rules.get("clapp++")), [])
