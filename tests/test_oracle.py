"""The library against its slow references, and proof that the comparison can fail. Numerical checks: test_gradients."""

from __future__ import annotations

import ast
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import localssl
from localssl import oracle
from localssl.errors import UsageError
from localssl.learner import Learner
from localssl.rules import Batch, ScoreRule

from .util import PATCHES, SCORE_RULES, N, assert_close_report, compare, run_oracle, small_learner, views

ROOT = Path(__file__).resolve().parents[1]
NEGATIVES: dict[str, Tensor | None] = {
    "next": None,
    "given": torch.tensor([4, 1, 1, 0, 5, 2]),  # sample 1 draws itself, sample 3 is drawn by nobody
}


@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize("network", PATCHES)
@pytest.mark.parametrize("loss_type", [1, 2])
@pytest.mark.parametrize("f", ["hinge", "softplus", "linear"])
@pytest.mark.parametrize("case", SCORE_RULES)
def test_score_rule_equals_oracle(case: str, f: str, loss_type: int, network: str, negatives: str) -> None:
    name, extra = SCORE_RULES[case]
    options = {"f": f, "loss_type": loss_type, **extra}
    learner = small_learner(network, localssl.rules.get(name, **options))
    a, b = views()
    expected = run_oracle(learner, name, a, b, NEGATIVES[negatives], patches=PATCHES[network], **options)
    assert len(expected.losses) == (1 if name.startswith("bp-") else 3)
    compare(learner, expected, a, b, NEGATIVES[negatives])


@pytest.mark.parametrize("temperature", [0.1, 0.7])
@pytest.mark.parametrize("network", PATCHES)
def test_infonce_equals_oracle(network: str, temperature: float) -> None:
    options = {"projection_dim": 6, "temperature": temperature}
    learner = small_learner(network, localssl.rules.get("bp-infonce", **options))
    a, b = views()
    expected = run_oracle(learner, "bp-infonce", a, b, None, patches=PATCHES[network], **options)
    compare(learner, expected, a, b, None)
    compare(learner, expected, a, b, NEGATIVES["given"])  # accepted and ignored


@pytest.mark.parametrize("name", ["clapp++both", "bp-clapp++"])
@pytest.mark.parametrize("margin", [0.0, 2.5])
@pytest.mark.parametrize("f", ["hinge", "softplus"])
def test_margin(name: str, f: str, margin: float) -> None:
    learner = small_learner("vgg", localssl.rules.get(name, f=f, margin=margin))
    a, b = views()
    compare(learner, run_oracle(learner, name, a, b, None, patches=PATCHES["vgg"], f=f, margin=margin), a, b, None)


@pytest.mark.parametrize("f", ["hinge", "softplus"])
@pytest.mark.parametrize("scale", [1e-3, 60.0])
def test_scores_far_from_the_margin(f: str, scale: float) -> None:
    learner = small_learner("vgg", localssl.rules.get("clapp++both", f=f))
    with torch.no_grad():
        for parameter in learner.projections.parameters():
            parameter.mul_(scale)
    a, b = views()
    compare(learner, run_oracle(learner, "clapp++both", a, b, None, patches=PATCHES["vgg"], f=f), a, b, None)


@pytest.mark.parametrize("patches", [(2, None, 1), (6, 2, 1)])  # maps of 4 x 6: a 6 is clipped in height alone
@pytest.mark.parametrize("name", ["clapp", "clapp++both", "bp-clapp++", "bp-infonce"])
def test_no_bias_odd_and_oblong_maps_and_a_linear_block_on_top(name: str, patches: tuple[int | None, ...]) -> None:
    torch.manual_seed(1)
    blocks = [
        nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, bias=False), nn.ReLU(), nn.MaxPool2d(2)),  # drops a column
        nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()),
        nn.Sequential(nn.Flatten(), nn.Linear(4 * 4 * 6, 5, bias=False), nn.ReLU()),
    ]
    encoder = localssl.encoders.Encoder.from_blocks(blocks).double()
    learner = Learner(encoder, localssl.rules.get(name), (2, 8, 13), patches)
    a, b = views(shape=(2, 8, 13))
    compare(learner, run_oracle(learner, name, a, b, None, patches=patches), a, b, None)


