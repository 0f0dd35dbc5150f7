"""The instrument: cosines against the oracle's, one pass for all rules, the null, bias and noise, what it refuses."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import localssl
from localssl import oracle
from localssl.alignment import (
    QUANTITIES,
    LayerAlignment,
    Pair,
    Signals,
    fit_projections,
    measure,
    shared_negatives,
)
from localssl.alignment.quantities import products, summarise
from localssl.encoders import Encoder
from localssl.errors import UsageError
from localssl.learner import Learner

from .util import PATCHES, SHAPE, N, numpy, small_encoder, small_learner, to_oracle, usage_error, views

NEGATIVES = (np.arange(2 * N) + 1) % (2 * N)
RULES = ["clapp", "clapp++", "clapp++dfb", "clapp++both", "bp-clapp++"]


def rows_of(
    learner: Learner, data: list[tuple[Tensor, Tensor]], reference: str = "own"
) -> dict[tuple[int, str], LayerAlignment]:
    """The rows of the blocks' weights by (block, quantity)."""
    found = measure(learner.encoder, learner, data, reference)
    return {(row.block, row.quantity): row for row in found if row.parameter == "weights"}


def oracle_cosines(learner: Learner, key: str, seed: int, spatial: bool) -> list[float]:
    """Per block, from gradients that NumPy loops computed: the rule's, and bp-clapp++'s with the rule's own B^L."""
    rule, patches = learner.rule.name, PATCHES["vgg"]
    a, b = (numpy(view) for view in views(seed))
    weights = {key: [numpy(m.weight) for m in learner.projections[key]]}
    blocks = to_oracle(learner.encoder)
    local = oracle.reference(rule, blocks, weights, a, b, NEGATIVES, learner.patches)
    last = {"lateral": [weights[key][-1]]}
    end_to_end = oracle.reference("bp-clapp++", blocks, last, a, b, NEGATIVES, patches, spatial=spatial)
    found: list[float] = []
    for mine, theirs in zip(local.block_grads, end_to_end.block_grads, strict=True):
        x, y = mine["weight"].ravel(), theirs["weight"].ravel()
        found.append(float(x @ y / np.sqrt((x @ x) * (y @ y))))
    return found


@pytest.mark.parametrize(("rule", "key"), [("clapp", "lateral"), ("clapp++", "lateral"), ("clapp++dfb", "feedback")])
@pytest.mark.parametrize("reference", ["own", "bp-clapp++"])
def test_cosines_are_the_oracles(rule: str, key: str, reference: str) -> None:
    learner = small_learner("vgg", localssl.rules.get(rule))
    spatial = rule != "clapp"
    if reference == "bp-clapp++":  # the alignment models: the last layer averaged, so that B^L is shared
        learner = Learner(learner.encoder, learner.rule, SHAPE, (4, 2, None)).double()
        spatial = False
    seeds = (0, 1, 2)
    rows = rows_of(learner, [views(seed) for seed in seeds], reference=reference)
    expected = np.array([oracle_cosines(learner, key, seed, spatial) for seed in seeds])
    found = [rows[block, "cosine"].mean for block in (1, 2, 3)]
    assert np.allclose(found, expected.mean(0), rtol=0, atol=1e-9)
    assert found[-1] == pytest.approx(1, abs=1e-12)
    assert found[0] < 0.999  # or the comparison would compare nothing
    words = "the rule's own B^L" if reference == "bp-clapp++" else "own last-layer loss"
    assert words in rows[1, "cosine"].reference


def _cosine(mine: dict[str, NDArray[np.float64]], theirs: NDArray[np.float64]) -> float:
    x, y = mine["weight"].ravel(), theirs.ravel()
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))


