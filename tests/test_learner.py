"""The learner's conventions: shapes, patches, negatives, precision and errors."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import localssl
from localssl import encoders, readout
from localssl.encoders import Encoder
from localssl.learner import Learner
from localssl.rules import Batch, Rule, ScoreRule

from .util import PATCHES, SHAPE, N, small_encoder, small_learner, usage_error, views

TABLE_A2 = {"cifar10": (32, (4, 4, 4, 2, 2, 1)), "stl10": (96, (12, 12, 12, 6, 6, 3)), "tiny": (64, (8, 8, 8, 4, 4, 2))}
RULES = ["clapp", "clapp++", "clapp++dfb", "clapp++both", "bp-clapp++", "bp-infonce"]


def grads(learner: Learner) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in learner.named_parameters() if p.grad is not None}


def learn(learner: Learner, *batch: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
    learner.zero_grad(set_to_none=True)
    losses = learner.accumulate_grads(*batch)  # type: ignore[arg-type]
    return losses, grads(learner)


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


# ------------------------------------------------------------------------------------------------------------- shapes


@pytest.mark.parametrize("data", TABLE_A2)
def test_table_a2_at_full_width(data: str) -> None:
    size, patches = TABLE_A2[data]
    dims = [8192, 4096, 4096, 8192, 4096, 4096]
    assert sum(dims) == 32_768
    with torch.device("meta"):  # shapes without memory
        for key, rule, total in (("lateral", "clapp++", 201_326_592), ("feedback", "clapp++dfb", 134_217_728)):
            learner = Learner(encoders.vgg6(), localssl.rules.get(rule), (3, size, size), patches)
            assert [readout.dim(s, p) for s, p in zip(learner.output_shapes, patches, strict=True)] == dims
            assert set(learner.projections) == {key}
            columns = dims if key == "lateral" else [dims[-1]] * 6
            shapes = [tuple(module.weight.shape) for module in learner.projections[key]]
            assert shapes == list(zip(dims, columns, strict=True))  # (d_z, d_c)
            assert sum(p.numel() for p in learner.projections.parameters()) == total
        both = Learner(encoders.vgg6(), localssl.rules.get("clapp++both"), (3, size, size), patches)
        assert sum(p.numel() for p in both.projections.parameters()) == 201_326_592 + 134_217_728


def test_projections_of_end_to_end_rules_have_one_entry() -> None:
    for options, d in (({}, 3), ({"spatial": True}, 12)):  # 3 channels on 2 x 2 patches
        for network in ("vgg", "flat"):
            projections = small_learner(network, localssl.rules.get("bp-clapp++", **options)).projections
            assert {k: [tuple(m.weight.shape) for m in v] for k, v in projections.items()} == {"lateral": [(d, d)]}
    head = Learner(small_encoder("vgg"), localssl.rules.get("bp-infonce"), SHAPE).projections
    assert set(head) == {"head"}
    assert head["head"][0].weight.shape == (1024, 3)
    assert all(m.bias is None for modules in head.values() for m in modules)


def test_projections_start_as_pytorch_linear_layers_do() -> None:
    learner = Learner(encoders.mlp(4, widths=(64, 32)), localssl.rules.get("clapp++dfb"), (4, 1, 1))
    weight = learner.projections["feedback"][0].weight
    bound = 32**-0.5  # uniform in ± 1/sqrt(d_c)
    assert weight.abs().max() <= bound
    assert abs(weight.std().item() - bound / 3**0.5) < 0.1 * bound


@pytest.mark.parametrize("network", PATCHES)
@pytest.mark.parametrize("name", RULES)
def test_one_loss_per_layer_or_one(name: str, network: str) -> None:
    learner = small_learner(network, localssl.rules.get(name))
    losses = learner.losses(*views())
    assert losses.shape == ((3,) if name.startswith("clapp") else (1,))
    assert losses.requires_grad
    assert not learner.accumulate_grads(*views()).requires_grad


# ------------------------------------------------------------------------------------------------------------ patches


def test_pooled_rules_ignore_the_patches() -> None:
    for name in ("clapp", "bp-clapp++", "bp-infonce"):
        results = []
        for patches in (None, (4, 2, 2), (1, 1, 1), (3, 3, 3)):  # 3 divides none of the maps
            torch.manual_seed(0)
            results.append(learn(Learner(small_encoder("vgg"), localssl.rules.get(name), SHAPE, patches), *views()))
        for losses, gradient in results[1:]:
            assert torch.equal(losses, results[0][0])
            assert equal(gradient, results[0][1])


def test_patches_larger_than_the_map_are_clipped() -> None:
    torch.manual_seed(0)
    clipped = Learner(small_encoder("vgg"), localssl.rules.get("clapp++"), SHAPE, (100, 5, 3))  # maps of 4, 4, 2
    torch.manual_seed(0)
    whole = Learner(small_encoder("vgg"), localssl.rules.get("clapp++"), SHAPE, None)
    one, other = learn(clipped, *views()), learn(whole, *views())
    assert torch.equal(one[0], other[0])
    assert equal(one[1], other[1])


def test_readout_is_channels_first() -> None:
    z = torch.arange(2 * 4 * 4, dtype=torch.float64).reshape(1, 2, 4, 4)
    expected = [z[0, c, y : y + 2, x : x + 2].mean().item() for c in (0, 1) for y in (0, 2) for x in (0, 2)]
    assert readout.readout(z, 2).tolist() == [expected]
    assert readout.readout(z, 1).tolist() == [z.flatten().tolist()]
    assert readout.readout(z, None).tolist() == [[z[0, 0].mean().item(), z[0, 1].mean().item()]]


@pytest.mark.parametrize(
    ("patches", "match"),
    [
        ((3, 1, 1), "block 1"),
        ((4, 3, 1), "block 2"),
        ((4, 4), "3 blocks"),
        ((4, 4, 1, 1), "3 blocks"),
        ((0, 1, 1), "positive"),
        ((4, -1, 1), "positive"),
    ],
)
def test_bad_patches(patches: tuple[int, ...], match: str) -> None:
    with usage_error(match):
        Learner(small_encoder("vgg"), localssl.rules.get("clapp++"), SHAPE, patches)


# ---------------------------------------------------------------------------------------------------------- bad input


def test_bad_views() -> None:
    learner = small_learner("vgg", localssl.rules.get("clapp++"))
    a, b = views()
    with usage_error("at least 2"):
        learner.losses(a[:1], b[:1])
    with usage_error("at least 2"):
        learner.losses(a[:0], b[:0])
    with usage_error(r"\(2, 4, 8\)"):
        learner.losses(a[:, :, :4], b[:, :, :4])
    with usage_error(r"\(1, 8, 8\)"):
        learner.losses(a, b[:, :1])
    with usage_error("both"):
        learner.losses(a, b[:2])
    with usage_error(r"\(8, 8\)"):
        learner.accumulate_grads(a[:, 0], b[:, 0])


@pytest.mark.parametrize("name", ["clapp++", "bp-clapp++"])
def test_bad_negatives(name: str) -> None:
    learner = small_learner("vgg", localssl.rules.get(name))
    good = torch.arange(2 * N)
    for bad in (good[:-1], good[None], torch.arange(N), good.double(), good.int(), good > 2):
        with usage_error("negatives"):
            learner.losses(*views(), bad)
    for bad in (good - 1, good + 1):
        with usage_error(r"0\.\.5"):
            learner.losses(*views(), bad)


def test_an_input_shape_the_encoder_refuses() -> None:
    with usage_error(r"\(3, 8, 8\)"):
        Learner(small_encoder("vgg"), localssl.rules.get("clapp"), (3, 8, 8))
    with usage_error(r"\(2, 4, 4\)"):
        Learner(small_encoder("mlp"), localssl.rules.get("clapp"), (2, 4, 4))


def test_unknown_names_give_the_nearest() -> None:
    with usage_error(r"did you mean 'clapp\+\+dfb'"):
        localssl.rules.get("clap++dfb")
    with usage_error("choices: "):
        localssl.rules.get("zzz")
    with usage_error("did you mean 'margin'"):
        localssl.rules.get("clapp++", margn=2.0)
    with usage_error("did you mean 'temperature'"):
        localssl.rules.get("bp-infonce", temprature=0.2)
    with usage_error("did you mean 'softplus'"):
        localssl.rules.get("clapp++", f="soft-plus")
    with usage_error("did you mean 'random'"):
        localssl.rules.get("clapp++", negatives="randm")
    for loss_type in (0, 3, "2", None):
        with usage_error("loss_type"):
            localssl.rules.get("clapp++", loss_type=loss_type)
    for options in ({"projection_dim": 0}, {"temperature": 0.0}, {"temperature": -1.0}, {"temperature": float("nan")}):
        with usage_error("bp-infonce"):
            localssl.rules.get("bp-infonce", **options)


# ---------------------------------------------------------------------------------------------------------- negatives


@pytest.mark.parametrize("name", RULES)
def test_next_negatives_are_the_default(name: str) -> None:
    learner = small_learner("vgg", localssl.rules.get(name))
    default = learn(learner, *views())
    given = learn(learner, *views(), (torch.arange(2 * N) + 1) % (2 * N))
    assert torch.equal(default[0], given[0])
    assert equal(default[1], given[1])


def equal_layers(rule: Rule, n: int = 8) -> tuple[Learner, Tensor, Tensor]:
    """Four layers with the same activities and the same B: their losses differ only where their negatives do."""
    torch.manual_seed(0)
    encoder = Encoder.from_blocks([nn.Sequential(nn.Flatten(), nn.Linear(6, 6)), *(nn.Identity() for _ in range(3))])
    learner = Learner(encoder, rule, (6, 1, 1))
    for modules in learner.projections.values():
        for module in modules:
            nn.init.eye_(module.weight)
    a, b = torch.randn(2, n, 6, 1, 1)
    return learner, a, b


def test_random_negatives_are_drawn_anew_for_every_layer_and_by_seed() -> None:
    learner, a, b = equal_layers(localssl.rules.get("clapp++", negatives="random", f="softplus"))

    def draw(seed: int) -> list[float]:
        torch.manual_seed(seed)
        return learner.losses(a, b).tolist()

    assert draw(0) == draw(0) != draw(1)
    assert len(set(draw(0))) == 4
    given = learner.losses(a, b, torch.tensor([3] * 16)).tolist()  # given negatives serve every layer
    assert len(set(given)) == 1
    both, a, b = equal_layers(localssl.rules.get("clapp++both", negatives="random", f="softplus"))
    lateral, _, _ = equal_layers(localssl.rules.get("clapp++", negatives="random", f="softplus"))
    torch.manual_seed(3)
    pair = both.losses(a, b)[0].item()
    torch.manual_seed(3)
    assert pair != pytest.approx(2 * lateral.losses(a, b)[0].item())  # each of its two losses draws for itself
    assert both.losses(a, b, torch.arange(16))[0].item() == pytest.approx(
        2 * lateral.losses(a, b, torch.arange(16))[0].item()
    )


def test_random_negatives_are_uniform_over_all_samples() -> None:
    rule = localssl.rules.get("clapp++", negatives="random")
    assert isinstance(rule, ScoreRule)
    torch.manual_seed(0)
    batch = Batch([torch.zeros(6, 2)])
    draws = torch.stack([rule.draw(batch) for _ in range(2000)])
    assert draws.dtype == torch.int64
    assert draws.shape == (2000, 6)
    for sample in range(6):  # 4 standard deviations of a count; the sample itself is among them
        counts = torch.bincount(draws[:, sample], minlength=6)
        assert (counts - 2000 / 6).abs().max() < 4 * (2000 * 5 / 36) ** 0.5


def test_infonce_ignores_negatives_and_is_one_directional() -> None:
    learner = small_learner("vgg", localssl.rules.get("bp-infonce"))
    a, b = views()
    one = learner.losses(a, b)
    assert torch.equal(one, learner.losses(a, b, torch.arange(6)))
    assert not torch.allclose(one, learner.losses(b, a))


# ----------------------------------------------------------------------------------------------- gradients, precision


@pytest.mark.parametrize("name", RULES)
def test_accumulate_grads_adds(name: str) -> None:
    learner = small_learner("vgg", localssl.rules.get(name))
    _, once = learn(learner, *views())
    learner.accumulate_grads(*views())
    twice = grads(learner)
    assert equal(twice, {key: 2 * grad for key, grad in once.items()})
    assert len(once) == sum(1 for _ in learner.parameters())


@pytest.mark.parametrize("name", RULES)
def test_float32_and_bfloat16_follow_float64(name: str) -> None:
    exact = small_learner("vgg", localssl.rules.get(name, **({} if name == "bp-infonce" else {"f": "softplus"})))
    a, b = views()
    losses, gradient = learn(exact, a, b)
    assert losses.dtype == torch.float64
    assert all(g.dtype == torch.float64 for g in gradient.values())
    single = exact.float()
    losses32, gradient32 = learn(single, a.float(), b.float())
    assert losses32.dtype == torch.float32
    torch.testing.assert_close(losses32.double(), losses, rtol=1e-5, atol=1e-6)
    for key, grad in gradient.items():
        torch.testing.assert_close(gradient32[key].double(), grad, rtol=1e-4, atol=1e-4 * grad.abs().max().item())
    single.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16):
        losses16 = single.accumulate_grads(a.float(), b.float())
    assert losses16.dtype == torch.float32  # scores and losses are sums, kept in float32
    torch.testing.assert_close(losses16.double(), losses, rtol=0.05, atol=0.05)
    for key, grad in grads(single).items():
        assert grad.dtype == torch.float32
        assert F.cosine_similarity(grad.double().flatten(), gradient[key].flatten(), dim=0) > 0.98, key


@pytest.mark.parametrize("name", localssl.rules.names())
def test_what_learns_in_float32_learns_under_autocast(name: str) -> None:
    """A weight cast without a graph and kept would have no gradient, without a word: so it was with PyTorch 2.9."""
    rule, x = localssl.rules.get(name), torch.rand(8, 1, 16, 16)
    labels = torch.arange(8) if rule.uses_labels else None
    found: list[list[str]] = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            learner = localssl.Learner(localssl.encoders.vgg5(width=0.125), rule, (1, 16, 16), (2, 2, 2, 1, 1))
            learner.accumulate_grads(x, x.flip(3), None, labels)
        found.append([key for key, p in learner.named_parameters() if p.grad is not None])
    assert found[0] == found[1] != []


@pytest.mark.parametrize("name", RULES)
def test_a_dead_network_gives_zeros_not_nans(name: str) -> None:
    learner = small_learner("vgg", localssl.rules.get(name))
    with torch.no_grad():
        for block in learner.encoder.blocks:
            for parameter in block.parameters():
                parameter.fill_(-1.0)  # block 1 may live, its successors see nothing but negative sums
    losses, gradient = learn(learner, *views())
    assert torch.isfinite(losses).all()
    assert all(torch.isfinite(grad).all() for grad in gradient.values())
    expected = torch.log(torch.tensor(float(N))).item() if name == "bp-infonce" else (4 if "both" in name else 2)
    assert losses[-1].item() == pytest.approx(expected)