def one_unit(projection: float, **options: Any) -> tuple[Learner, Tensor]:
    """z = x = 1 everywhere, so that every score is B; and the view that shows it."""
    encoder = localssl.encoders.mlp(1, widths=(1,), bias=False).double()
    learner = Learner(encoder, localssl.rules.get("clapp++", **options), (1, 1, 1))
    with torch.no_grad():
        for parameter in learner.encoder.parameters():
            parameter.fill_(1.0)
        learner.projections["lateral"][0].weight.fill_(projection)
    return learner, torch.ones(2, 1, 1, 1, dtype=torch.float64)


def test_hinge_derivative_is_zero_at_the_kink() -> None:
    learner, ones = one_unit(1.0)  # s_pos = 1, exactly the margin
    negatives = torch.arange(4)
    losses = learner.accumulate_grads(ones, ones, negatives)
    assert losses.tolist() == [2.0]  # f(1) = 0, f(-1) = 2
    (weight,) = [m.weight for m in learner.encoder.modules() if isinstance(m, nn.Linear)]
    assert weight.grad is not None
    assert weight.grad.item() == 1.0  # the negative's alone; with γ⁺ = 1 the two would cancel
    compare(learner, run_oracle(learner, "clapp++", ones, ones, negatives), ones, ones, negatives)


@pytest.mark.parametrize("projection", [-800.0, -22.0, -18.0, 18.0, 22.0, 800.0])
def test_softplus_of_large_scores(projection: float) -> None:
    """No overflow on either side. PyTorch's softplus is the identity above 20, which is off by e^-20 = 2e-9."""
    learner, ones = one_unit(projection, f="softplus")
    compare(learner, run_oracle(learner, "clapp++", ones, ones, None, f="softplus"), ones, ones, None, rtol=3e-9)


def test_the_cases_have_active_and_inactive_hinges() -> None:
    """Otherwise every modulator is 1 and a wrong one could pass."""
    for network in PATCHES:
        learner = small_learner(network, localssl.rules.get("clapp++both"))
        batch = learner.batch(*views())
        for layer in range(3):
            for key, modules in learner.projections.items():
                rule = learner.rule
                assert isinstance(rule, ScoreRule)
                s_pos, s_neg = rule.scores(batch, layer, key, modules[layer])
                active = torch.cat((s_pos < 1, s_neg > -1)).double().mean().item()
                assert 0 < active < 1, (network, layer, key, s_pos, s_neg)


# ----------------------------------------------------------------------------------------- the oracle as a second route


def test_oracle_imports_only_numpy_and_itself() -> None:
    folder = Path(oracle.__file__).parent
    allowed = {"numpy", "localssl.errors", *sys.stdlib_module_names}
    files = sorted(folder.glob("*.py"))
    assert files
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
                assert node.level == 0, file.name
            else:
                continue
            for module in modules:
                fine = module in allowed or module.split(".")[0] in allowed or module.startswith("localssl.oracle")
                assert fine, f"{file.name} imports {module}"


def test_every_built_in_rule_has_an_oracle() -> None:
    modules = {name: type(localssl.rules.get(name)).__module__ for name in localssl.rules.names()}
    built_in = {name for name, module in modules.items() if module.startswith("localssl.rules.")}
    assert built_in <= set(oracle.names())  # an experiment registers candidates of its own when it is imported