@pytest.mark.parametrize("rule", ["clapp++both", "optimum"])
def test_cosines_of_both_and_of_the_optimum_are_the_oracles(rule: str) -> None:
    """Against the sum of the last layer's losses, each with its own B^L."""
    learner = small_learner("vgg", localssl.rules.get(rule))
    weights = {key: [numpy(m.weight) for m in modules] for key, modules in learner.projections.items()}
    blocks = to_oracle(learner.encoder)
    expected: list[list[float]] = []
    for seed in (0, 1, 2):
        a, b = (numpy(view) for view in views(seed))
        # the optimum's error is direct feedback's, at its own B
        name = "clapp++dfb" if rule == "optimum" else rule
        local = oracle.reference(name, blocks, weights, a, b, NEGATIVES, learner.patches)
        parts = [
            oracle.reference("bp-clapp++", blocks, {"lateral": [w[-1]]}, a, b, NEGATIVES, PATCHES["vgg"], spatial=True)
            for w in weights.values()
        ]
        expected.append(
            [
                _cosine(mine, sum((part.block_grads[i]["weight"] for part in parts), np.zeros(())))
                for i, mine in enumerate(local.block_grads)
            ]
        )
    rows = rows_of(learner, [views(seed) for seed in (0, 1, 2)])
    found = [rows[block, "cosine"].mean for block in (1, 2, 3)]
    assert np.allclose(found, np.mean(expected, 0), rtol=0, atol=1e-9)
    assert found[0] < 0.999


@pytest.mark.parametrize("rule", ["clapp++", "clapp++both"])
def test_cosines_with_infonce_are_the_oracles(rule: str) -> None:
    learner = small_learner("vgg", localssl.rules.get(rule))
    other = Learner(learner.encoder, localssl.rules.get("bp-infonce", projection_dim=6), SHAPE).double()
    weights = {key: [numpy(m.weight) for m in modules] for key, modules in learner.projections.items()}
    head = {"head": [numpy(other.projections["head"].get_submodule("0").weight)]}
    blocks = to_oracle(learner.encoder)
    expected: list[list[float]] = []
    for seed in (0, 1, 2):
        a, b = (numpy(view) for view in views(seed))
        local = oracle.reference(rule, blocks, weights, a, b, NEGATIVES, learner.patches)
        end_to_end = oracle.reference("bp-infonce", blocks, head, a, b, projection_dim=6)
        expected.append(
            [_cosine(x, y["weight"]) for x, y in zip(local.block_grads, end_to_end.block_grads, strict=True)]
        )
    found = measure(learner.encoder, learner, [views(seed) for seed in (0, 1, 2)], other)
    cosines = [row.mean for row in found if (row.quantity, row.parameter) == ("cosine", "weights")]
    assert np.allclose(cosines, np.mean(expected, 0), rtol=0, atol=1e-9)


def test_cosine_to_the_sum_of_the_other_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 5, 7, generator=generator, dtype=torch.float64)
    y = y + 1
    found = summarise(products(list(x), list(y)))
    others = [y[[j for j in range(5) if j != i]].sum(0) for i in range(5)]
    for name, mine in (("cosine_to_sum", x), ("reference_to_sum", y)):
        expected = torch.stack([torch.cosine_similarity(g, s, dim=0) for g, s in zip(mine, others, strict=True)])
        assert found[name][0] == pytest.approx(float(expected.mean()), abs=1e-12)
    assert found["reference_to_sum"][0] > 0.3 > abs(found["cosine_to_sum"][0])


@pytest.mark.parametrize("network", ["vgg", "flat", "mlp"])
@pytest.mark.parametrize("rule", RULES)
def test_one_pass_gives_the_learners_gradients(rule: str, network: str) -> None:
    learner = small_learner(network, localssl.rules.get(rule))
    a, b = views(0)
    signals = Signals(learner.encoder, Pair(a, b))
    found, reference = signals.of_rule(learner), signals.of_last_loss(learner)
    learner.zero_grad()
    learner.accumulate_grads(a, b)
    local = [{name: p.grad for name, p in block.named_parameters()} for block in learner.encoder.blocks]
    learner.zero_grad()
    learner.end_to_end_loss(a, b).backward()
    end_to_end = [{name: p.grad for name, p in block.named_parameters()} for block in learner.encoder.blocks]
    for mine, theirs in ((found, local), (reference, end_to_end)):
        for one, other in zip(mine, theirs, strict=True):
            assert one.keys() == other.keys()
            for name in one:
                torch.testing.assert_close(one[name], other[name], rtol=1e-12, atol=1e-15)


