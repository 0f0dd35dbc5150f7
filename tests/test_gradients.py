"""Numerical differentiation: gradcheck of the library's losses, central differences of the oracle's."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import localssl
from localssl import oracle
from localssl.learner import Learner
from localssl.rules import Batch, Rule, ScoreRule

from .util import PATCHES, SCORE_RULES, numpy, small_learner, to_oracle, views

LOSSES = [case for case in SCORE_RULES if case != "optimum"]  # whose B does not descend its loss


class FixedReferences(nn.Module):
    """One loss of a learner as a function of its parameters, with the references held at their present values.

    The stop-gradient makes c a constant for autograd; numerically it moves with the weights unless it is held.
    """

    def __init__(self, learner: Learner, layer: int, a: Tensor, b: Tensor, negatives: Tensor) -> None:
        super().__init__()
        self.learner, self.layer, self.data = learner, layer, (a, b, negatives)
        self.held = [z.detach().clone() for z in learner.batch(a, b, negatives).z]

    def forward(self) -> Tensor:
        batch = self.learner.batch(*self.data)
        z = Batch([*batch.z, *self.held], batch.negatives)
        return with_held_references(self.learner.rule).losses(z, self.learner.projections)[self.layer]


@dataclasses.dataclass(frozen=True)
class Held:
    """A reference to the second half of a batch that lists every activity twice: live, then held."""

    live: Any

    def source(self, layer: int, n_layers: int) -> int:
        return n_layers // 2 + self.live.source(layer, n_layers // 2)


def with_held_references(rule: Rule) -> Rule:
    if not isinstance(rule, ScoreRule):
        return rule
    own_layers = type(rule).loss_layers
    members = {
        "references": {key: Held(reference) for key, reference in rule.references.items()},
        "loss_layers": lambda self, n: own_layers(self, n // 2),
    }
    options = {field.name: getattr(rule, field.name) for field in dataclasses.fields(rule)}
    return type("HeldRule", (type(rule),), members)(**options)


def gradcheck_loss(learner: Learner, layer: int, names: list[str]) -> bool:
    a, b = views(n=2, shape=(3, 1, 1))
    loss = FixedReferences(learner, layer, a, b, torch.tensor([1, 2, 0, 3]))
    inputs = [loss.get_parameter(name).detach().clone().requires_grad_() for name in names]

    def function(*values: Tensor) -> Tensor:
        return functional_call(loss, dict(zip(names, values, strict=True)), ())

    return torch.autograd.gradcheck(function, inputs, eps=1e-6, atol=1e-7, rtol=1e-6)


def tiny_mlp(name: str, **options: Any) -> Learner:
    torch.manual_seed(5)
    learner = Learner(
        localssl.encoders.mlp(3, widths=(5, 4, 3)).double(), localssl.rules.get(name, **options), (3, 1, 1)
    )
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return learner


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("loss_type", [1, 2])
@pytest.mark.parametrize("name", ["clapp", "clapp++dfb", "clapp++both"])
def test_gradcheck_of_every_layer(name: str, loss_type: int, layer: int) -> None:
    learner = tiny_mlp(name, f="softplus", loss_type=loss_type)
    names = [f"learner.encoder.blocks.{layer}.{1 if layer == 0 else 0}.{kind}" for kind in ("weight", "bias")]
    names += [f"learner.projections.{key}.{layer}.weight" for key in learner.projections]
    assert gradcheck_loss(learner, layer, names)


@pytest.mark.parametrize("name", ["bp-clapp++", "bp-infonce"])
def test_gradcheck_end_to_end(name: str) -> None:
    options = {"projection_dim": 4} if name == "bp-infonce" else {"f": "softplus"}
    learner = tiny_mlp(name, **options)
    names = [f"learner.{parameter}" for parameter, _ in learner.named_parameters()]
    assert gradcheck_loss(learner, 0, names)


def moved(blocks: list[Any], layer: int, kind: str, change: np.ndarray) -> list[Any]:
    block = dataclasses.replace(blocks[layer], **{kind: getattr(blocks[layer], kind) + change})
    return [*blocks[:layer], block, *blocks[layer + 1 :]]


@pytest.mark.parametrize("network", PATCHES)
@pytest.mark.parametrize(
    ("case", "f"), [*((case, f) for case in LOSSES for f in ("softplus", "hinge")), ("bp-infonce", "")]
)
def test_oracle_gradients_are_those_of_its_losses(case: str, f: str, network: str) -> None:
    """Central differences along random directions, references held; loss l moves with block l, the last with all."""
    name, options = SCORE_RULES.get(case, (case, {}))
    if case != "bp-infonce":
        options = {"f": f, "loss_type": 1 if f == "hinge" else 2, **options}
    rule = localssl.rules.get(name, **({"projection_dim": 6} if case == "bp-infonce" else options))
    learner = small_learner(network, rule, seed=3)
    a, b = (view.numpy() for view in views(seed=4, n=2))
    blocks: list[Any] = to_oracle(learner.encoder)
    projections = {key: [numpy(m.weight) for m in modules] for key, modules in learner.projections.items()}
    base = oracle.reference(name, blocks, projections, a, b, None, PATCHES[network], **options)

    def losses(blocks: list[Any], projections: Any) -> np.ndarray:
        return oracle.reference(
            name, blocks, projections, a, b, None, PATCHES[network], references=base.references or None, **options
        ).losses

    rng = np.random.default_rng(0)
    step = 1e-6

    def check(rise: np.ndarray, layer: int, grad: np.ndarray, direction: np.ndarray, what: str) -> None:
        slope = rise[min(layer, len(base.losses) - 1)] / (2 * step)
        along = float((grad * direction).sum())
        scale = float(np.abs(grad * direction).sum())
        assert abs(slope - along) <= 1e-6 * scale + 1e-8, f"{what}: {slope} numerically, {along} from the gradient"

    for layer in range(3):
        for kind, grad in base.block_grads[layer].items():
            direction = rng.choice([-1.0, 1.0], grad.shape)
            plus, minus = (losses(moved(blocks, layer, kind, sign * step * direction), projections) for sign in (1, -1))
            check(plus - minus, layer, grad, direction, f"block {layer + 1} {kind}")
    for key, grads in base.projection_grads.items():
        for layer, grad in enumerate(grads):
            direction = rng.choice([-1.0, 1.0], grad.shape)
            ends = []
            for sign in (1, -1):
                changed = {k: list(matrices) for k, matrices in projections.items()}
                changed[key][layer] = changed[key][layer] + sign * step * direction
                ends.append(losses(blocks, changed))
            check(ends[0] - ends[1], layer, grad, direction, f"projection {key} {layer + 1}")
