"""A user's own blocks and rules."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import localssl
from localssl.encoders import Encoder
from localssl.learner import Learner
from localssl.references import Own
from localssl.rules import Batch, Projections, Rule, ScoreRule

from .util import PATCHES, SHAPE, small_encoder, small_learner, usage_error, views


@pytest.mark.parametrize("name", ["clapp++both", "bp-infonce"])
def test_resnet_stages_train(name: str) -> None:
    resnet18 = pytest.importorskip("torchvision.models").resnet18
    torch.manual_seed(0)
    net = resnet18(weights=None)
    stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
    encoder = Encoder.from_blocks([stem, net.layer1, net.layer2, net.layer3, net.layer4])
    learner = Learner(encoder, localssl.rules.get(name), (3, 32, 32), (4, 4, 2, 1, 1))
    assert net.bn1.running_mean.abs().max() == 0
    assert net.bn1.num_batches_tracked == 0
    a, b = torch.randn(2, 4, 3, 32, 32)
    losses = learner.accumulate_grads(a, b)
    assert losses.shape == ((5,) if name == "clapp++both" else (1,))
    assert torch.isfinite(losses).all()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in learner.parameters())
    assert all(m.weight.grad is not None and m.weight.grad.any() for m in encoder.modules() if isinstance(m, nn.Conv2d))
    assert net.bn1.num_batches_tracked == 1
    before = learner.losses(a, b).sum().item()
    torch.optim.SGD(learner.parameters(), lr=1e-4).step()
    assert learner.losses(a, b).sum().item() < before


def test_from_blocks_refuses_what_is_no_module() -> None:
    with usage_error("block 2"):
        Encoder.from_blocks([nn.Identity(), torch.relu])  # type: ignore[list-item]
    with usage_error("at least one block"):
        Encoder.from_blocks([])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Whitening(Rule):
    """A user's rule: views agree, units are decorrelated; one linear map per layer."""

    weight: float = 0.1

    def build(self, dims: Any) -> dict[str, list[nn.Module]]:
        return {"map": [nn.Linear(d, 4, bias=False) for d in dims]}

    def layer_loss(self, batch: Batch, layer: int, projections: Projections) -> Tensor:
        y = projections["map"][layer](batch.z[layer])
        agree = (y[: batch.n] - y[batch.n :]).square().sum(1).mean()
        return agree + self.weight * (y.T @ y / len(y) - torch.eye(4, dtype=y.dtype)).square().sum()


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(localssl.rules, "_RULES", dict(localssl.rules._RULES))


@pytest.mark.usefixtures("registry")
def test_a_users_rule() -> None:
    localssl.rules.register("whitening", Whitening)
    localssl.rules.register("whitening", Whitening)  # once more does no harm
    assert "whitening" in localssl.rules.names()
    with usage_error("did you mean 'weight'"):
        localssl.rules.get("whitening", wieght=1.0)
    torch.manual_seed(0)
    learner = Learner(small_encoder("vgg"), localssl.rules.get("whitening", weight=0.5), SHAPE, PATCHES["vgg"])
    optimiser = torch.optim.Adam(learner.parameters(), lr=1e-2)
    history = []
    for _ in range(40):
        optimiser.zero_grad(set_to_none=True)
        history.append(learner.accumulate_grads(*views()))
        optimiser.step()
    assert history[0].shape == (3,)
    assert bool((history[-1] < 0.9 * history[0]).all())
    learner.zero_grad(set_to_none=True)
    learner.losses(*views())[1].backward()
    assert not any(p.grad is not None and p.grad.any() for p in learner.encoder.blocks[0].parameters())


@pytest.mark.usefixtures("registry")
def test_register_refuses() -> None:
    for thing in (Whitening(), nn.Linear, "clapp", lambda: Whitening()):
        with usage_error("subclass of localssl.rules.Rule"):
            localssl.rules.register("mine", thing)  # type: ignore[arg-type]
    with usage_error("taken"):
        localssl.rules.register("clapp++", Whitening)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Homeostatic(Rule):
    """A running rate in a buffer, read and then moved; the prediction of a sample less that of another."""

    uses_negatives = True

    def build(self, dims: Sequence[int]) -> dict[str, list[nn.Module]]:
        maps: list[nn.Module] = [nn.Linear(d, d) for d in dims]
        for module, d in zip(maps, dims, strict=True):
            module.register_buffer("rate", torch.full((d,), 0.3))
        return {"predict": maps}

    def layer_loss(self, batch: Batch, layer: int, projections: Projections) -> Tensor:
        module, z = projections["predict"][layer], batch.z[layer]
        assert batch.negatives is not None
        guess = module(batch.positives(layer).detach())
        wrong = (z.detach() - guess).square().mean()
        drive = guess.detach() - guess.detach()[batch.negatives]
        surprise = torch.sigmoid(-(z.detach() * drive).mean(1))
        rate = module.get_buffer("rate")
        calm = (z * (rate - 0.3)).mean()
        rate.lerp_(z.detach().mean(0), 0.05)
        return wrong + calm - (surprise * (z * drive).mean(1)).mean()