def test_several_rules_are_measured_as_each_alone() -> None:
    encoder = small_encoder("vgg")
    learners = [Learner(encoder, localssl.rules.get(rule), SHAPE, PATCHES["vgg"]).double() for rule in RULES[:4]]
    data = [views(seed) for seed in range(3)]
    together = measure(encoder, learners, data)
    assert repr(together) == repr([row for learner in learners for row in measure(encoder, learner, data)])
    assert {row.rule for row in together} == set(RULES[:4])
    named = measure(encoder, {"mine": learners[0]}, data)
    assert {row.rule for row in named} == {"mine"}


def test_rows_of_every_parameter() -> None:
    learner = small_learner("vgg", localssl.rules.get("clapp++"))
    found = measure(learner.encoder, learner, [views(0), views(1)])
    first = [row for row in found if row.block == 1]
    assert {row.parameter for row in first} == {"weights", "0.weight", "0.bias"}
    assert len(first) == 3 * len(QUANTITIES)
    alone = {row.quantity: row.mean for row in first if row.parameter == "0.weight"}
    together = {row.quantity: row.mean for row in first if row.parameter == "weights"}
    assert alone == together  # a block with one weight


def test_the_null_pairs_gradients_of_different_batches() -> None:
    learner = small_learner("vgg", localssl.rules.get("clapp++"))
    data = [views(seed) for seed in range(3)]
    rows = rows_of(learner, data)
    assert rows[3, "cosine"].mean == pytest.approx(1, abs=1e-12)
    assert rows[3, "cosine"].null < 0.99
    gradients = []
    for a, b in data:
        signals = Signals(learner.encoder, Pair(a, b, shared_negatives([learner], N, a.device)))
        pair = signals.of_rule(learner)[0]["0.weight"], signals.of_last_loss(learner)[0]["0.weight"]
        gradients.append(tuple(g.flatten() for g in pair))
    others = [
        float(torch.cosine_similarity(gradients[i][0], gradients[j][1], dim=0))
        for i in range(3)
        for j in range(3)
        if i != j
    ]
    assert rows[1, "cosine"].null == pytest.approx(sum(others) / 6, abs=1e-12)
    assert math.isnan(rows_of(learner, data[:1])[3, "cosine"].null)


def test_bias_and_noise_tell_an_error_that_stays_from_one_that_goes() -> None:
    """The reference is a mean and batch noise; the rule has noise of its own, a wrong mean, another scale or sign."""
    generator = torch.Generator().manual_seed(0)
    n, size = 40, 4000

    def draw(rows: int) -> Tensor:
        return torch.randn(rows, size, generator=generator, dtype=torch.float64)

    mean, wrong = draw(1).expand(n, size), draw(1).expand(n, size)
    y = mean + draw(n)  # half of its power is its mean's
    cases = {  # the rule's gradients; bias, noise over E|y|², and the cosine of the means
        "the mean alone": (mean, 0.0, 0.5, 1.0),
        "itself, three times as long": (3 * y, 0.0, 0.0, 1.0),
        "as noisy, on its own": (mean + draw(n), 0.0, 1.0, 1.0),
        "a constant error as long as the mean": (y + wrong, 0.25, 0.25 * 0.5, 0.5**0.5),
        "the opposite": (-y, 0.5, 0.5, -1.0),
    }
    for name, (x, bias, noise, cosine) in cases.items():
        found = summarise(products(list(x), list(y)))
        assert found["bias"][0] == pytest.approx(bias, abs=0.02), name
        assert found["noise"][0] == pytest.approx(noise, abs=0.02), name
        assert found["cosine_of_mean"][0] == pytest.approx(cosine, abs=0.02), name
    few = summarise(products(list((mean + 3 * draw(n))[:10]), list((mean + 3 * draw(n))[:10])))
    assert few["cosine_of_mean"][0] == pytest.approx(1, abs=0.1)  # the noise of ten batches does not lower it
    assert few["bias"][1] < 0 < few["bias"][2]
    scaled = summarise(products(list(3 * y), list(y)))
    assert abs(scaled["bias"][0]) < 1e-12
    assert scaled["relative_error"][0] == pytest.approx(4)
    unresolved = summarise(products([mean[0], -mean[0]], [mean[0], mean[0]]))
    assert all(math.isnan(unresolved[q][0]) for q in ("bias", "noise", "cosine_of_mean"))


