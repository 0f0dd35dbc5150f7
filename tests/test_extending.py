"""A user's own blocks and rules."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import localssl
from localssl.encoders import Encoder
from localssl.learner import Learner
from localssl.rules import Batch, Projections, Rule

from .util import PATCHES, SHAPE, small_encoder, usage_error, views


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
