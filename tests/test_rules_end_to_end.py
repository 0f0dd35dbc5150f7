"""lpl, bp-lpl, bp and bp-simclr against their slow references, what they refuse, and a run of each."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import localssl
from localssl import evaluate
from localssl.learner import Learner
from localssl.rules import Batch

from .sources_util import pictures, write_files
from .train_util import run_tiny
from .util import PATCHES, assert_derivative, compare, run_oracle, small_learner, usage_error, views

LABELS = torch.tensor([2, 0, 2])
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "lpl": ("lpl", {}),
    "lpl-weighted": ("lpl", {"pull": 0.5, "push": 2.0, "decorrelation": 3.0, "eps": 0.1}),
    "bp-lpl": ("bp-lpl", {}),
    "bp": ("bp", {"classes": 3}),
    "bp-simclr": ("bp-simclr", {"projection_dim": 6}),
    "bp-simclr-cold": ("bp-simclr", {"projection_dim": 6, "hidden": 9, "temperature": 0.1}),
}


def learner_of(case: str, network: str = "vgg", seed: int = 0) -> Learner:
    name, options = CASES[case]
    learner = small_learner(network, localssl.rules.get(name, **options), seed)
    with torch.no_grad():
        for parameter in learner.projections.parameters():
            parameter.mul_(3)
    return learner


@pytest.mark.parametrize("network", PATCHES)
@pytest.mark.parametrize("case", CASES)
def test_loss_and_update_equal_the_oracles(case: str, network: str) -> None:
    learner = learner_of(case, network)
    name, options = CASES[case]
    a, b = views()
    expected = run_oracle(learner, name, a, b, None, patches=PATCHES[network], labels=LABELS.numpy(), **options)
    assert len(expected.losses) == (3 if name == "lpl" else 1)
    assert all(grads["weight"].any() for grads in expected.block_grads)
    compare(learner, expected, a, b, None, labels=LABELS)
    compare(learner, expected, a, b, torch.tensor([4, 1, 1, 0, 5, 2]), labels=LABELS)  # ignored


@pytest.mark.parametrize("case", CASES)
def test_the_oracles_gradients_are_those_of_its_losses(case: str) -> None:
    """Central differences along one direction: all weights at once for an end-to-end loss, one block's for a local."""
    learner, (name, options) = learner_of(case, seed=3), CASES[case]
    a, b = views(seed=4)
    given: dict[str, Any] = {"patches": PATCHES["vgg"], "labels": LABELS.numpy(), **options}
    base = run_oracle(learner, name, a, b, None, **given)
    torch.manual_seed(0)
    for block in range(3) if name == "lpl" else [None]:
        parts = learner.encoder.blocks if block is None else [learner.encoder.blocks[block]]
        parameters = [p for part in parts for p in part.parameters()]
        wanted = [g[kind] for g in (base.block_grads if block is None else [base.block_grads[block]]) for kind in g]
        if block is None:
            parameters += list(learner.projections.parameters())
            wanted += [g for grads in base.projection_grads.values() for g in grads]
        assert_derivative(
            parameters,
            wanted,
            lambda block=block: float(run_oracle(learner, name, a, b, None, **given).losses[block or 0]),
        )


def test_lpl_by_torchs_own_covariance() -> None:
    z = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (found,) = localssl.rules.get("lpl").losses(localssl.rules.Batch([z]), {})
    expected = F.mse_loss(z[:4], z[4:])
    for view in (z[:4], z[4:]):
        c = torch.cov(view.T)
        apart = (c - torch.diag(c.diag())).square().sum() / 6
        expected = expected - (c.diag() + 1e-4).log().mean() / 2 + 10 * apart / 2
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_lpl_of_one_unit_has_nothing_to_decorrelate() -> None:
    z = torch.randn(6, 1)
    assert torch.isfinite(localssl.rules.get("lpl").losses(localssl.rules.Batch([z]), {})).all()


def test_simclr_of_equal_and_of_perfect_projections() -> None:
    """All alike: log of the number of others. Partners alike, all else at right angles: log(1 + 2 exp(-1/τ))."""
    alike = localssl.losses.nt_xent(torch.ones(6, 4), 0.5)
    assert alike.item() == pytest.approx(torch.log(torch.tensor(5.0)).item())
    p = torch.eye(2).repeat(2, 1)  # two images, both views the same unit vector
    assert localssl.losses.nt_xent(p, 0.5).item() == pytest.approx(math.log(1 + 2 * math.exp(-2)), rel=1e-6)
    assert torch.isfinite(localssl.losses.nt_xent(torch.zeros(6, 4), 0.5))


def test_simclr_by_the_articles_equation() -> None:
    """Chen et al. 2020, equation 1 and Algorithm 1, which count partners 2k - 1 and 2k; plain NumPy, pair by pair."""
    p = np.random.default_rng(0).normal(size=(8, 5))
    sim = [[p[i] @ p[j] / np.linalg.norm(p[i]) / np.linalg.norm(p[j]) for j in range(8)] for i in range(8)]

    def of_pair(i: int, j: int) -> float:
        return -math.log(math.exp(sim[i][j] / 0.3) / sum(math.exp(sim[i][k] / 0.3) for k in range(8) if k != i))

    expected = sum(of_pair(k, k + 1) + of_pair(k + 1, k) for k in range(0, 8, 2)) / 8
    stacked = torch.from_numpy(np.concatenate((p[0::2], p[1::2])))  # here: all first views, then all second ones
    assert localssl.losses.nt_xent(stacked, 0.3).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("n", "temperature"), [(2, 0.5), (5, 0.5), (7, 0.07)])