def test_missing_projections_are_fitted_or_asked_for() -> None:
    encoder = small_encoder("vgg")
    data, fit = [views(0), views(1)], [views(seed) for seed in range(2, 6)]
    with usage_error("'clapp' was given without projections"):
        measure(encoder, "clapp", data)
    learner = Learner(encoder, localssl.rules.get("clapp++"), SHAPE, PATCHES["vgg"]).double()
    with usage_error(r"reference 'bp-clapp\+\+' has B\^L to be fitted"):
        measure(encoder, learner, data, "bp-clapp++")
    before = copy.deepcopy(learner.state_dict())
    rows = measure(encoder, [learner, "clapp++dfb"], data, "bp-clapp++", fit=fit)
    assert {row.reference for row in rows if row.rule == "clapp++"} == {
        "bp-clapp++ with B^L fitted on the frozen encoder"
    }
    assert all(torch.equal(before[name], value) for name, value in learner.state_dict().items())
    rows = measure(encoder, learner, data, "bp-infonce", fit=fit)
    assert {row.reference for row in rows} == {"bp-infonce with its head fitted on the frozen encoder"}
    with usage_error("unknown reference 'bp-clap'.*bp-clapp"):
        measure(encoder, learner, data, "bp-clap")
    with usage_error("another encoder"):
        measure(small_encoder("vgg"), learner, data)


def test_rules_of_one_form_share_the_fitted_reference() -> None:
    encoder = small_encoder("vgg")
    data, fit = [views(0), views(1)], [views(seed) for seed in range(2, 6)]
    learners = [
        Learner(encoder, localssl.rules.get("clapp++both", f=f), SHAPE, PATCHES["vgg"]).double()
        for f in ("hinge", "softplus")
    ]
    rows = measure(encoder, {"hinge": learners[0], "softplus": learners[1]}, data, "bp-clapp++", fit=fit)
    alone = measure(encoder, {"softplus": learners[1]}, data, "bp-clapp++", fit=fit)
    assert repr([row for row in rows if row.rule == "softplus"]) == repr(alone)  # its own form's B^L, not the hinge's


def test_a_gradient_that_is_random_is_refused() -> None:
    blocks = [nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Dropout(0.5)) for _ in range(1)]
    encoder = Encoder.from_blocks(blocks).double()
    learner = Learner(encoder, localssl.rules.get("clapp"), SHAPE)
    with pytest.raises(UsageError, match=r"computed twice.*eval"):
        measure(encoder, learner, [views(0)])
    assert len(measure(encoder, learner.eval(), [views(0)])) == 3 * len(QUANTITIES)


def test_a_zero_gradient_is_left_out_and_not_averaged() -> None:
    learner = small_learner("vgg", localssl.rules.get("clapp++"))
    dark = torch.zeros(N, *SHAPE, dtype=torch.float64)
    with torch.no_grad():
        for name, parameter in learner.encoder.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    rows = rows_of(learner, [views(0), (dark, dark), views(1)])
    alone = rows_of(learner, [views(0), views(1)])
    assert {row.batches for row in rows.values()} == {2}
    for place, row in rows.items():
        assert row.mean == pytest.approx(alone[place].mean, rel=1e-12, nan_ok=True)
    only = rows_of(learner, [(dark, dark)])
    assert all(math.isnan(row.mean) and row.batches == 0 for row in only.values())


def test_gradients_that_are_not_finite_are_refused_in_every_batch() -> None:
    learner = small_learner("vgg", localssl.rules.get("clapp++"))
    a, b = views(1)
    a[0, 0, 0, 0] = float("nan")
    with usage_error("not finite in batch 2"):
        measure(learner.encoder, learner, [views(0), (a, b)])


def test_a_frozen_encoder_is_refused() -> None:
    learner = small_learner("vgg", localssl.rules.get("clapp++"))
    learner.encoder.requires_grad_(False)
    with usage_error("no weight of the encoder requires a gradient"):
        measure(learner.encoder, learner, [views(0)])


