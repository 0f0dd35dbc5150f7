"""Norms, activations and late activation of the named encoders, and what a rule may ask of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

import localssl
from localssl import encoders, rules
from localssl.encoders import layers
from localssl.oracle.layers import normalised
from localssl.rules import Batch, Projections, Rule
from localssl.runs.config import TrainConfig
from localssl.training.train import train

from .util import assert_close_report, numpy, usage_error


@pytest.mark.parametrize("norm", ["length", "standardise"])
def test_norms_are_the_slow_ones(norm: str) -> None:
    x = torch.randn(3, 2, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1
    found = numpy(layers.NORMS[norm]()(x))
    assert_close_report(found, np.stack([normalised(sample, norm) for sample in numpy(x)]), 1e-12, norm)


def test_triangle_is_relative_to_the_channels_at_a_position() -> None:
    a = torch.tensor([[[1.0, -2.0], [3.0, -4.0], [-1.0, 9.0]]])  # one image, three channels, two positions
    assert layers.Triangle()(a).tolist() == [[[0.0, 0.0], [2.0, 0.0], [0.0, 8.0]]]


@pytest.mark.parametrize("norm", ["length", "standardise"])
def test_norms_of_a_sample_of_zeros_have_a_finite_slope(norm: str) -> None:
    """End to end a block that is dead for one image hands zeros on; the others still learn."""
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    x[1] = 0
    x.requires_grad_()
    out = layers.NORMS[norm]()(x)
    (slope,) = torch.autograd.grad((out * torch.randn_like(out)).sum(), x)
    assert not out[1].any()
    assert not slope[1].any()
    assert slope[0].any()
    assert slope.isfinite().all()
    torch.manual_seed(0)
    encoder = encoders.mlp(6, (5, 4, 3), norm=norm).double()
    dead = encoder.blocks[0][1 + 1]  # its linear layer
    with torch.no_grad():
        dead.weight.fill_(1)
        dead.bias.fill_(-3)  # alive for the first of two images alone
    learner = localssl.Learner(encoder, localssl.rules.get("bp-clapp++"), (1, 1, 6))
    one = torch.ones(2, 1, 1, 6, dtype=torch.float64)
    one[0, 0, 0, 0] = 4.0 if norm == "length" else 3.0
    one[1] *= 0
    assert learner.accumulate_grads(one, one).isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())


@pytest.mark.parametrize("norm", [None, "length"])
@pytest.mark.parametrize("activation", layers.ACTIVATIONS)
def test_late_activation_only_moves_the_cut(activation: str, norm: str | None) -> None:
    torch.manual_seed(0)
    early = encoders.vgg5(width=0.25, norm=norm, activation=activation)
    late = encoders.vgg5(width=0.25, norm=norm, activation=activation, late=True)
    for theirs, mine in zip(late.parameters(), early.parameters(), strict=True):
        theirs.data.copy_(mine.data)
    x = torch.randn(2, 1, 16, 16)
    for mine, theirs in zip(early(x), late.emitted(x), strict=True):
        assert torch.equal(mine, theirs)
    assert all(torch.equal(a, b) for a, b in zip(early(x), early.emitted(x), strict=True))
    drives = late(x)
    assert [z.shape[2] for z in drives] == [16, 16, 8, 8, 4]
    assert all(bool((z < 0).any()) for z in drives)
    assert [s[1] for s in late.output_shapes((1, 16, 16))] == [16, 16, 8, 8, 4]
    assert [s[1] for s in late.output_shapes((1, 16, 16), emitted=True)] == [16, 8, 8, 4, 2]


def test_options_are_kept_in_the_configuration_and_defaults_are_not() -> None:
    plain = encoders.mlp(4, (3, 2))
    assert plain.config == {"name": "mlp", "in_features": 4, "widths": [3, 2], "bias": True}
    made = encoders.mlp(4, (3, 2), norm="length", activation="gelu", late=True)
    assert made.config == {**plain.config, "norm": "length", "activation": "gelu", "late": True}
    again = encoders.from_config(made.config)
    again.load_state_dict(made.state_dict())
    x = torch.randn(5, 4)
    assert all(torch.equal(a, b) for a, b in zip(made.emitted(x), again.emitted(x), strict=True))


def test_unknown_options_are_refused() -> None:
    with usage_error("unknown norm 'lenght'.*length"):
        encoders.vgg5(norm="lenght")
    with usage_error("unknown activation 'relo'.*relu"):
        encoders.mlp(activation="relo")
    with usage_error("option of encoder 'vgg5'.*norm"):
        encoders.build("vgg5", (1, 16, 16), options={"norms": "length"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labelled(Rule):
    """Pulls together what has one label; asks for a norm, for sgd and for a rate."""

    name: ClassVar[str] = "labelled-for-a-test"
    uses_labels: ClassVar[bool] = True
    encoder_options = {"norm": "length"}  # noqa: RUF012  (as a user would write it)
    optimizer: ClassVar[str | None] = "sgd"
    lr: ClassVar[float | None] = 0.01
    classes: int = 3

    def layer_loss(self, batch: Batch, layer: int, projections: Projections) -> Tensor:
        assert batch.labels is not None
        same = batch.labels[:, None] == batch.labels[None]
        z = batch.z[layer][: batch.n]
        return (torch.cdist(z, z).square() * same).mean() / self.classes


@pytest.fixture
def labelled(monkeypatch: pytest.MonkeyPatch) -> None:  # other files collect all names: known here alone
    monkeypatch.setitem(rules._RULES, Labelled.name, Labelled)  # pyright: ignore[reportPrivateUsage]


@pytest.mark.usefixtures("labelled")
def test_what_a_rule_asks_for_is_what_train_builds(tmp_path: Path) -> None:
    config = TrainConfig(
        rule=Labelled.name, data="digits", out=tmp_path / "x", epochs=1, limit_images=64, batch_size=32, threads=1
    )
    run = train(config, lambda line: None)
    c = run.config
    assert (c.optimizer, c.lr, c.encoder["norm"], c.rule_options) == ("sgd", 0.01, "length", {"classes": 10})
    typed = dataclasses.replace(
        config, out=tmp_path / "y", optimizer="adam", lr=0.5, encoder_options=("norm=standardise", "late=true")
    )
    c = train(typed, lambda line: None).config
    assert (c.optimizer, c.lr, c.encoder["norm"], c.encoder["late"]) == ("adam", 0.5, "standardise", True)
    assert localssl.load(tmp_path / "y").config == c.encoder


def test_supervised_rules_ask_for_labels(tmp_path: Path) -> None:
    learner = localssl.Learner(encoders.mlp(4, (3, 2)), Labelled(), (4,))
    a, b = torch.randn(2, 3, 4)
    with usage_error("is supervised: it needs the labels"):
        learner.losses(a, b)
    with usage_error("labels must be a LongTensor of 3, got torch.float32"):
        learner.losses(a, b, labels=torch.zeros(3))
    assert learner.losses(a, b, labels=torch.tensor([0, 1, 1])).shape == (2,)
