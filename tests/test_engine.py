"""The three-factor engine against autograd over detached blocks: equal, in every block kind, rule, form and mode."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from typing_extensions import override

import localssl
from localssl import encoders, rules
from localssl.encoders import Encoder
from localssl.engine import passes, refusal
from localssl.engine.blocks import Block, plan
from localssl.engine.events import events
from localssl.errors import UsageError
from localssl.projections import Dense, LowRank, make
from localssl.references import Last, Own
from localssl.rules.base import Batch, Projections, ScoreRule

from .engine_util import (
    FORMS,
    POOLS,
    RULES,
    SEQUENCE,
    SEQUENCES,
    SHAPE,
    N,
    assert_engines_equal,
    batch,
    both_patches,
    joined,
    learner,
    relative,
    stack,
    update,
)
from .util import usage_error


def test_every_score_rule_of_the_paper_is_here() -> None:
    assert {"clapp", "clapp++", "clapp++dfb", "clapp++both"} <= set(RULES)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("kind", ["linear", *POOLS, *SEQUENCES])
def test_equal_to_autograd(kind: str, name: str) -> None:
    views = batch(kind)
    for (f, loss_type, negatives), patches in itertools.product(FORMS, both_patches(kind)):
        rule = rules.get(name, f=f, loss_type=loss_type, negatives=negatives)
        case = (f, loss_type, negatives, patches)
        assert_engines_equal(lambda e, r=rule, p=patches: learner(kind, r, e, torch.float64, p), views, case=case)


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("kind", ["linear", *POOLS, *SEQUENCES])
def test_equal_in_chunks(kind: str, name: str, samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one sample, and of three, which do not divide the batch."""
    monkeypatch.setattr(passes, "_chunk", lambda block, x: samples)
    rule = rules.get(name, f="softplus", loss_type=1, negatives="random")
    for patches in both_patches(kind):
        assert_engines_equal(lambda e, p=patches: learner(kind, rule, e, torch.float64, p), batch(kind), case=patches)


def test_chunks_are_of_so_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of drive, one sample at least; but all samples where every chunk would add a larger ΔW."""
    block = plan(Encoder.from_blocks([nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))]))[0]
    assert isinstance(block, Block)
    x = torch.zeros(10, *SHAPE)
    sample = 4 * 6 * 12 * 12
    for size, samples in ((1, 1), (sample, 1), (3 * sample, 3), (4 * sample - 1, 3)):
        monkeypatch.setattr(passes, "CHUNK", size)
        assert passes._chunk(block, x) == samples
    monkeypatch.setattr(passes, "CHUNK", 1)
    assert passes._chunk(block, torch.zeros(10, 2, 2, 2)) == 10  # ΔW has 108 numbers, a sample's drive 24


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("kind", ["linear", "max", "average", "max of a sequence"])
def test_events_sum_to_the_batch(kind: str, name: str) -> None:
    views = batch(kind)
    patches = None if kind == "linear" else (3, 1, 1)
    for f in ("hinge", "softplus"):
        rule = rules.get(name, f=f)
        want = update(learner(kind, rule, "autograd", torch.float64, patches), views)[1:]
        made = learner(kind, rule, "auto", torch.float64, patches)
        seen = list(events(made.step(*views)))
        assert len(seen) == 4 * N
        assert all({e.sample, e.context} == {e.context, (e.context + N) % (2 * N)} for e in seen if e.sign == 1)
        for found, exact in zip([p.grad for p in made.parameters()], want, strict=True):
            assert found is not None
            assert exact is not None
            assert float((found - exact).abs().max()) <= 1e-12 * float(exact.abs().max() + 1)
        if f == "hinge":
            values = torch.cat([m for e in seen for m in e.modulators.values()])
            assert set(values.tolist()) <= {-1.0, 0.0, 1.0}
            assert len(set(values.tolist())) > 1


def test_an_event_changes_one_place_only() -> None:
    made = learner("linear", rules.get("clapp++"), "auto", torch.float64, None)
    for event in events(made.step(*batch("linear"))):
        b = made.projections["lateral"][1].weight
        if event.modulators["lateral"][1] != 0:
            z, c = (made.encoder(made.step(*batch("linear")).x)[1][i] for i in (event.sample, event.context))
            expected = -event.modulators["lateral"][1] * torch.outer(z, c) / (2 * N)
            torch.testing.assert_close(b.grad, expected.detach(), rtol=1e-12, atol=1e-14)
        made.zero_grad()


@pytest.mark.parametrize("kind", ["low-rank", "low-rank-frozen"])
def test_low_rank_projections(kind: str) -> None:
    """Only the frozen one's inner factor stays; B is their product and starts like a dense one."""
    rule = rules.get("clapp++both", projection=kind, rank=3)
    made = learner("max", rule, "hebbian", torch.float64, (3, 1, 1))
    b = made.projections["lateral"][0]
    assert dict(b.named_parameters()).keys() == ({"outer"} if kind.endswith("frozen") else {"outer", "inner"})
    assert (b.weight.shape, int(torch.linalg.matrix_rank(b.weight))) == ((24, 24), 3)
    c = torch.randn(5, 24, dtype=torch.float64)
    torch.testing.assert_close(b(c), c @ b.weight.T)
    torch.manual_seed(0)
    spread = [float(make(k, 400, 300, 64, 400).weight.detach().var()) for k in (kind, "dense")]  # type: ignore[union-attr]
    assert spread[0] == pytest.approx(spread[1], rel=0.05)


