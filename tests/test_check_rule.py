"""Every registered rule passes the checks of localssl.testing, and each check catches what it is for."""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

import localssl
from localssl import losses, rules
from localssl.credit import CREDITS
from localssl.inputs import Inputs
from localssl.losses import info_nce
from localssl.references import Last, Own, Reference
from localssl.rules import Batch, Projections, Rule, ScoreRule
from localssl.rules.clapp_illing import ClappIlling
from localssl.rules.clapp_pp import ClappPP
from localssl.rules.feedback_alignment import DFA, FA
from localssl.testing import CHECKS, CheckFailed, check_rule
from localssl.testing.bench import Feed, benches, update

from .train_util import BUILT_IN
from .util import usage_error

WITHOUT_CLOCK = 10.0  # seconds of processor time


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_built_in_rule_passes(name: str) -> None:
    torch.set_num_threads(1)
    before, began = torch.get_rng_state(), time.process_time()
    outcomes = check_rule(name)
    assert time.process_time() - began < WITHOUT_CLOCK
    assert torch.equal(torch.get_rng_state(), before)
    assert list(outcomes) == list(CHECKS)
    assert all(outcome.startswith(("passed", "not asked: ", "excepted: ")) for outcome in outcomes.values())
    rule = rules.get(name)
    assert outcomes["encoders"].startswith("passed")
    local = rule.credit in ("local", "hebbian", "direct-feedback-alignment")
    assert outcomes["locality"].startswith("passed" if local else ("not", "excepted"))
    assert (outcomes["differentiation"] == "passed") == (name != "optimum")
    assert (outcomes["transport"] == "passed") == (name in ("dfa", "fa", "sign-symmetric"))
    assert (outcomes["mean"] == "passed") == (name != "softhebb")
    assert outcomes["permutation"] == "passed"
    assert outcomes["device"] == "passed" or (name in ("bp", "ff-supervised") and "item()" in outcomes["device"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Good(Rule):
    """The views agree, samples are apart; a projection per layer. The wrong ones below are changes of it."""

    def build(self, dims: Sequence[int]) -> dict[str, list[nn.Module]]:
        return {"map": [nn.Linear(d, 4) for d in dims]}

    def layer_loss(self, batch: Batch, layer: int, projections: Projections) -> Tensor:
        y = projections["map"][layer](batch.z[layer])
        spread = (y - y.mean(0).detach()).square().mean()
        return (y[: batch.n] - y[batch.n :]).square().mean() + (1 - spread).square()


def test_a_good_one_passes_by_object_class_and_file() -> None:
    alone = {"not asked: it declares no references", "not asked: it is no ScoreRule with local credit"}
    alone.add("not asked: credit 'local' has no feedback of its own")
    assert set(check_rule(Good).values()) == {"passed", *alone}
    assert check_rule(Good()) == check_rule(Good)


class PeeksAbove(Good):
    def layer_loss(self, batch: Batch, layer: int, projections: Projections) -> Tensor:
        above = batch.z[min(layer + 1, len(batch.z) - 1)].detach()
        return super().layer_loss(batch, layer, projections) * above.square().mean()


class PeeksAtProjections(Good):
    def layer_loss(self, batch: Batch, layer: int, projections: Projections) -> Tensor:
        return super().layer_loss(batch, layer, projections) * projections["map"][-1].weight.detach().norm()


@dataclasses.dataclass(frozen=True, kw_only=True)
class PeeksBetween(ScoreRule):
    """Declares the last layer, reads the one above too."""

    references: ClassVar[dict[str, Reference]] = {"feedback": Last()}

    def losses(self, batch: Batch, projections: Projections) -> Tensor:
        above = torch.stack([z.detach().square().mean() for z in [*batch.z[1:], batch.z[-1]]])
        return super().losses(batch, projections) * above


@dataclasses.dataclass(frozen=True, kw_only=True)
class PeeksInTheMiddle(FA):
    """Feedback alignment that knows of more than the last output."""

    def losses(self, batch: Batch, projections: Projections) -> Tensor:
        return super().losses(batch, projections) * batch.z[1].detach().square().mean()


@dataclasses.dataclass(frozen=True, kw_only=True)
class PeeksUnderDfa(DFA):
    def losses(self, batch: Batch, projections: Projections) -> Tensor:
        return super().losses(batch, projections) * batch.z[1].detach().square().mean()


class ReadsLabels(Good):
    def layer_loss(self, batch: Batch, layer: int, projections: Projections) -> Tensor:
        loss = super().layer_loss(batch, layer, projections)
        return loss if batch.labels is None else loss + batch.z[layer][: batch.n][batch.labels == 0].square().mean()


class NeedsLabels(Good):
    def layer_loss(self, batch: Batch, layer: int, projections: Projections) -> Tensor:
        return super().layer_loss(batch, layer, projections) + 0 * len(batch.labels)  # type: ignore[arg-type]


class Backwards(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a number."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, factor: float) -> Tensor:  # type: ignore[override]
        ctx.factor = factor
        return z.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad * ctx.factor, None


class FlippedSign(Good):
    def layer_loss(self, batch: Batch, layer: int, projections: Projections) -> Tensor:
        z = list(batch.z)
        z[layer] = Backwards.apply(z[layer], -1.0)
        return super().layer_loss(Batch(z), layer, projections)


class SlightlyOff(Good):
    def layer_loss(self, batch: Batch, layer: int, projections: Projections) -> Tensor:
        z = list(batch.z)
        z[layer] = Backwards.apply(z[layer], 1.0001 if layer == 2 else 1.0)
        return super().layer_loss(Batch(z), layer, projections)


class LostMean(Good):
    def layer_loss(self, batch: Batch, layer: int, projections: Projections) -> Tensor:
        return super().layer_loss(batch, layer, projections) * len(batch.z[layer])


class RootOfTheMean(Good):
    """Divides by sqrt(n) where it should by n."""

    def layer_loss(self, batch: Batch, layer: int, projections: Projections) -> Tensor:
        return super().layer_loss(batch, layer, projections) * len(batch.z[layer]) ** 0.5


class SumIntoParts(Good):
    """One term is a sum over the samples, and reaches the projections alone."""

    def layer_loss(self, batch: Batch, layer: int, projections: Projections) -> Tensor:
        y = projections["map"][layer](batch.z[layer].detach())
        return super().layer_loss(batch, layer, projections) + y.square().sum()


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoisySum(Good):
    """A lost mean behind inputs that are drawn."""

    def inputs(self) -> Inputs:
        return Noisy()

    def layer_loss(self, batch: Batch, layer: int, projections: Projections) -> Tensor:
        return super().layer_loss(batch, layer, projections) * len(batch.z[layer]) ** 0.5


class ContextTakesPart(ClappIlling):
    """Illing's rule without sg(c)."""

    def layer_loss(self, batch: Batch, layer: int, projections: Projections) -> Tensor:
        with mock.patch.object(Tensor, "detach", lambda z: z):
            return super().layer_loss(batch, layer, projections)


class FirstImageOnly(ClappIlling):
    """Illing's rule, whose images are not alike."""

    def layer_loss(self, batch: Batch, layer: int, projections: Projections) -> Tensor:
        return super().layer_loss(batch, layer, projections) * (1 + batch.z[layer][0].detach().square().mean())


@dataclasses.dataclass(frozen=True, kw_only=True)
class IntoOwnReference(ScoreRule):
    """c without the stop."""

    references: ClassVar[dict[str, Reference]] = {"lateral": Own()}

    def scores(self, batch: Batch, layer: int, key: str, projection: nn.Module) -> tuple[Tensor, Tensor]:
        g = projection(batch.z[self.references[key].source(layer, len(batch.z))])
        z_pos = batch.positives(layer)
        return losses.score(z_pos, g), losses.score(z_pos[self.draw(batch)], g)


class IntoLastReference(IntoOwnReference):
    references: ClassVar[dict[str, Reference]] = {"feedback": Last()}


class SharesDraws(ClappPP):
    """Forgets the negatives that it is given."""

    def draw(self, batch: Batch) -> Tensor:
        return (torch.arange(2 * batch.n) + 1) % (2 * batch.n)


class PythonsRandom(Good):
    def layer_loss(self, batch: Batch, layer: int, projections: Projections) -> Tensor:
        return super().layer_loss(batch, layer, projections) * random.random()


class SetsTheSeed(Good):
    def layer_loss(self, batch: Batch, layer: int, projections: Projections) -> Tensor:
        torch.manual_seed(3)
        return super().layer_loss(batch, layer, projections) * torch.rand(())


class Neighbours(Good):
    def layer_loss(self, batch: Batch, layer: int, projections: Projections) -> Tensor:
        y = projections["map"][layer](batch.z[layer])
        return super().layer_loss(batch, layer, projections) + (y * y.roll(1, 0)).sum(1).square().mean()


class FirstIsSpecial(Good):
    """Draws its inputs at random, and treats the images unlike."""

    def inputs(self) -> Inputs:
        return Noisy()

    def layer_loss(self, batch: Batch, layer: int, projections: Projections) -> Tensor:
        return super().layer_loss(batch, layer, projections) + batch.z[layer][0].square().mean()


@dataclasses.dataclass(frozen=True)
class Noisy(Inputs):
    """The views with noise."""

    def __call__(self, view_a: Tensor, view_b: Tensor, *rest: Tensor | None) -> Tensor:
        x = torch.cat((view_a, view_b))
        return x + 0.1 * torch.randn_like(x)


class FineButNoisy(Good):
    def inputs(self) -> Inputs:
        return Noisy()


class Overflows(Good):
    def layer_loss(self, batch: Batch, layer: int, projections: Projections) -> Tensor:
        return super().layer_loss(batch, layer, projections) + batch.z[layer].exp().mean().log()


class OverflowsBehindItsNorm(Overflows):
    """As above, where views × 1000 are the same to it as views."""

    encoder_options: ClassVar[Mapping[str, Any]] = {"norm": "length"}


class RootOfNothing(Good):
    def layer_loss(self, batch: Batch, layer: int, projections: Projections) -> Tensor:
        return super().layer_loss(batch, layer, projections) + batch.z[layer].var(0).sqrt().mean()


class Float32Weights(Good):
    def layer_loss(self, batch: Batch, layer: int, projections: Projections) -> Tensor:
        z = batch.z[layer]
        return super().layer_loss(batch, layer, projections) + (z @ torch.ones(z.shape[1], 2)).square().mean()


class ThroughFloat32(Good):
    def layer_loss(self, batch: Batch, layer: int, projections: Projections) -> Tensor:
        z = [z.float().to(z.dtype) for z in batch.z]
        return super().layer_loss(dataclasses.replace(batch, z=z), layer, projections)


class OnTheCpu(Good):
    def layer_loss(self, batch: Batch, layer: int, projections: Projections) -> Tensor:
        z = batch.z[layer]
        return super().layer_loss(batch, layer, projections) + (z * torch.ones(z.shape[1], dtype=z.dtype)).mean()


class KeptBeside(nn.Linear):
    """Counts its calls in an attribute that is not saved."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) * self.calls


class Forgets(Good):
    def build(self, dims: Sequence[int]) -> dict[str, list[nn.Module]]:
        return {"map": [KeptBeside(d, 4) for d in dims]}


class LeavesOneOut(Good):
    def layer_loss(self, batch: Batch, layer: int, projections: Projections) -> Tensor:
        loss = super().layer_loss(batch, layer, projections)
        return loss.detach() + 0 * projections["map"][layer].weight.sum() if layer == 1 else loss


class OneLossOnly(Good):
    def losses(self, batch: Batch, projections: Projections) -> Tensor:
        return super().losses(batch, projections).sum()[None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class HookedB(ScoreRule):
    """Its B learns twice as fast, by a hook that only autograd calls."""

    references: ClassVar[dict[str, Reference]] = {"lateral": Own()}

    def build(self, dims: Sequence[int]) -> dict[str, list[nn.Module]]:
        parts = super().build(dims)
        for module in parts["lateral"]:
            module.get_parameter("weight").register_hook(lambda gradient: 2 * gradient)
        return parts


class Nothing(Rule):
    pass


WRONG: list[tuple[type[Rule], str, str]] = [
    (PeeksAbove, "locality", "other weights above block 1 change the update of block 1"),
    (PeeksAtProjections, "locality", "other weights above block 1"),
    (PeeksBetween, "locality", "though the references (blocks [3]) kept their values"),
    (PeeksInTheMiddle, "transport", "larger weights above block 1 change the update of block 1"),
    (PeeksUnderDfa, "locality", "other weights above block 1 change the update of block 1"),
    (ReadsLabels, "labels", "other labels change the losses, and uses_labels is not declared"),
    (NeedsLabels, "labels", "TypeError"),
    (FlippedSign, "differentiation", "ratio -1"),
    (SlightlyOff, "differentiation", "encoder.blocks.2"),
    (LostMean, "mean", "2.00 times as long"),
    (RootOfTheMean, "mean", "1.41 times as long"),
    (SumIntoParts, "mean", "projections.map.0 is 2.00 times as long"),
    (NoisySum, "mean", "1.41 times as long"),
    (ContextTakesPart, "references", "the terms of part 'predict_1' have a gradient into samples [0, 1, 2] of block 1"),
    (FirstImageOnly, "permutation", "in another order"),
    (IntoOwnReference, "references", "a gradient into the reference?"),
    (IntoLastReference, "references", "the loss of block 1 has a gradient into block 3's activity"),
    (SharesDraws, "references", "is not what its targets alone give"),
    (PythonsRandom, "determinism", "random numbers that are not torch's"),
    (SetsTheSeed, "determinism", "sets the seed"),
    (Neighbours, "permutation", "in another order"),
    (FirstIsSpecial, "permutation", "in another order"),
    (Overflows, "extremes", "views × 1000 give losses"),
    (OverflowsBehindItsNorm, "extremes", "weights of block 1 × 1000 give losses"),
    (RootOfNothing, "extremes", "views that are all zero give an update"),
    (Float32Weights, "encoders", "RuntimeError"),
    (ThroughFloat32, "dtype", "rounded to float32"),
    (OnTheCpu, "device", "a tensor is made on the CPU"),
    (Forgets, "resume", "kept beside the learner's parameters"),
    (HookedB, "engines", "the update of projections.lateral.0.weight is off by 0.5"),
    (LeavesOneOut, "encoders", "no update of encoder.blocks.1"),
    (OneLossOnly, "encoders", "losses are of shape (1,), expected (3,)"),
    (Nothing, "encoders", "neither layer_loss nor losses"),
]


@pytest.mark.parametrize(("rule", "check", "found"), WRONG, ids=[rule.__name__ for rule, _, _ in WRONG])
def test_a_wrong_rule_fails_its_check(rule: type[Rule], check: str, found: str) -> None:
    with pytest.raises(CheckFailed) as caught:
        check_rule(rule)
    assert (caught.value.check, "\n" in str(caught.value)) == (check, False)
    assert found in caught.value.found
    assert str(caught.value).startswith(f"rule {rule.__name__!r} fails check {check!r}: ")


def test_every_check_has_a_wrong_rule() -> None:
    assert {check for _, check, _ in WRONG} == set(CHECKS)


LEAKS: list[tuple[str, str, str, Any]] = [  # rule, check, what is replaced, by what
    ("clapp++", "locality", "", None),
    ("clapp++both", "references", "localssl.rules.base.take", lambda c, z, layer: z[c.source(layer, len(z))]),
    ("bp-infonce", "mean", "localssl.losses.info_nce", lambda a, b, t: len(a) * info_nce(a, b, t)),
]


@pytest.mark.parametrize(("rule", "check", "place", "wrong"), LEAKS, ids=[check for _, check, _, _ in LEAKS])
def test_a_leak_in_the_library_is_caught(
    rule: str, check: str, place: str, wrong: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Credit that forgets to cut the graph; references that are no constants; a loss that is a sum."""
    if wrong is None:
        monkeypatch.setitem(CREDITS, "local", CREDITS["backprop"])
        monkeypatch.setattr("localssl.engine.choice.refusal", lambda *_: "this test wants autograd")
    else:
        monkeypatch.setattr(place, wrong)
    with pytest.raises(CheckFailed, match=f"check '{check}'"):
        check_rule(rule)


def test_what_else_fails_is_said() -> None:
    """All checks are run but where the rule does not run at all."""
    found: dict[str, str] = {}
    for rule in (SharesDraws, ThroughFloat32, Nothing):
        with pytest.raises(CheckFailed) as caught:
            check_rule(rule)
        found[rule.__name__] = caught.value.found
    assert found["SharesDraws"].endswith(" (and fails permutation)")
    assert found["ThroughFloat32"].endswith(" (and fails differentiation)")
    assert "(and fails " not in found["Nothing"]


def test_a_noisy_rule_is_asked_for_its_permutation() -> None:
    assert check_rule(FineButNoisy)["permutation"] == "passed"


def test_an_error_of_the_rule_names_its_file_and_line() -> None:
    class Broken(Good):
        def layer_loss(self, batch: Batch, layer: int, projections: Projections) -> Tensor:
            raise ZeroDivisionError("in vain")

    with pytest.raises(CheckFailed, match=r"test_check_rule\.py:\d+ \(layer_loss\): ZeroDivisionError: in vain"):
        check_rule(Broken)


def excepting(rule: type[Rule], **reasons: str) -> type[Rule]:
    return type(rule.__name__, (rule,), {"exceptions": reasons})


def test_exceptions_are_strict() -> None:
    assert check_rule(excepting(LostMean, mean="sums on purpose"))["mean"] == "excepted: sums on purpose"
    for rule, message in (
        (excepting(Good, mean="why not"), r"'mean': it is excepted \(why not\) but passes"),
        (excepting(Good, references="none"), "'references': it is excepted but not asked"),
        (excepting(Good, locallity="typo"), "there is no such check; there are encoders"),
        (excepting(LostMean, mean=" "), "without a reason"),
    ):
        with pytest.raises(CheckFailed, match=message):
            check_rule(rule)


def test_a_built_in_local_rule_may_not_except_locality() -> None:
    mine = excepting(PeeksAbove, locality="it peeks")
    assert check_rule(mine)["locality"] == "excepted: it peeks"
    mine.__module__ = "localssl.rules.mine"
    with pytest.raises(CheckFailed, match="may not be excepted"):
        check_rule(mine)


def test_what_is_not_a_rule_is_refused() -> None:
    with usage_error("check_rule takes a rule"):
        check_rule(3)  # type: ignore[arg-type]
    with usage_error("unknown rule 'clap'"):
        check_rule("clap")


def test_negatives_are_carried_along() -> None:
    """The two ways of the feed to rearrange itself, seen at the samples."""
    n = 4
    view = torch.arange(n)[:, None, None, None].double()
    feed = Feed(view, view + n, torch.tensor([3, 3, 5, 0, 7, 1, 2, 6]), torch.arange(n))
    samples = torch.cat((feed.a, feed.b)).flatten()
    assert feed.negatives is not None
    pairs = list(zip(samples.tolist(), samples[feed.negatives].tolist(), strict=True))

    def drawn(other: Feed) -> list[tuple[float, float]]:
        assert other.negatives is not None
        stacked = torch.cat((other.a, other.b)).flatten()
        return sorted(zip(stacked.tolist(), stacked[other.negatives].tolist(), strict=True))

    assert drawn(feed.permuted(torch.tensor([2, 0, 3, 1]))) == sorted(pairs)
    assert drawn(feed.twice()) == sorted(pairs * 2)


STOPS: dict[str, Callable[[Tensor], Tensor]] = {
    "detach": lambda z: z.detach(),
    "data": lambda z: z.data,
    "no_grad": lambda z: _without(z),
    "item": lambda z: torch.full_like(z, z.mean().item()),
    "float": lambda z: torch.full_like(z, float(z.mean().detach())),
}


def _without(z: Tensor) -> Tensor:
    with torch.no_grad():
        return (z * 1.0).clone().mul_(1.0)


@pytest.mark.parametrize("stop", STOPS)
def test_whatever_a_rule_stops_is_held(stop: str) -> None:
    class Stops(Good):
        def layer_loss(self, batch: Batch, layer: int, projections: Projections) -> Tensor:
            z = batch.z[layer]
            return super().layer_loss(batch, layer, projections) + (z * STOPS[stop](z)).mean()

    places, _ = benches(Stops())
    CHECKS["differentiation"].run(places[0])


def test_the_networks_are_alive() -> None:
    """Every block of every small network has an update that is not zero: what is compared is not nothing."""
    places, refused = benches(rules.get("clapp++both"))
    assert [bench.network for bench in places] == ["vgg", "flat", "mlp"]
    assert not refused
    for bench in places:
        found = update(bench.learner(), bench.feed())
        assert all(grad is not None and bool(grad.any()) for grad in found.grads.values())


def test_another_seed_is_tried_where_blocks_are_dead_and_dead_ones_are_said() -> None:
    class Seldom(Good):
        """Learns where a weight at the start happens to be large: under one seed of three."""

        def build(self, dims: Sequence[int]) -> dict[str, list[nn.Module]]:
            gate = nn.Linear(1, 1, bias=False).requires_grad_(False)
            return {**super().build(dims), "gate": [gate]}

        def layer_loss(self, batch: Batch, layer: int, projections: Projections) -> Tensor:
            gate: Any = projections["gate"][0]
            return super().layer_loss(batch, layer, projections) * (gate.weight.sum() > 1 / 3)

    places, remarks = benches(Seldom())
    assert not remarks
    assert any(bench.seed for bench in places)
    assert not any(bench.dead() for bench in places)

    class OnlyTheLast(Good):
        def layer_loss(self, batch: Batch, layer: int, projections: Projections) -> Tensor:
            return super().layer_loss(batch, layer, projections) * (layer == len(batch.z) - 1)

    said = check_rule(OnlyTheLast)["encoders"]
    assert said.startswith("passed (no update of blocks 1, 2 of vgg under any of 20 seeds: nothing to compare; no upd")


def test_rules_whose_inputs_are_no_images_are_checked_on_linear_layers() -> None:
    class Flat(Inputs):
        def shape(self, input_shape: Sequence[int]) -> tuple[int, ...]:
            return (int(torch.tensor(input_shape).prod()),)

        def __call__(self, view_a: Tensor, view_b: Tensor, *rest: Tensor | None) -> Tensor:
            return torch.cat((view_a, view_b)).flatten(1)

    class OnFlat(Good):
        def inputs(self) -> Inputs:
            return Flat()

    assert check_rule(OnFlat)["encoders"].startswith("passed (not on vgg: ")


def test_it_is_where_it_is_promised() -> None:
    assert localssl.testing.check_rule is check_rule


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClaimsOneLoss(Rule):
    """Reads the last block in every loss and says that it has one loss for all."""

    @property
    def per_layer(self) -> bool:
        return False

    def losses(self, batch: Batch, projections: Projections) -> Tensor:
        peek = 1 + batch.z[-1].detach().square().mean()
        return torch.stack([z.square().mean() * peek for z in batch.z]).sum()[None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnePartForAll(Rule):
    """One trained scale in the losses of all layers."""

    def build(self, dims: Sequence[int]) -> dict[str, list[nn.Module]]:
        return {"shared": [nn.Linear(1, 1, bias=False)]}

    def layer_loss(self, batch: Batch, layer: int, projections: Projections) -> Tensor:
        scale = projections["shared"][0](torch.ones(1, dtype=batch.z[layer].dtype))
        return ((batch.z[layer].square().mean() - scale).square()).sum()


@pytest.mark.parametrize(("rule", "check"), [(ClaimsOneLoss, "encoders"), (OnePartForAll, "locality")])
def test_what_is_above_finds_no_other_way_down(rule: type[Rule], check: str) -> None:
    with pytest.raises(CheckFailed) as caught:
        check_rule(rule)
    assert caught.value.check == check
