"""Definition 3.4: the solved optimum is one, the trained one comes to it, and the parts of 1 − cosine sum exactly."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

import localssl
from localssl.alignment import Pair, Signals, decompose, fit_projections, optimal_feedback
from localssl.alignment.optimum import Matrices, as_projections, linear_errors, matrices, presynaptic, targets
from localssl.learner import Learner
from localssl.references import Own, Reference
from localssl.rules import Batch, Projections, ScoreRule

from .util import small_learner, usage_error, views

RULES = ["clapp", "clapp++", "clapp++dfb", "clapp++both"]
NEGATIVES = torch.tensor([4, 1, 1, 0, 5, 2])  # sample 1 draws itself, sample 3 is drawn by nobody
NETWORKS = ["vgg", "flat", "mlp"]


def pairs(count: int, first: int = 0) -> list[Pair]:
    return [Pair(*views(seed), NEGATIVES) for seed in range(first, first + count)]


def learner_of(rule: str, network: str, **options: object) -> Learner:
    return small_learner(network, localssl.rules.get(rule, **options))


def gated(learner: Learner, pair: Pair, decide: Matrices) -> list[dict[str, Tensor]]:
    batch = Signals(learner.encoder, pair).batch(learner)
    parts = as_projections(learner, decide)
    return [presynaptic(learner.rule, batch, layer, parts) for layer in range(len(decide))]  # type: ignore[arg-type]


@pytest.mark.parametrize("loss_type", [1, 2])
@pytest.mark.parametrize("f", ["hinge", "softplus", "linear"])
@pytest.mark.parametrize("rule", RULES)
def test_the_error_is_linear_in_b(rule: str, f: str, loss_type: int) -> None:
    """Σ_k q_k B_kᵀ with the rule's own gates is the rule's dL/dz."""
    learner = learner_of(rule, "vgg", f=f, loss_type=loss_type)
    (pair,) = pairs(1)
    signals = Signals(learner.encoder, pair)
    q = gated(learner, pair, matrices(learner))
    expected = signals.errors(learner.rule.losses(signals.batch(learner), learner.parts).sum())
    for mine, theirs in zip(linear_errors(signals, learner, q, matrices(learner)), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-15)


def distance_and_cosine(learner: Learner, b: Matrices, data: list[Pair], decide: Matrices) -> list[tuple[float, float]]:
    """Per layer but the last: squared distance of the stacked dL/dz to backpropagation's, and their cosine."""
    stacked: list[list[tuple[Tensor, Tensor]]] = [[] for _ in b[:-1]]
    for pair in data:
        signals = Signals(learner.encoder, pair)
        _, full = signals.chain(signals.last_errors(learner))
        mine = linear_errors(signals, learner, gated(learner, pair, decide), b)
        for layer in range(len(b) - 1):
            stacked[layer].append((mine[layer].flatten(), full[layer].flatten()))
    found: list[tuple[float, float]] = []
    for layer in stacked:
        x, y = (torch.cat([part[i] for part in layer]) for i in (0, 1))
        found.append((float((x - y).square().sum()), float(torch.cosine_similarity(x, y, dim=0))))
    return found


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("rule", RULES)
def test_no_b_with_these_gates_is_nearer(rule: str, network: str) -> None:
    learner, data = learner_of(rule, network), pairs(4)
    gates = matrices(learner)
    best = optimal_feedback(learner, data)
    bound = distance_and_cosine(learner, best, data, gates)
    generator = torch.Generator().manual_seed(0)

    def moved(size: float) -> Matrices:
        return [
            {
                k: m + size * m.norm() * torch.randn(m.shape, generator=generator, dtype=m.dtype)
                for k, m in layer.items()
            }
            for layer in best
        ]

    others = [gates, *(moved(size) for size in (1e-4, 1e-3, 1e-2, 0.1, 1.0))]
    scaled = [{k: 1.01 * m for k, m in layer.items()} for layer in best]
    for b in [*others, scaled]:
        for (distance, cosine), (least, most) in zip(distance_and_cosine(learner, b, data, gates), bound, strict=True):
            assert distance >= least * (1 - 1e-9)
            assert cosine <= most + 1e-9
    assert all(0.01 < most < 0.9999999 for _, most in bound)  # or there would be nothing to bound


def test_a_wrong_sign_of_the_target_is_no_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, data = learner_of("clapp++dfb", "vgg"), pairs(4)
    right = distance_and_cosine(learner, optimal_feedback(learner, data), data, matrices(learner))

    def negated(*arguments: object) -> list[Tensor]:
        return [-t for t in targets(*arguments)]  # type: ignore[arg-type]

    monkeypatch.setattr("localssl.alignment.optimum.targets", negated)
    wrong = distance_and_cosine(learner, optimal_feedback(learner, data), data, matrices(learner))
    assert all(w[0] > r[0] for w, r in zip(wrong, right, strict=True))