@pytest.mark.parametrize("rank", [16, 64, 256])
def test_low_rank_learns_as_fast_as_dense(rank: int) -> None:
    """Adam's step on the outer factor, of one size in every entry, moves g about as far as on a dense B."""
    torch.manual_seed(0)
    c = torch.randn(20, 1024)

    def farthest(b: torch.nn.Module, p: torch.Tensor) -> torch.Tensor:
        """|Δg| of one unit where every entry of its row moves by one, with the sign that helps."""
        reached: list[torch.Tensor] = []
        for one in c:
            p.grad = None
            b(one[None])[0, 0].backward()
            assert p.grad is not None
            reached.append(p.grad[0].abs().sum())
        return torch.stack(reached)

    low, dense = LowRank(8, 1024, rank, frozen=True), Dense(8, 1024)
    ratio = farthest(low, low.outer) / farthest(dense, dense.weight)
    assert 0.9 < float(ratio.mean()) < 1.1


@pytest.mark.parametrize("kind", ["patch-local", "patch-local-frozen", "patch-shared", "patch-shared-frozen"])
def test_patch_projections(kind: str) -> None:
    """The lateral B joins no two patches; under one it starts as large as a dense one."""
    rule = rules.get("clapp++both", projection=kind, rank=3)
    made = learner("max", rule, "hebbian", torch.float64, (3, 1, 1))
    b = made.projections["lateral"][0]
    channels = made.output_shapes[0][0]
    patches = len(b.weight) // channels
    apart = b.weight.reshape(channels, patches, channels, patches).permute(1, 3, 0, 2)
    assert patches > 1
    assert not apart[~torch.eye(patches, dtype=torch.bool)].any()
    shared = [torch.equal(apart[0, 0], apart[i, i]) for i in range(1, patches)]
    assert all(shared) if "shared" in kind else not any(shared)
    c = torch.randn(5, len(b.weight), dtype=torch.float64)
    torch.testing.assert_close(b(c), c @ b.weight.T)
    frozen = type(made.projections["feedback"][0].inner) is not torch.nn.Parameter
    assert frozen == kind.endswith("frozen")
    torch.manual_seed(0)
    made, dense = make(kind.removesuffix("-frozen"), 400, 400, 3, 100), make("dense", 400, 400, 3, 100)
    c = torch.randn(50, 400)
    assert float(made(c).var().detach()) == pytest.approx(float(dense(c).var().detach()), rel=0.1)
    assert type(make(kind.removesuffix("-frozen"), 400, 400, 3, 400)) is type(dense)  # one patch