def test_what_is_no_batch_no_rule_and_no_encoder() -> None:
    learner = small_learner("vgg", localssl.rules.get("clapp++"))
    a, b = views(0)
    for data in ([(a,)], [(a, None)], (a, b), [(a, b, None, None, None)]):
        with usage_error("data is a list of batches"):
            measure(learner.encoder, learner, data)  # type: ignore[arg-type]
    for rule in (3, [3], [localssl.rules.get]):
        with usage_error("measure takes rules"):
            measure(learner.encoder, rule, [(a, b)])  # type: ignore[arg-type]
    with usage_error("measure takes an Encoder, got a Sequential"):
        measure(nn.Sequential(), learner, [(a, b)])  # type: ignore[arg-type]
    with torch.no_grad():
        assert measure(learner.encoder, learner, [(a, b)])


def test_a_rule_by_name_starts_from_the_same_projections() -> None:
    encoder = small_encoder("vgg")
    data, fit = [views(0), views(1)], [views(seed) for seed in range(2, 6)]
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(repr(measure(encoder, "clapp++dfb", data, patches=PATCHES["vgg"], fit=fit)))
    assert found[0] == found[1]
    with usage_error("no minimum of its losses"):
        measure(encoder, "optimum", data, patches=PATCHES["vgg"], fit=fit)


def test_the_reference_shares_negatives_and_is_checked() -> None:
    encoder = small_encoder("vgg")
    learner = Learner(encoder, localssl.rules.get("clapp++"), SHAPE, PATCHES["vgg"]).double()
    other = Learner(encoder, localssl.rules.get("bp-clapp++", negatives="random"), SHAPE).double()
    assert measure(encoder, learner, [views(0), views(1)], other)


def test_no_batch_is_refused() -> None:
    learner = small_learner("vgg", localssl.rules.get("clapp++"))
    with pytest.raises(UsageError, match="at least one batch"):
        measure(learner.encoder, learner, [])


def test_a_batch_of_a_wrong_shape_is_refused() -> None:
    learner = small_learner("vgg", localssl.rules.get("clapp++"))
    a, b = views(0)
    for bad, words in (((a, b[:2]), "3 images, view b 2"), ((a[:1], b[:1]), "at least 2"), ((a[:, :1], b), "of shape")):
        with usage_error(words):
            measure(learner.encoder, learner, [(a, b), bad])
    with usage_error("LongTensor of 6 indices"):
        measure(learner.encoder, learner, [(a, b, torch.zeros(3, dtype=torch.int64))])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mixed_precision(dtype: torch.dtype) -> None:
    """Under autocast the activities are bfloat16 and the weights float32, as in a bf16-mixed run."""
    learner = small_learner("vgg", localssl.rules.get("clapp++both")).float()
    data = [tuple(view.float() for view in views(seed)) for seed in range(3)]
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        rows = rows_of(learner, data)  # type: ignore[arg-type]
    plain = rows_of(learner, data)  # type: ignore[arg-type]
    for block in (1, 2, 3):
        assert rows[block, "cosine"].mean == pytest.approx(plain[block, "cosine"].mean, abs=0.1)
    assert rows[3, "cosine"].mean == pytest.approx(1, abs=1e-4)


def test_fitting_descends_in_every_projection() -> None:
    """A gradient that lies in memory otherwise than its weights is not taken for that of other entries."""
    learner = small_learner("vgg", localssl.rules.get("clapp++", projection="patch-local"))
    a, b = views(0)
    learner.losses(a, b).sum().backward()
    before = {n: p.detach().clone() for n, p in learner.projections.named_parameters()}
    signs = {n: p.grad.sign() for n, p in learner.projections.named_parameters() if p.grad is not None}
    learner.zero_grad()
    fit_projections(learner, [(a, b)], epochs=1)  # Adam's first step goes by the signs alone
    for name, p in learner.projections.named_parameters():
        moved = signs[name] != 0
        assert moved.any()
        assert torch.equal((p - before[name]).sign()[moved], -signs[name][moved]), name