def test_simclr_is_the_loss_of_lightly(n: int, temperature: float) -> None:
    """Value and gradient of the rule, head and readout in front, in float64."""
    lightly = pytest.importorskip("lightly.loss", reason="no lightly here: pip install --no-deps lightly")
    theirs = lightly.NTXentLoss(temperature=temperature)
    torch.manual_seed(n)
    rule = localssl.rules.get("bp-simclr", temperature=temperature, hidden=9, projection_dim=6)
    parts = {key: [module.double() for module in modules] for key, modules in rule.build([8]).items()}
    found: list[tuple[Tensor, ...]] = []
    for ours in (True, False):
        z = torch.randn(2 * n, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
        (first,), (second,) = parts["hidden"], parts["head"]
        if ours:
            loss = rule.losses(Batch([z], None, None), parts).sum()
        else:
            p = second(torch.relu(first(z)))
            loss = theirs(p[:n], p[n:])
        found.append((loss.detach(), *torch.autograd.grad(loss, [z, *first.parameters(), *second.parameters()])))
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("lpl", {"pull": -1.0}, "pull"),
        ("lpl", {"eps": 0.0}, "eps"),
        ("bp-lpl", {"push": float("nan")}, "push"),
        ("lpl", {"decorrelation": "much"}, "decorrelation"),
        ("bp", {"classes": 0}, "classes"),
        ("bp", {"classes": 2.0}, "classes"),
        ("bp-simclr", {"hidden": 0}, "hidden"),
        ("bp-simclr", {"projection_dim": None}, "projection_dim"),
        ("bp-simclr", {"temperature": 0}, "temperature"),
    ],
)
def test_options_refused(name: str, options: dict[str, Any], match: str) -> None:
    with usage_error(match):
        localssl.rules.get(name, **options)


def test_labels_refused() -> None:
    learner = learner_of("bp")
    with usage_error("supervised"):
        learner.losses(*views())
    with usage_error(r"0\.\.2"):
        learner.losses(*views(), labels=torch.tensor([0, 1, 3]))
    with usage_error("LongTensor of 3"):
        learner.losses(*views(), labels=torch.zeros(6, dtype=torch.int64))


def test_bp_on_images_without_labels(tmp_path: Path) -> None:
    write_files(tmp_path / "stl10_binary", {"unlabeled_X.bin": pictures(4, 96, 96).tobytes()})
    with usage_error("rule 'bp' is supervised and stl10 has no labels"):
        run_tiny(tmp_path / "run", rule="bp", data="stl10", data_root=tmp_path, limit_images=None)
    assert not (tmp_path / "run").exists()


def test_bp_gives_both_views_the_label() -> None:
    learner = learner_of("bp")
    a, b = views()
    batch = learner.batch(a, b, labels=LABELS)
    logits = batch.z[-1] @ learner.projections["head"][0].weight.T
    expected = F.cross_entropy(logits, LABELS.repeat(2))
    torch.testing.assert_close(learner.losses(a, b, labels=LABELS)[0], expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("case", ["lpl", "bp", "bp-simclr"])
def test_under_autocast_losses_are_float32(case: str) -> None:
    learner = learner_of(case).float()
    a, b = (view.float() for view in views())
    exact = learner.losses(a, b, labels=LABELS)
    with torch.autocast("cpu", torch.bfloat16):
        found = learner.accumulate_grads(a, b, labels=LABELS)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact.detach(), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("name", ["lpl", "bp-lpl", "bp", "bp-simclr"])
def test_a_run_of_each(name: str, tmp_path: Path) -> None:
    run = run_tiny(tmp_path / "run", rule=name, epochs=1, align_every=1)
    if name == "bp":
        assert run.config.rule_options == {"classes": 10}
    found = evaluate.align_run(run, evaluate.AlignOptions(batches=2))
    cosines = [row.mean for row in found.rows if row.quantity == "cosine" and row.parameter == "weights"]
    if name == "lpl":
        assert "lpl's own last-layer loss" in found.reference
        assert abs(cosines[0]) < 0.999
    else:
        assert found.reference == f"itself ({name} is end to end)"
        assert all(c == pytest.approx(1, abs=1e-6) for c in cosines)
    assert cosines[-1] == pytest.approx(1, abs=1e-6)


def test_a_flipped_sign_is_seen() -> None:
    rule = localssl.rules.get("lpl")
    object.__setattr__(rule, "push", -1.0)
    learner = small_learner("vgg", rule)
    a, b = views()
    expected = run_oracle(learner, "lpl", a, b, None, patches=PATCHES["vgg"])
    with pytest.raises(AssertionError, match="ratio"):
        compare(learner, expected, a, b, None)
