"""clapp-illing: its patches, its draws and its loss and update against the slow reference."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import localssl
from localssl import evaluate, oracle
from localssl.alignment import shared_negatives
from localssl.encoders import Encoder
from localssl.inputs import PatchGrid
from localssl.learner import Learner
from localssl.rules.clapp_illing import ClappIlling

from .train_util import run_tiny
from .util import (
    SHAPE,
    N,
    assert_close_report,
    assert_derivative,
    compare,
    numpy,
    run_oracle,
    small_learner,
    to_oracle,
    usage_error,
    views,
)

NEGATIVES = torch.tensor([4, 1, 1, 0, 5, 2])  # image 1 draws itself
NETWORKS = ["vgg", "flat", "mlp"]
CASES: dict[str, dict[str, Any]] = {
    "clapp": {},
    "synchronous": {"coin": False},
    "clapp-s": {"variant": "clapp-s"},
    "more steps": {"patch": 2, "stride": 1, "coin": False},  # on "flat" alone: 7 rows, k = 1 to 5
}


@dataclass(frozen=True, kw_only=True)
class Recording(ClappIlling):
    """The rule, keeping what it drew."""

    drawn: list[tuple[np.ndarray, np.ndarray | None]] = field(default_factory=list, compare=False)

    def draw(self, shape: Any, given: Tensor | None, device: torch.device) -> tuple[Tensor, Tensor | None]:
        negatives, coin = super().draw(shape, given, device)
        self.drawn.append((negatives.numpy(), None if coin is None else coin.numpy()))
        return negatives, coin


def learner_of(rule: ClappIlling, network: str = "vgg", seed: int = 0) -> Learner:
    """A learner whose scores lie on both sides of the margin."""
    learner = small_learner(network, rule, seed)
    batch = learner.batch(*views(seed))
    with torch.no_grad():
        for modules in learner.projections.values():
            for z, module in zip(batch.z, modules, strict=True):
                nn.init.normal_(module.weight)
                module.weight.mul_(1.5 / (z @ module.weight @ z.T).square().mean().sqrt())
    return learner


def ask(learner: Learner, given: Tensor | None, seed: int = 0, **options: Any) -> oracle.Result:
    """The oracle's answer on the same patches (cut by loops) and the same draws."""
    rule = learner.rule
    assert isinstance(rule, Recording)
    a, b = views(seed)
    rule.drawn.clear()
    torch.manual_seed(7)
    learner.losses(a, b, given)
    draws = list(rule.drawn)
    known = {name: getattr(rule, name) for name in ("variant", "coin", "rows", "columns")}
    samples = slow_patches(torch.cat((a, b)), rule.patch or 4, rule.stride or 2)
    return run_oracle(learner, "clapp-illing", a, b, given, samples=samples, draws=draws, **known, **options)


def slow_patches(images: Tensor, patch: int, stride: int) -> np.ndarray:
    found: list[np.ndarray] = []
    for image in images.numpy():
        for y in range(0, image.shape[1] - patch + 1, stride):
            for x in range(0, image.shape[2] - patch + 1, stride):
                found.append(image[:, y : y + patch, x : x + patch])
    return np.stack(found)