def test_the_trained_optimum_comes_to_the_solved_one() -> None:
    """f linear: the gates are constant, so both minimise the same sum over one batch."""
    learner = learner_of("optimum", "vgg", f="linear")
    (pair,) = data = pairs(1)
    solved = optimal_feedback(learner, data)
    gates = matrices(learner)
    before = distance_and_cosine(learner, gates, data, gates)
    b = [module.weight for module in learner.projections["feedback"]]
    optimiser = torch.optim.LBFGS(b[:-1], max_iter=2000, tolerance_grad=1e-14, tolerance_change=0, history_size=50)

    def closure() -> Tensor:
        learner.zero_grad()
        learner.accumulate_grads(*pair)
        now = distance_and_cosine(learner, matrices(learner), data, gates)
        return torch.tensor(6 * sum(distance for distance, _ in now))  # the module's factor 2n

    optimiser.step(closure)
    after = distance_and_cosine(learner, matrices(learner), data, gates)
    least = distance_and_cosine(learner, solved, data, gates)
    for (a, _), (s, _), (z, _) in zip(after, least, before, strict=True):
        assert a == pytest.approx(s, rel=1e-4)
        assert s < 0.9 * z


@pytest.mark.parametrize("gates", ["fixed", "own"])
@pytest.mark.parametrize("rule", ["clapp++", "clapp++both"])
def test_the_parts_sum_to_the_whole(rule: str, gates: str) -> None:
    learner = learner_of(rule, "vgg")
    before = copy.deepcopy(learner.state_dict())
    rows = decompose(learner, pairs(8), pairs(4, first=8), gates=gates, epochs=20)  # type: ignore[arg-type]
    assert all(torch.equal(before[name], value) for name, value in learner.state_dict().items())
    found = {(row.block, row.part): row.mean for row in rows}
    assert {row.block for row in rows} == {1, 2}
    for block in (1, 2):
        parts = sum(found[block, part] for part in ("form", "objective", "lag"))
        assert parts == pytest.approx(found[block, "total"], abs=1e-12)
    measured = localssl.alignment.measure(learner.encoder, learner, pairs(4, first=8))
    cosines = {row.block: row.mean for row in measured if (row.parameter, row.quantity) == ("weights", "cosine")}
    for block in (1, 2):
        assert 1 - found[block, "total"] == pytest.approx(cosines[block], abs=1e-9)
    assert found[1, "lag"] != 0


def test_fitted_projections_come_to_their_minimum() -> None:
    learner = learner_of("clapp++both", "vgg", f="softplus", margin=-3.0)  # no pairs are separated without end
    encoder = copy.deepcopy(learner.encoder.state_dict())
    data = pairs(8)

    def slope() -> float:
        losses = torch.stack([learner.losses(*pair).sum() for pair in data]).mean()
        return sum(float(g.square().sum()) for g in torch.autograd.grad(losses, list(learner.projections.parameters())))

    before = slope()
    history = fit_projections(learner, data, epochs=300, lr=1e-2)
    assert slope() < 1e-2 * before
    assert history[-1] < history[0]
    assert all(torch.equal(encoder[name], value) for name, value in learner.encoder.state_dict().items())
    assert all(p.grad is None for p in learner.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_precisions(dtype: torch.dtype) -> None:
    learner = learner_of("clapp++both", "vgg").to(dtype)
    data = [Pair(p.view_a.to(dtype), p.view_b.to(dtype), p.negatives) for p in pairs(4)]
    rows = decompose(learner, data, data, epochs=1)
    assert all(-2 <= row.mean <= 2 for row in rows)


@dataclass(frozen=True, kw_only=True)
class Twice(ScoreRule):
    """A rule whose losses are not those of its references."""

    references: ClassVar[dict[str, Reference]] = {"lateral": Own()}

    def losses(self, batch: Batch, projections: Projections) -> Tensor:
        return 2 * super().losses(batch, projections)


@dataclass(frozen=True, kw_only=True)
class Biased(ScoreRule):
    """A projection with a bias."""

    references: ClassVar[dict[str, Reference]] = {"lateral": Own()}

    def build(self, dims: Sequence[int]) -> dict[str, list[nn.Module]]:
        return {"lateral": [nn.Linear(d, d) for d in dims]}


@pytest.mark.parametrize(("rule", "words"), [(Twice(), "no optimum of it"), (Biased(), "dense projections")])
def test_a_rule_of_another_form_is_refused(rule: ScoreRule, words: str) -> None:
    learner = small_learner("vgg", rule)
    with usage_error(words):
        optimal_feedback(learner, pairs(2))
    with usage_error(words):
        decompose(learner, pairs(2), pairs(2), epochs=1)


def test_what_has_no_optimum_is_refused() -> None:
    with usage_error("local score rules such as clapp"):
        optimal_feedback(learner_of("bp-clapp++", "vgg"), pairs(1))
    with usage_error("at least one batch"):
        optimal_feedback(learner_of("clapp++", "vgg"), [])
    with usage_error("at least one batch"):
        decompose(learner_of("clapp++", "vgg"), pairs(1), [], epochs=1)
    with usage_error("at least one batch"):
        decompose(learner_of("clapp++", "vgg"), [], pairs(1), epochs=1)