def test_patch_projections_ask_for_the_channels() -> None:
    with pytest.raises(UsageError, match="needs the channels"):
        rules.get("clapp++", projection="patch-local").build([5, 4])


@dataclass(frozen=True, kw_only=True)
class Mixed(ScoreRule):
    """A frozen random inner factor under a trained outer one, from two layers."""

    name: ClassVar[str] = "mixed"
    references: ClassVar[dict[str, Any]] = {"lateral": Own(), "feedback": Last()}

    @override
    def build(self, dims: Sequence[int]) -> dict[str, list[nn.Module]]:
        def low(d_z: int, d_c: int) -> nn.Module:
            both = nn.Sequential(nn.Linear(d_c, 3, bias=False), nn.Linear(3, d_z, bias=False))
            both[0].requires_grad_(False)
            return both

        return {"lateral": [low(d, d) for d in dims], "feedback": [low(d, dims[-1]) for d in dims]}


def test_other_projections_than_dense_ones() -> None:
    views, patches = batch("max"), (3, 1, 1)
    want = update(learner("max", Mixed(), "autograd", torch.float64, patches), views)
    for engine in ("hebbian", "hebbian-lean"):
        for found, exact in zip(
            update(learner("max", Mixed(), engine, torch.float64, patches), views), want, strict=True
        ):
            assert (found is None) == (exact is None)
            if found is not None and exact is not None:
                torch.testing.assert_close(found, exact, rtol=1e-12, atol=1e-14)


@dataclass(frozen=True, kw_only=True)
class Shared(ScoreRule):
    """One B for all layers, which a step after every block would move under the next one's feet."""

    name: ClassVar[str] = "shared"
    references: ClassVar[dict[str, Any]] = {"lateral": Own()}

    @override
    def build(self, dims: Sequence[int]) -> dict[str, list[nn.Module]]:
        return {"lateral": [make("dense", dims[0], dims[0], 1, 1)] * len(dims)}


def test_layers_that_share_a_projection_are_stepped_together() -> None:
    blocks = [nn.Sequential(nn.Flatten(), nn.Linear(288, 7), nn.ReLU()), nn.Sequential(nn.Linear(7, 7), nn.ReLU())]
    made = localssl.Learner(Encoder.from_blocks(blocks).double(), Shared(), SHAPE)
    assert len(list(made.updates(*batch("max")))) == 1


def test_a_linear_layer_on_every_row_of_a_map() -> None:
    """Its weights are shared among channels: (N, C, d) in and out."""
    found: list[Tensor] = []
    for engine in ("autograd", "hebbian"):
        torch.manual_seed(0)
        blocks = [nn.Sequential(nn.Linear(24, 8), nn.ReLU()), nn.Sequential(nn.Linear(8, 6), nn.ReLU())]
        made = localssl.Learner(Encoder.from_blocks(blocks).double(), rules.get("clapp++"), SEQUENCE, engine=engine)
        found.append(joined(update(made, batch("sequence"))))
    assert relative(found[1], found[0]) <= 1e-12


def test_frozen_weights_stay_without_gradient() -> None:
    made = learner("max", rules.get("clapp++"), "hebbian", torch.float64, (3, 1, 1))
    made.encoder.blocks[1].requires_grad_(False)
    made.projections["lateral"][0].requires_grad_(False)
    made.accumulate_grads(*batch("max"))
    frozen = [*made.encoder.blocks[1].parameters(), *made.projections["lateral"][0].parameters()]
    assert all(p.grad is None for p in frozen)
    assert all(p.grad is not None for p in made.parameters() if p.requires_grad)