def test_every_oracle_is_compared() -> None:
    """One that is one per cent off was noticed by a test of every name: anew with a new one, minutes."""
    record = json.loads((ROOT / "benchmarks" / "results" / "oracle_mutants.json").read_text(encoding="utf-8"))
    noticed = {(row["rule"], row["what"]) for row in record["rows"] if row["noticed by"]}
    wanted = {(name, what) for name in oracle.names() for what in ("losses", "gradients")}
    assert noticed == wanted, "python benchmarks/oracle_mutants.py --out benchmarks/results/oracle_mutants.json"


def test_oracle_refuses_unknown_rules_and_options() -> None:
    a, b = views()
    learner = small_learner("mlp", localssl.rules.get("clapp"))
    with pytest.raises(UsageError, match="clapp"):
        run_oracle(learner, "clap", a, b, None)
    with pytest.raises(UsageError, match="margin"):
        run_oracle(learner, "clapp", a, b, None, margn=1.0)
    with pytest.raises(UsageError, match="pooled"):  # what the rule fixes is no option
        run_oracle(learner, "clapp", a, b, None, pooled=False)


def test_report_names_place_values_and_ratio() -> None:
    want = np.array([[1.0, 2.0], [3.0, 4.0]])
    assert_close_report(want, want)
    got = want.copy()
    got[1, 0] *= 2
    with pytest.raises(AssertionError, match=r"at \(1, 0\): 6, expected 3, ratio 2"):
        assert_close_report(got, want)
    got[1, 0] = np.nan
    with pytest.raises(AssertionError, match="nan"):
        assert_close_report(got, want)
    with pytest.raises(AssertionError, match="1 of 4 differ"):
        assert_close_report(want * np.array([[1, 1], [1, 1 + 1e-8]]), want)
    with pytest.raises(AssertionError, match="shape"):
        assert_close_report(want[0], want)


# --------------------------------------------------------------------------------- wrong rules must fail the comparison


@dataclasses.dataclass(frozen=True, kw_only=True)
class Broken(ScoreRule):
    """clapp++ with one mistake, chosen by name."""

    references = localssl.rules.get("clapp++").references  # type: ignore[attr-defined]
    mistake: str = "none"

    def scores(self, batch: Batch, layer: int, key: str, projection: nn.Module) -> tuple[Tensor, Tensor]:
        z, negatives = batch.z[layer], self.draw(batch)
        z_pos, z_neg = batch.positives(layer), batch.positives(layer)[negatives]
        c = z if self.mistake == "no stop-gradient" else z.detach()
        if self.mistake == "reference from the other view":
            c = batch.positives(layer).detach()
        if self.mistake == "positive from the own view":
            z_pos = z
        if self.mistake == "negative from the unswapped samples":
            z_neg = z[negatives]
        if self.mistake == "no gradient through the negatives":
            z_neg = z_neg.detach()
        g = projection(c)
        if self.mistake == "sign":
            g = -g
        return (z_pos * g).sum(1), (z_neg * g).sum(1)

    def losses(self, batch: Batch, projections: nn.ModuleDict) -> Tensor:
        total = super().losses(batch, projections)
        return 2 * batch.n * total if self.mistake == "sum over samples" else total


@pytest.mark.parametrize(
    "mistake",
    [
        "sign",
        "no stop-gradient",
        "reference from the other view",
        "positive from the own view",
        "negative from the unswapped samples",
        "no gradient through the negatives",
        "sum over samples",
    ],
)
@pytest.mark.parametrize("network", ["vgg", "mlp"])
def test_a_wrong_rule_fails(network: str, mistake: str) -> None:
    a, b = views()
    negatives = NEGATIVES["given"]
    right = small_learner(network, Broken(mistake="none", f="softplus"))
    expected = run_oracle(right, "clapp++", a, b, negatives, patches=PATCHES[network], f="softplus")
    compare(right, expected, a, b, negatives)
    wrong = small_learner(network, Broken(mistake=mistake, f="softplus"))
    with pytest.raises(AssertionError, match=f"ratio {2 * N}" if mistake == "sum over samples" else "ratio"):
        compare(wrong, expected, a, b, negatives)