class Twin(Homeostatic):
    """The same loss at the last layer, backpropagated through all."""

    credit = "backprop"


def test_a_rule_that_keeps_a_rate_passes_its_checks_and_is_local() -> None:
    outcomes = localssl.testing.check_rule(Homeostatic)
    asked = {check: found for check, found in outcomes.items() if not found.startswith("not asked")}
    assert set(asked.values()) == {"passed"}
    assert {"differentiation", "resume", "permutation"} <= set(asked)
    found = localssl.certificate.certify(Homeostatic())
    assert (found.verdict, {"modulator", "other samples"} <= set(found.names("ΔW"))) == ("local", True)


@pytest.mark.parametrize("rule", [Homeostatic(), Twin()])
def test_measuring_moves_no_rate(rule: Rule) -> None:
    torch.manual_seed(0)
    learner = Learner(small_encoder("vgg"), rule, SHAPE, PATCHES["vgg"])
    before = {name: buffer.clone() for name, buffer in learner.named_buffers()}
    rows = localssl.alignment.measure(learner.encoder, learner, [views(0), views(1)])
    assert [r.mean for r in rows if (r.quantity, r.parameter, r.block) == ("cosine", "weights", 3)] == [
        pytest.approx(1)
    ]
    assert all(torch.equal(before[name], buffer) for name, buffer in learner.named_buffers())
    learner.accumulate_grads(*views())
    name = "projections.predict.2.rate"
    assert not torch.equal(before[name], dict(learner.named_buffers())[name])


def test_negatives_are_the_next_sample_where_none_are_given() -> None:
    learner = small_learner("vgg", Homeostatic())
    samples = 2 * len(views()[0])
    following = (torch.arange(samples) + 1) % samples
    assert torch.equal(learner.batch(*views()).negatives, following)  # type: ignore[arg-type]
    given = following.flip(0)
    assert torch.equal(learner.batch(*views(), negatives=given).negatives, given)  # type: ignore[arg-type]
    assert small_learner("vgg", localssl.rules.get("clapp++")).batch(*views()).negatives is None  # chooses itself


def test_the_end_to_end_twin_has_the_loss_of_the_last_layer() -> None:
    local, twin = small_learner("vgg", Homeostatic()), small_learner("vgg", Twin())
    assert torch.equal(local.losses(*views())[-1:], twin.losses(*views()))
    fresh = small_learner("vgg", Homeostatic())
    fresh.end_to_end_loss(*views()).backward()
    again = small_learner("vgg", Twin())
    again.accumulate_grads(*views())
    for one, other in zip(fresh.encoder.parameters(), again.encoder.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [None, 0.5, torch.zeros(3)])
def test_a_loss_that_is_no_scalar_is_said(wrong: Any) -> None:
    class Wrong(Rule):
        def layer_loss(self, batch: Batch, layer: int, projections: Projections) -> Tensor:
            return wrong

    with usage_error("rule 'Wrong': layer_loss returned .* for block 1; it must return a scalar"):
        small_learner("vgg", Wrong()).losses(*views())


def test_parts_that_are_no_dict_are_said() -> None:
    class Wrong(Homeostatic):
        def build(self, dims: Sequence[int]) -> Any:
            return [nn.Linear(d, d) for d in dims]

    with usage_error("rule 'Wrong': build returned a list"):
        small_learner("vgg", Wrong())


@pytest.mark.parametrize("wrong", [(Own(),), {"own": Own}, {"own": "Own"}, {"own": 1}, None])
def test_references_that_are_no_dict_of_them_are_said(wrong: Any) -> None:
    with usage_error("Wrong: references is a dict, .*; found "):
        type("Wrong", (ScoreRule,), {"references": wrong})


def test_a_reference_of_ones_own() -> None:
    """c^l = z^(l+1): by hand, through the B that has its shape."""

    class Above:
        def source(self, layer: int, n_layers: int) -> int:
            return min(layer + 1, n_layers - 1)

    class Upward(ScoreRule):
        references = {"above": Above()}  # noqa: RUF012

    learner, (a, b) = small_learner("vgg", Upward(f="linear")), views()
    dims = [tuple(part.weight.shape) for part in learner.projections["above"]]
    assert [d_z for d_z, _ in dims[1:]] == [d_c for _, d_c in dims[:-1]]
    batch = learner.batch(a, b)
    for layer, (found, part) in enumerate(zip(learner.losses(a, b), learner.projections["above"], strict=True)):
        g = batch.z[min(layer + 1, len(batch.z) - 1)] @ part.weight.T  # type: ignore[operator]
        positives = batch.positives(layer)
        s_pos, s_neg = ((z * g).sum(1) for z in (positives, positives.roll(-1, 0)))
        torch.testing.assert_close(found, localssl.losses.contrast(s_pos, s_neg, "linear", 2, 1.0))