def test_a_block_may_be_stepped_before_the_next_one_runs() -> None:
    """The same as one step of all of them, as the next block runs on the activity from before."""
    for name, engine in itertools.product(("clapp++", "clapp++both"), ("hebbian", "hebbian-lean")):
        made = [learner("max", rules.get(name), e, torch.float64, (3, 1, 1)) for e in ("autograd", engine)]
        for one in made:
            optimiser = torch.optim.Adam(one.parameters(), lr=0.01)
            yielded = 0
            for _ in one.updates(*batch("max")):
                yielded += 1
                optimiser.step()
                optimiser.zero_grad()
            assert yielded == (1 if one is made[0] else 3)
        for p, q in zip(made[0].parameters(), made[1].parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("rule", "blocks", "reason"),
    [
        ("lpl", None, "is no ScoreRule with local credit"),
        ("bp-clapp++", None, "is no ScoreRule with local credit"),
        ("clapp++", [nn.Conv2d(2, 3, 3), nn.Tanh()], "no ReLU follows"),
        ("clapp++", [nn.BatchNorm2d(2), nn.Conv2d(2, 3, 3), nn.ReLU()], "begins with BatchNorm2d"),
        ("clapp++", [nn.Conv2d(2, 3, 3, padding="same"), nn.ReLU()], "pads by other"),
        (
            "clapp++",
            [nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Dropout()],
            "after the Conv2d and its ReLU comes Dropout; the",
        ),
        ("clapp++", [nn.Conv2d(2, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.AvgPool2d(2)], "comes MaxPool2d, AvgPool2d;"),
        ("clapp++", [nn.Linear(12, 12), nn.ReLU(), nn.MaxPool2d(2)], "comes MaxPool2d; the engine knows nothing there"),
    ],
)
def test_what_it_cannot_do(rule: str, blocks: list[nn.Module] | None, reason: str) -> None:
    encoder = stack("max") if blocks is None else Encoder.from_blocks([nn.Sequential(*blocks)])
    assert reason in (refusal(encoder, rules.get(rule)) or "")
    assert localssl.Learner(encoder, rules.get(rule), SHAPE).engine == "autograd"
    with usage_error(reason):
        localssl.Learner(encoder, rules.get(rule), SHAPE, engine="hebbian")


@dataclass(frozen=True, kw_only=True)
class Squared(ScoreRule):
    """A loss that is none of the three forms."""

    name: ClassVar[str] = "squared"
    references: ClassVar[dict[str, Any]] = {"lateral": Own()}

    @override
    def losses(self, batch: Batch, projections: Projections) -> Tensor:
        return super().losses(batch, projections).square()


def test_rules_of_a_users_own_and_hooks_go_to_autograd() -> None:
    encoder = stack("max")
    assert "its own losses" in (refusal(encoder, Squared()) or "")
    assert refusal(encoder, rules.get("clapp++")) is None
    handle = encoder.blocks[1].register_forward_hook(lambda *_: None)
    assert "block 2: it has hooks" in (refusal(encoder, rules.get("clapp++")) or "")
    handle.remove()
    tied = Encoder.from_blocks([encoders.conv_block(2, 2, False)] * 2)
    assert "block 2 shares weights" in (refusal(tied, rules.get("clapp++")) or "")


def test_unknown_engine() -> None:
    with usage_error("unknown engine 'hebian'"):
        localssl.Learner(stack("max"), rules.get("clapp++"), SHAPE, engine="hebian")


def test_events_need_two_terms_and_a_known_block() -> None:
    made = learner("max", rules.get("clapp++", loss_type=1), "auto", torch.float64, None)
    with usage_error("loss_type=1"):
        next(events(made.step(*batch("max"))))
    made = learner("max", rules.get("bp-clapp++"), "auto", torch.float64, None)
    with usage_error("is no ScoreRule with local credit"):
        next(events(made.step(*batch("max"))))


def test_mixed_precision_follows_autocast() -> None:
    """bf16: as near to float32 as autograd under the same autocast is."""
    rule, views = rules.get("clapp++both"), batch("max").float()
    exact = update(learner("max", rule, "autograd", torch.float32, (3, 1, 1)), views)
    with torch.autocast("cpu", torch.bfloat16):
        found = [update(learner("max", rule, e, torch.float32, (3, 1, 1)), views) for e in ("autograd", "hebbian")]
    errors = [relative(joined(one), joined(exact)) for one in found]
    assert all(g is None or g.dtype == torch.float32 for g in found[1][1:])
    assert 0 < errors[1] < max(0.05, 1.5 * errors[0])