@pytest.mark.parametrize(
    ("size", "patch", "grid"),
    [
        ((16, 16), 8, (3, 3)),
        ((32, 32), 16, (3, 3)),
        ((64, 64), 16, (7, 7)),
        ((96, 96), 16, (11, 11)),
        ((9, 30), 4, (3, 14)),
        ((33, 40), 16, (3, 4)),
    ],
)
def test_the_grid_of_patches(size: tuple[int, int], patch: int, grid: tuple[int, int]) -> None:
    shape = (2, *size)
    assert PatchGrid().grid(shape) == grid
    assert PatchGrid().shape(shape) == (2, patch, patch)
    a, b = torch.randn(2, 2, *shape)
    assert np.array_equal(PatchGrid()(a, b).numpy(), slow_patches(torch.cat((a, b)), patch, patch // 2))


@pytest.mark.parametrize("given", [None, NEGATIVES], ids=["drawn", "given"])
@pytest.mark.parametrize(
    ("case", "network"),  # patches of 2 cannot be pooled twice
    [(case, network) for case in CASES for network in NETWORKS if case != "more steps" or network == "flat"],
)
def test_loss_and_update_equal_the_oracles(case: str, network: str, given: Tensor | None) -> None:
    learner = learner_of(Recording(**CASES[case]), network)
    expected = ask(learner, given)
    assert len(learner.projections) == {"more steps": 10, "clapp-s": 1}.get(case, 2)
    torch.manual_seed(7)
    compare(learner, expected, *views(), given)
    assert all(grads["weight"].any() for grads in expected.block_grads)


@pytest.mark.parametrize("case", ["clapp", "synchronous", "clapp-s"])
def test_a_wrong_rule_fails(case: str) -> None:
    """The comparison sees a lost stop-gradient, a flipped sign and a prediction into the wrong row."""
    learner = learner_of(Recording(**CASES[case]))
    expected = ask(learner, NEGATIVES)
    rule = learner.rule
    assert isinstance(rule, Recording)
    for mistake in ("sign", "symmetric", "upward"):
        if mistake == "symmetric" and case == "clapp-s":
            continue
        wrong = Wrong(**{**CASES[case], "mistake": mistake})
        learner.rule = wrong
        torch.manual_seed(7)
        with pytest.raises(AssertionError, match="ratio"):
            compare(learner, expected, *views(), NEGATIVES)


@dataclass(frozen=True, kw_only=True)
class Wrong(ClappIlling):
    mistake: str = "none"

    def layer_loss(self, batch: Any, layer: int, projections: Any) -> Tensor:
        if self.mistake == "sign":
            return -super().layer_loss(batch, layer, projections)
        if self.mistake == "upward":
            z = [h.view(-1, self.rows, self.columns, h.shape[1]).flip(1).flatten(0, 2) for h in batch.z]
            return super().layer_loss(localssl.rules.Batch(z, batch.negatives), layer, projections)
        # no stop-gradient: one loss of both, counted for the two matrices
        synchronous = ClappIlling(variant="clapp-s", coin=self.coin)
        parts = [{"predict_1": projections[key]} for key in ("predict_1", "retrodict_1")]
        losses = [synchronous.layer_loss(batch, layer, part) for part in parts]
        return losses[0] + losses[1]


@pytest.mark.parametrize("case", ["clapp", "synchronous", "clapp-s"])
def test_the_oracles_gradients_are_those_of_its_losses(case: str) -> None:
    """Central differences along one direction per block, what is stopped held at its value."""
    learner = learner_of(Recording(**CASES[case]), seed=3)
    base = ask(learner, None, seed=4)
    held = {"references": base.references} if case != "clapp-s" else {}  # symmetric: nothing is stopped
    torch.manual_seed(0)
    for layer in range(3):
        parameters = list(learner.encoder.blocks[layer].parameters())
        wanted = [base.block_grads[layer][kind] for kind in ("weight", "bias")]
        for key, modules in learner.projections.items():
            parameters.append(modules[layer].weight)
            wanted.append(base.projection_grads[key][layer])
        assert_derivative(
            parameters, wanted, lambda layer=layer: float(ask(learner, None, seed=4, **held).losses[layer])
        )


def test_by_hand() -> None:
    """One pixel a patch and z = x: with W = 1 the score is the product of a pixel and the one two rows below."""
    encoder = Encoder.from_blocks([nn.Identity()])
    rule = ClappIlling(patch=1, stride=1, coin=False)
    learner = Learner(encoder, rule, (1, 3, 1))
    for modules in learner.projections.values():
        nn.init.ones_(modules[0].weight)
    columns = torch.tensor([[0.5, 9, 0.4], [1, 9, 0.1], [2, 9, 0.3], [3, 9, -0.2]]).view(4, 1, 3, 1)
    negatives = torch.tensor([1, 2, 3, 0])
    found = learner.losses(columns[:2], columns[2:], negatives)
    c, z = columns[:, 0, 0, 0], columns[:, 0, 2, 0]
    one = (1 - c * z).clamp_min(0).mean() + (1 + c * z[negatives]).clamp_min(0).mean()
    assert found.tolist() == pytest.approx([2 * one.item()])


def test_draws_are_uniform_and_anew_for_every_k_layer_and_loss() -> None:
    rule = Recording(rows=7, columns=2)
    torch.manual_seed(0)
    shape = (6, 5, 2)
    drawn = [rule.draw(shape, None, torch.device("cpu")) for _ in range(2000)]
    images = torch.stack([n[:, 0, 0, 0] // 10 for n, _ in drawn])
    for negatives, _ in drawn[:50]:  # one image for the whole grid, at the same position
        places = torch.arange(60).view(*shape)[negatives[:, 0, 0, 0] // 10]
        assert torch.equal(negatives[..., 0], places)
    coins = torch.stack([coin for _, coin in drawn if coin is not None])
    assert coins.shape == (2000, 6)
    assert abs(coins.double().mean().item() - 0.5) < 4 * 0.5 / 12000**0.5
    for i in range(6):
        counts = torch.bincount(images[:, i], minlength=6)
        assert (counts - 2000 / 6).abs().max() < 4 * (2000 * 5 / 36) ** 0.5
    many, coin = ClappIlling(variant="clapp-s").draw(shape, None, torch.device("cpu"))
    assert coin is None
    assert many.shape == (*shape, 16)
    assert set(many.flatten().tolist()) == set(range(60))
    learner = learner_of(Recording(patch=2, stride=1), "flat")
    assert isinstance(learner.rule, Recording)
    learner.rule.drawn.clear()
    learner.losses(*views())
    assert len(learner.rule.drawn) == 3 * 5 * 2
    assert len({str(negatives[:, 0, 0, 0]) + str(coin) for negatives, coin in learner.rule.drawn}) == 3 * 5 * 2


def test_the_coin_leaves_the_loss_as_it_is_on_average() -> None:
    synchronous = learner_of(ClappIlling(coin=False))
    tossed = learner_of(ClappIlling())
    expected = synchronous.losses(*views(), NEGATIVES)
    torch.manual_seed(0)
    found = torch.stack([tossed.losses(*views(), NEGATIVES).detach() for _ in range(1000)])
    expected = expected * (1 - 2**-6)  # of 64 tosses one leaves the positive term without an image, one the negative
    assert ((found.mean(0) - expected).abs() < 4 * found.std(0) / 1000**0.5).all()


@pytest.mark.parametrize("toss", [0, 1])
def test_a_term_that_nobody_got_is_zero(toss: int) -> None:
    class Fixed(ClappIlling):
        def draw(self, shape: Any, given: Tensor | None, device: torch.device) -> tuple[Tensor, Tensor | None]:
            return super().draw(shape, given, device)[0], torch.full((shape[0],), toss)

    learner = learner_of(Fixed())
    losses = learner.accumulate_grads(*views(), NEGATIVES)
    assert torch.isfinite(losses).all()
    assert all(torch.isfinite(p.grad).all() for p in learner.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"variant": "clap"}, "did you mean 'clapp'"),
        ({"patch": 0}, "patch"),
        ({"stride": 2.0}, "stride"),
        ({"rows": 2}, "3 rows"),
    ],
)
def test_options_refused(options: dict[str, Any], match: str) -> None:
    with usage_error(match):
        localssl.rules.get("clapp-illing", **options)


def test_images_refused() -> None:
    encoder = Encoder.from_blocks([nn.Conv2d(2, 3, 3, padding=1)])
    for options, shape, match in (
        ({"patch": 9}, SHAPE, "do not fit"),
        ({"patch": 6}, SHAPE, "3 rows"),
        ({}, (2, 1, 8), "do not fit"),
        ({}, (2, 8), "cut from images"),
    ):
        with usage_error(match):
            Learner(encoder, localssl.rules.get("clapp-illing", **options), shape)
    with usage_error("does not accept inputs of shape"):
        Learner(localssl.encoders.mlp(128), localssl.rules.get("clapp-illing"), SHAPE)


def test_alignment_draws_its_negatives_at_random() -> None:
    learner = learner_of(ClappIlling())
    found = {str(shared_negatives([learner], N, torch.device("cpu"))) for _ in range(5)}
    assert len(found) > 1


@pytest.mark.parametrize("variant", ["clapp", "clapp-s"])
def test_a_run(variant: str, tmp_path: Path) -> None:
    run = run_tiny(tmp_path / "run", rule="clapp-illing", rule_options=(f"variant={variant}",), epochs=1, align_every=1)
    found = evaluate.align_run(run, evaluate.AlignOptions(batches=2))
    assert "clapp-illing's own last-layer loss" in found.reference
    cosines = [row.mean for row in found.rows if row.quantity == "cosine" and row.parameter == "weights"]
    assert cosines[-1] == pytest.approx(1, abs=1e-6)
    assert abs(cosines[0]) < 0.999
    learner, _ = run.trained_learner()
    assert learner.inputs.shape((1, 16, 16)) == (1, 8, 8)
    assert {key: len(m) for key, m in learner.projections.items()} == dict.fromkeys(
        ["predict_1"] if variant == "clapp-s" else ["predict_1", "retrodict_1"], 5
    )


def test_the_helpers() -> None:
    learner = learner_of(Recording(coin=False))
    assert_close_report(ask(learner, NEGATIVES).losses, numpy(learner.losses(*views(), NEGATIVES)))
    assert len(to_oracle(learner.encoder)) == N
    with pytest.raises(ValueError, match="coin"):
        run_oracle(learner, "clapp-illing", *views(), None)
