"""AdamW on factors: the numbers of AdamW on the whole gradient, and a state that either of them can go on with."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import localssl
from localssl import encoders, optimizer, rules
from localssl.optimizer import FactoredAdamW, factors_of, leave_factors


def factors(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(6, d, generator=generator, dtype=torch.float64) for d in (9, 5))  # type: ignore[return-value]


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_equal_to_adamw_on_the_whole_gradient(decay: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizer, "TILE", 5 * 8 * 4)  # four rows: the last tile has one
    start = torch.randn(9, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole, tiled = (nn.Parameter(start.clone()) for _ in range(2))
    one = torch.optim.AdamW([whole], lr=0.01, weight_decay=decay, fused=True)
    other = FactoredAdamW([tiled], lr=0.01, weight_decay=decay)
    for step in range(5):
        signal, c = factors(step)
        whole.grad = signal.T @ c
        if step == 3:  # a dense gradient in between is taken as one
            tiled.grad = signal.T @ c
        else:
            leave_factors(tiled, signal[:2], c[:2])  # what is left twice adds up
            leave_factors(tiled, signal[2:], c[2:])
        one.step()
        other.step()
        assert factors_of(tiled) is None
        other.zero_grad()
        torch.testing.assert_close(tiled, whole, rtol=1e-12, atol=1e-14)
    mine, theirs = other.state_dict()["state"][0], one.state_dict()["state"][0]
    assert mine.keys() == theirs.keys()
    for key, value in theirs.items():
        torch.testing.assert_close(mine[key], value, rtol=1e-12, atol=1e-14)


def test_zero_grad_forgets_factors() -> None:
    p = nn.Parameter(torch.zeros(9, 5, dtype=torch.float64))
    made = FactoredAdamW([p])
    leave_factors(p, *factors(0))
    made.zero_grad()
    made.step()
    assert not p.any()


def test_a_learner_steps_alike_with_factors_and_without() -> None:
    torch.manual_seed(0)
    first = localssl.Learner(encoders.vgg5(0.25), rules.get("clapp++both"), (1, 16, 16), (2, 2, 2, 1, 1)).double()
    second = copy.deepcopy(first)
    made = [FactoredAdamW(learner.parameters(), lr=1e-3) for learner in (first, second)]
    for step in range(3):
        views = torch.randn(2, 4, 1, 16, 16, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        for learner, one in zip((first, second), made, strict=True):
            dense = False
            for _ in learner.updates(*views, factored=learner is first):
                dense = dense or any(p.grad is not None for p in learner.projections.parameters())
                one.step()
                one.zero_grad()
            assert dense == (learner is second)
    for p, q in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)
