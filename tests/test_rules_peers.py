"""SCFF, Stochastic FF and SoftHebb: losses and updates against their oracles, their inputs, encoders and runs."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import localssl
from localssl import alignment, encoders, evaluate, oracle, readout
from localssl.data.sources import open_images
from localssl.data.specs import default_patches
from localssl.encoders import Encoder, layers
from localssl.encoders.layers import Standardise
from localssl.experiments import greedy, scff_mnist
from localssl.inputs import NoisyCopies, Single
from localssl.learner import Learner
from localssl.rules import Batch
from localssl.runs.run import open_run

from .train_util import last_state, run_tiny
from .util import N, assert_close_report, numpy, to_oracle, usage_error, views, weighted

SHAPE = (2, 8, 8)
PLAIN: dict[str, Any] = {}
ENCODERS: dict[str, dict[str, dict[str, Any]]] = {  # per rule: options of the encoder that the oracle follows
    "scff": {
        "plain": PLAIN,
        "own": {"norm": "standardise", "activation": "triangle", "late": True, "paired": True},
        "relu": {"norm": "standardise", "late": True, "paired": True},
        "length": {"norm": "length", "paired": True},
    },
    "stochastic-ff": {"plain": PLAIN, "length": {"norm": "length"}, "own": {"norm": "batch", "paired": True}},
    "softhebb": {
        "plain": PLAIN,
        "own but batch norm": {"activation": "triangle", "late": True, "init": 25.0},
        "standardised": {"norm": "standardise", "activation": "triangle", "late": True, "init": 3.0},
    },
}
CASES = [(rule, case) for rule, cases in ENCODERS.items() for case in cases]
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "scff": [
        {"theta1": 0.5, "theta2": 0.7, "penalty": 0.3},
        {"theta1": (0.1, 0.3), "theta2": [0.2, 0.6, 0.4], "penalty": (0.0, 0.5), "halves": "views"},
    ],
    "stochastic-ff": [{"copies": 2, "channels": 2}, {"copies": 3, "channels": (3, 2), "dropout": 0.4}],
    "softhebb": [{}, {"t": 0.3, "rates": (2.0, 1.0)}],
}
CODE: dict[str, Any] = {"again": False, "halved": True}  # what the library does where nothing is reflected
RUNS = [(rule, case, i) for rule, case in CASES for i in range(2)]


def network(name: str, options: dict[str, Any]) -> Encoder:
    """Three blocks, float64, unequal widths; "conv" pools after the first and the last."""
    if name == "mlp":
        return encoders.mlp(2 * 8 * 8, widths=(7, 5, 4), **options).double()
    convs = [nn.Conv2d(i, o, 3, padding=1) for i, o in ((2, 4), (4, 5), (5, 3))]
    return encoders.Options(**options).stack(convs, (True, False, True), {}).double()


def made(rule: str, name: str, encoder: dict[str, Any], options: dict[str, Any]) -> Learner:
    torch.manual_seed(1)
    return Learner(network(name, encoder), localssl.rules.get(rule, **options), SHAPE)


def drawn(learner: Learner, a: Tensor, b: Tensor, seed: int = 3) -> Tensor:
    torch.manual_seed(seed)
    return learner.enter(a, b)


def shift_of(a: Tensor, seed: int = 3) -> int:
    """What ``drawn`` pairs an image with: that many images on."""
    torch.manual_seed(seed)
    return int(torch.randint(1, len(a), ()))


def expected_scff(
    learner: Learner, a: Tensor, b: Tensor, encoder: dict[str, Any], options: dict[str, Any], **how: Any
) -> oracle.Result:
    """The oracle's answer for pairs that it makes of the views itself."""
    given = {key: value for key, value in encoder.items() if key in ("late", "paired", "activation")}
    settings = {"shift": shift_of(a), "norm": encoder.get("norm"), **CODE, **options, **given, **how}
    return oracle.reference("scff", oracle_blocks(learner, encoder), {}, numpy(a), numpy(b), **settings)


def oracle_blocks(learner: Learner, encoder: dict[str, Any]) -> list[Any]:
    blocks = to_oracle(learner.encoder)
    if not encoder.get("late"):
        return blocks
    pools = [any(isinstance(m, nn.MaxPool2d) for m in emit.modules()) for emit in learner.encoder.emit]
    return [
        dataclasses.replace(b, pool=pool) if isinstance(b, oracle.ConvBlock) else b
        for b, pool in zip(blocks, pools, strict=True)
    ]


def expected(learner: Learner, x: Tensor, encoder: dict[str, Any], options: dict[str, Any]) -> oracle.Result:
    """The oracle's answer for samples that have been drawn."""
    if learner.rule.name == "scff":
        return expected_scff(learner, *views(n=len(x) // 2), encoder, options)
    blocks = oracle_blocks(learner, encoder)
    how = {key: value for key, value in encoder.items() if key in ("late", "paired", "activation")}
    projections = {key: [numpy(m.weight) for m in modules] for key, modules in learner.projections.items()}
    return oracle.reference(
        learner.rule.name,
        blocks,
        projections,
        np.zeros((2, 1)),
        np.zeros((2, 1)),
        samples=x.numpy(),
        norm=encoder.get("norm"),
        **options,
        **how,
    )


def gradients(learner: Learner) -> list[dict[str, Tensor]]:
    return [{n: p.grad.clone() for n, p in b.named_parameters() if p.grad is not None} for b in learner.encoder.blocks]


def learn(learner: Learner, a: Tensor, b: Tensor, seed: int = 3) -> Tensor:
    learner.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    return learner.accumulate_grads(a, b)


def is_the_oracles(learner: Learner, losses: Tensor, result: oracle.Result) -> None:
    assert_close_report(losses, result.losses, what="losses")
    for i, (block, grads) in enumerate(zip(learner.encoder.blocks, result.block_grads, strict=True), start=1):
        (layer,) = weighted(block)
        for kind, grad in grads.items():
            assert_close_report(numpy(getattr(layer, kind).grad), grad, what=f"block {i} {kind}")
            assert kind == "bias" or np.any(grad), f"block {i}: nothing to compare"


@pytest.mark.parametrize("name", ["conv", "mlp"])
@pytest.mark.parametrize(("rule", "case", "which"), RUNS)
def test_losses_and_updates_equal_the_oracles(rule: str, case: str, which: int, name: str) -> None:
    encoder, options = ENCODERS[rule][case], OPTIONS[rule][which]
    learner = made(rule, name, encoder, options)
    a, b = views()
    result = expected(learner, drawn(learner, a, b), encoder, options)
    is_the_oracles(learner, learn(learner, a, b), result)
    assert not any(p.grad is not None for p in learner.projections.parameters())
    torch.manual_seed(3)
    assert_close_report(learner.losses(a, b).detach(), result.losses, what="losses without an update")
    again = copy.deepcopy(gradients(learner))
    torch.manual_seed(3)
    learner.accumulate_grads(a, b)  # adds
    for once, twice in zip(again, gradients(learner), strict=True):
        assert all(torch.equal(twice[key], 2 * once[key]) for key in once)


def mixed(batch: Batch, groups: int) -> Batch:
    """Samples sample by sample where the rule expects them group by group."""
    maps = [m.unflatten(0, (groups, -1)).transpose(0, 1).flatten(0, 1) for m in batch.maps]
    return dataclasses.replace(batch, maps=maps)


WRONG: dict[str, tuple[str, Callable[..., Tensor]]] = {  # what is wrong: of which rule, the loss that it makes
    "scff, uphill": ("scff", lambda right, rule, batch, *rest: -right(rule, batch, *rest)),
    "scff, a sum": ("scff", lambda right, rule, batch, *rest: 2 * N * right(rule, batch, *rest)),
    "scff, pairs mixed up": ("scff", lambda right, rule, batch, *rest: right(rule, mixed(batch, 2), *rest)),
    "scff, thresholds exchanged": (
        "scff",
        lambda right, rule, *rest: right(dataclasses.replace(rule, theta1=rule.theta2, theta2=rule.theta1), *rest),
    ),
    "scff, no penalty": ("scff", lambda right, rule, *rest: right(dataclasses.replace(rule, penalty=0.0), *rest)),
    "scff, half of the slope": ("scff", lambda right, *given: (right(*given) + right(*given).detach()) / 2),
    "stochastic-ff, uphill": ("stochastic-ff", lambda right, rule, batch, *rest: -right(rule, batch, *rest)),
    "stochastic-ff, a sum": ("stochastic-ff", lambda right, rule, batch, *rest: N * right(rule, batch, *rest)),
    "stochastic-ff, copies of others": (
        "stochastic-ff",
        lambda right, rule, batch, *rest: right(rule, mixed(batch, rule.copies), *rest),
    ),
    "stochastic-ff, the layer above": (
        "stochastic-ff",
        lambda right, rule, batch, layer, parts: right(rule, batch, min(layer + 1, len(batch.maps) - 1), parts),
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_rule_is_not_the_oracles(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rule, loss = WRONG[what]
    encoder, options = ENCODERS[rule]["own"], OPTIONS[rule][0]
    learner = made(rule, "conv", encoder, options)
    a, b = views()
    result = expected(learner, drawn(learner, a, b), encoder, options)
    is_the_oracles(learner, learn(learner, a, b), result)
    right = type(learner.rule).layer_loss
    monkeypatch.setattr(type(learner.rule), "layer_loss", lambda *given: loss(right, *given))
    with pytest.raises(AssertionError, match="block 1" if "slope" in what else "losses"):
        is_the_oracles(learner, learn(learner, a, b), result)


@pytest.mark.parametrize("halves", ["same", "views"])
def test_the_oracles_gradient_is_its_losss(halves: str) -> None:
    """Central differences of the two oracles that have a loss."""
    for rule, case in (("scff", "own"), ("scff", "plain"), ("stochastic-ff", "plain"), ("stochastic-ff", "own")):
        encoder, options = ENCODERS[rule][case], dict(OPTIONS[rule][1])
        if rule == "scff":
            options["halves"] = halves
        learner = made(rule, "conv", encoder, options)
        x = drawn(learner, *views(n=2))
        base = expected(learner, x, encoder, options)
        for layer in range(3):
            (module,) = weighted(learner.encoder.blocks[layer])
            direction = torch.sign(torch.randn(module.weight.shape, generator=torch.Generator().manual_seed(0)))
            ends = []
            for step in (1e-6, -1e-6):
                with torch.no_grad():
                    module.weight += step * direction
                    ends.append(expected(learner, x, encoder, options).losses[layer])
                    module.weight -= step * direction
            slope = (ends[0] - ends[1]) / 2e-6
            along = float((base.block_grads[layer]["weight"] * direction.numpy()).sum())
            assert slope == pytest.approx(along, rel=1e-5, abs=1e-7), (rule, case, layer)


@pytest.mark.parametrize("name", ["conv", "mlp"])
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("rule", ENCODERS)
def test_nothing_above_a_block_matters_to_it(rule: str, layer: int, name: str) -> None:
    before = made(rule, name, dict(localssl.rules.get(rule).encoder_options), OPTIONS[rule][0])
    after = copy.deepcopy(before)
    with torch.no_grad():
        for part in [*after.encoder.blocks[layer + 1 :], *(m for ms in after.parts.values() for m in ms[layer + 1 :])]:
            for parameter in part.parameters():
                parameter += torch.randn_like(parameter)
    for learner in (before, after):
        learn(learner, *views())
    for i, (one, other) in enumerate(zip(gradients(before), gradients(after), strict=True)):
        same = all(torch.equal(one[key], other[key]) for key in one)
        assert same == (i <= layer), f"block {i + 1}"


# ------------------------------------------------------------------------------------------------------------- inputs


def standardised(x: np.ndarray) -> np.ndarray:
    mean = x.sum() / x.size
    return (x - mean) / (math.sqrt(((x - mean) ** 2).sum() / (x.size - 1)) + 1e-10)


@pytest.mark.parametrize("halves", ["same", "views"])
def test_pairs(halves: str) -> None:
    a, b = (v.numpy() for v in views(n=5))
    seen = set()
    for seed in range(40):
        x = drawn(made("scff", "mlp", ENCODERS["scff"]["own"], {"halves": halves}), *map(torch.as_tensor, (a, b)), seed)
        x = x.numpy()
        assert x.shape == (10, *SHAPE)
        right = a if halves == "same" else b
        fits = []
        for shift in range(5):
            pairs = [(i, i) for i in range(5)] + [(i, (i + shift) % 5) for i in range(5)]
            want = np.stack([(standardised(a[i]) + standardised(right[j])) / 2 for i, j in pairs])
            if np.allclose(x, want, rtol=1e-12, atol=1e-14):
                fits.append(shift)
        assert len(fits) == 1
        seen.add(fits[0])
    assert seen == {1, 2, 3, 4}  # never beside itself


def test_a_pair_in_two_halves_gives_the_sources_goodness() -> None:
    """One kernel for both halves of the pair standardised once more, a = Wl + Wr + 2b, in place of the mean: the same
    up to that second standardisation, a constant.
    """
    options = ENCODERS["scff"]["own"]
    learner = made("scff", "mlp", options, {"halves": "views"})
    a, b = views()
    x = drawn(learner, a, b)
    (layer,) = weighted(learner.encoder.blocks[0])
    left, right = (torch.as_tensor(np.stack([standardised(v) for v in view.numpy()])).flatten(1) for view in (a, b))
    d = left.shape[1]
    factor = math.sqrt((2 * d - 1) / (2 * d - 2))
    pair = torch.stack([torch.as_tensor(standardised(p)) for p in torch.cat((left, right), 1).numpy()])
    source = pair[:, :d] @ layer.weight.T + pair[:, d:] @ layer.weight.T + 2 * layer.bias
    ours = 2 * (factor * x[:N].flatten(1) @ layer.weight.T + layer.bias)
    torch.testing.assert_close(ours, source, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(learner.encoder(x)[0][:N], x[:N].flatten(1) @ layer.weight.T + layer.bias)


@pytest.mark.parametrize("halves", ["same", "views"])
@pytest.mark.parametrize("name", ["conv", "mlp"])
def test_the_published_layer_is_ours_at_larger_weights(name: str, halves: str) -> None:
    """Without reflection the second standardisation multiplies a pair by c, and so the first weights, not the bias."""
    options, chosen = ENCODERS["scff"]["own"], {**OPTIONS["scff"][1], "halves": halves}
    learner = made("scff", name, options, chosen)
    a, b = views()
    source = expected_scff(learner, a, b, options, chosen, again=True, halved=False)
    d = a[0].numel()
    c = math.sqrt((2 * d - 1) / (2 * d - 2))
    assert not np.allclose(source.losses, expected_scff(learner, a, b, options, chosen).losses, rtol=1e-6)
    with torch.no_grad():
        weighted(learner.encoder.blocks[0])[0].weight.mul_(c)
    losses = learn(learner, a, b)
    assert_close_report(losses, source.losses, 1e-9, "losses")  # the norms' 1e-10 sees the drive's size
    for i, (block, grads) in enumerate(zip(learner.encoder.blocks, source.block_grads, strict=True)):
        (layer,) = weighted(block)
        assert_close_report(numpy(layer.weight.grad) * (1 if i else c), grads["weight"], 1e-8, f"block {i + 1}")
        assert_close_report(numpy(layer.bias.grad), grads["bias"], 1e-8, f"block {i + 1} bias")


@pytest.mark.parametrize("halves", ["same", "views"])
def test_reflected_padding(halves: str) -> None:
    """The net of the source, its pairs standardised over what is padded: losses and updates are the oracle's."""
    options, chosen = ENCODERS["scff"]["own"], {**OPTIONS["scff"][1], "halves": halves, "pad": 1}
    torch.manual_seed(1)
    convs = [nn.Conv2d(i, o, 3) for i, o in ((2, 4), (4, 5), (5, 3))]
    tails: list[list[nn.Module]] = [[layers.Triangle(), *([nn.MaxPool2d(2)] if pool else [])] for pool in (1, 0, 1)]
    encoder = encoders.Options(**options).assemble(convs, tails, {}, pads=(1, 1, 1)).double()
    learner = Learner(encoder, localssl.rules.get("scff", **chosen), SHAPE)
    a, b = views()
    source = expected_scff(learner, a, b, options, chosen, pad="reflect", again=True, halved=False)
    assert_close_report(learn(learner, a, b), source.losses, 1e-8, "losses")  # norms of norms: 1e-10 more than once
    for i, (block, grads) in enumerate(zip(learner.encoder.blocks, source.block_grads, strict=True), start=1):
        (layer,) = weighted(block)
        assert_close_report(numpy(layer.weight.grad), grads["weight"], 1e-7, f"block {i}")
        assert_close_report(numpy(layer.bias.grad), grads["bias"], 1e-7, f"block {i} bias")
    once = expected_scff(learner, a, b, options, chosen, pad="reflect", again=False)
    off = np.abs(once.losses / source.losses - 1)
    assert 1e-4 < off[0] < 0.1, off
    assert not np.allclose(once.block_grads[0]["weight"], source.block_grads[0]["weight"], rtol=1e-3)


def test_an_image_by_itself_is_a_pair_of_itself() -> None:
    """What the probe sees of an image is what training sees of the pair (x, x)."""
    learner = made("scff", "conv", ENCODERS["scff"]["own"], {})
    a, b = views()
    positive = drawn(learner, a, b)[:N]
    drives, emitted = learner.encoder(positive), learner.encoder.emitted(a)
    for drive, tail, seen in zip(drives, learner.encoder.emit, emitted, strict=True):
        torch.testing.assert_close(tail(drive), seen, rtol=1e-12, atol=1e-14)
    assert [z.shape[1:] for z in emitted] == [(4, 4, 4), (5, 4, 4), (3, 2, 2)]
    assert [z.shape[1:] for z in drives] == [(4, 8, 8), (5, 4, 4), (3, 4, 4)]


def test_noisy_copies() -> None:
    a, b = views(n=4, shape=(3, 20, 20))
    torch.manual_seed(0)
    x = NoisyCopies(5, 0.2)(a, b)
    assert x.shape == (20, 3, 20, 20)
    kept = 0
    for row, noisy in enumerate(x):
        clean = a[row % 4]  # copy by copy
        alive = noisy != 0
        kept += int(alive.sum())
        torch.testing.assert_close(noisy[alive], clean[alive] / 0.8)
    share, size = kept / x.numel(), x.numel()
    assert abs(share - 0.8) < 4 * math.sqrt(0.16 / size)
    assert not torch.equal(x[0], x[4])  # every copy has noise of its own
    assert Single()(a, b) is a


# ------------------------------------------------------------------------------------------------------------ encoders


def test_batch_norm_stands_before_every_layer() -> None:
    torch.manual_seed(0)
    for rule in ("stochastic-ff", "softhebb"):
        for name in ("vgg5", "mlp"):
            encoder = encoders.build(name, (1, 16, 16), 0.1, localssl.rules.get(rule).encoder_options)
            early = rule == "stochastic-ff"  # its first norm is the image's own
            for block in encoder.blocks[early:]:
                (norm,) = [m for m in block.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
                assert not norm.affine
                seen: list[Tensor] = []
                hook = weighted(block)[0].register_forward_pre_hook(lambda _, x, into=seen: into.append(x[0]))
                encoder(torch.randn(6, 1, 16, 16))
                hook.remove()
                (x,) = seen
                channels = x.detach().transpose(0, 1).flatten(1)
                assert channels.mean(1).abs().max() < 1e-5
                varied = channels.std(1, correction=0)
                assert ((varied - 1).abs().lt(0.05) | varied.lt(0.1)).all()  # a dead channel stays dead


@pytest.mark.parametrize("name", ["conv", "mlp"])
def test_stochastic_ff_makes_noise_of_the_normalised_image(name: str) -> None:
    """The source's order: batch norm, dropout, convolution. A zero of the noise is the image's mean, not black."""
    learner = made("stochastic-ff", name, ENCODERS["stochastic-ff"]["own"], {"copies": 3})
    a, b = views()
    a = 5 + 2 * a
    x = drawn(learner, a, b)
    (first,) = weighted(learner.encoder.blocks[0])
    seen: list[Tensor] = []
    first.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    learner.encoder(x)
    clean = a.flatten(1)[..., None] if name == "mlp" else a.flatten(2)  # a channel, or a unit of the linear layer
    mean, var = (clean.mean((0, 2)), clean.var((0, 2), correction=0))
    want = ((clean - mean[:, None]) / (var[:, None] + 1e-5).sqrt()).view_as(a).repeat(3, 1, 1, 1) / 0.8
    (seen_x,) = seen
    kept = seen_x.view_as(want) != 0
    assert 0.7 < kept.double().mean() < 0.9
    torch.testing.assert_close(seen_x.view_as(want)[kept], want[kept], rtol=1e-9, atol=1e-9)


def pairs_drive(conv: nn.Conv2d, left: Tensor, right: Tensor) -> Tensor:
    """The source's block, pair as it is: halves standardised, beside each other, padded, standardised, one kernel."""
    halves = torch.cat([(h - h.mean((1, 2, 3), True)) / h.std((1, 2, 3), keepdim=True) for h in (left, right)], 1)
    padded = nn.ReflectionPad2d(conv.kernel_size[0] // 2)(halves)
    padded = (padded - padded.mean((1, 2, 3), True)) / padded.std((1, 2, 3), keepdim=True)
    assert conv.bias is not None
    return nn.functional.conv2d(padded, torch.cat((conv.weight, conv.weight), 1), 2 * conv.bias)


@pytest.mark.parametrize("halves", ["same", "views"])
def test_pairs_are_those_of_the_padded_block(halves: str) -> None:
    """The mean of two halves through scff3's first block, against the two beside each other; and an image by itself."""
    rule = localssl.rules.get("scff", halves=halves, pad=2)
    torch.manual_seed(0)
    encoder = encoders.published("scff3", 0.0625, **rule.encoder_options).double()
    learner = Learner(encoder, rule, (3, 12, 12))
    a, b = torch.rand(2, 4, 3, 12, 12, dtype=torch.float64).cumsum(3)  # unlike at their borders and within
    conv = encoder.blocks[0][-1]  # pyright: ignore[reportIndexIssue]
    assert isinstance(conv, nn.Conv2d)
    nn.init.normal_(conv.bias)  # pyright: ignore[reportArgumentType]
    torch.manual_seed(3)
    shift = int(torch.randint(1, 4, ()))
    right = a if halves == "same" else b
    wanted = torch.cat((pairs_drive(conv, a, right), pairs_drive(conv, a, right.roll(-shift, 0))))
    found = 2 * encoder.blocks[0](drawn(learner, a, b))
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-7)
    alone = 2 * encoder.blocks[0](encoder.entry(a))
    torch.testing.assert_close(alone, pairs_drive(conv, a, a), rtol=1e-7, atol=1e-7)
    plain = 2 * encoder.blocks[0](torch.cat((a, a)))
    assert (plain - wanted).abs().max() > 0.1
    with usage_error("pad=2"):
        Learner(encoders.mlp(12, (3,)), rule, (12,))


def test_a_layer_paired_anew() -> None:
    """scff3's third layer on pairs of what the second gives, every layer pairing anew, written out; it alone learns."""
    rule = localssl.rules.get("scff", pad=2)
    torch.manual_seed(0)
    encoder = encoders.published("scff3", 0.0625, **rule.encoder_options).double()
    learner = Learner(encoder, rule, (3, 16, 16), engine="autograd")
    x = torch.rand(4, 3, 16, 16, dtype=torch.float64).cumsum(3)
    convs = [block[-1] for block in encoder.blocks]  # pyright: ignore[reportIndexIssue]
    given = x
    nn.init.normal_(convs[0].bias)
    nn.init.normal_(convs[2].bias)
    nn.init.zeros_(convs[1].bias)  # else it stands to a drive that is here sqrt((2D - 1)/(2D - 2)) times the source's
    for conv, emit in zip(convs[:2], encoder.emit, strict=False):
        given = emit(pairs_drive(conv, given, given))
    torch.manual_seed(3)
    shift = int(torch.randint(1, 4, ()))
    pos, neg = (pairs_drive(convs[2], given, r).relu().square().mean(1) for r in (given, given.roll(-shift, 0)))
    wanted = nn.functional.softplus(6 - pos).mean() + nn.functional.softplus(neg - 10).mean()
    wanted = wanted + 0.0005 * pos.flatten(1).norm(dim=1).mean()
    below, part = greedy._alone(learner, 3)  # pyright: ignore[reportPrivateUsage]
    torch.manual_seed(3)
    z = below.emitted(x)[-1]
    torch.testing.assert_close(part.losses(z, z), wanted[None], rtol=1e-7, atol=1e-9)
    wanted.backward()  # pyright: ignore[reportUnknownMemberType]
    slope = convs[2].weight.grad.clone()
    learner.zero_grad()
    torch.manual_seed(3)
    part.accumulate_grads(z.detach(), z.detach())
    torch.testing.assert_close(convs[2].weight.grad, slope, rtol=1e-6, atol=1e-9)
    before = [conv.weight.detach().clone() for conv in convs]
    images = open_images("digits", "train", image_size=16, limit=8)
    how = greedy.Pass(3, 0.01, repaired=True)
    greedy.train(learner, images, lambda i: (v := i.double().repeat(1, 3, 1, 1) / 255, v), how, 4)
    assert [torch.equal(old, conv.weight) for old, conv in zip(before, convs, strict=True)] == [True, True, False]
    assert all(p.requires_grad for p in learner.parameters())


def test_paired_encoders_standardise_what_other_rules_train_on() -> None:
    """As what the probe sees: the two views of any rule, each image by itself."""
    options = {"norm": "standardise", "paired": True}
    for name in ("conv", "mlp"):
        learner = made("clapp++", name, options, {})
        plain = made("clapp++", name, {"norm": "standardise"}, {})
        a, b = views()
        assert_close_report(learner.losses(a, b).detach(), numpy(plain.losses(a, b)), 1e-12, what=name)
        for one, other in zip(learner.encoder.emitted(a), plain.encoder.emitted(a), strict=True):
            torch.testing.assert_close(one, other)
    assert made("clapp++", "conv", {"paired": True}, {}).encoder.config == {"paired": True}  # no norm: nothing moves


def test_start_of_softhebb() -> None:
    torch.manual_seed(0)
    encoder = encoders.build("vgg6", (3, 32, 32), 0.5, localssl.rules.get("softhebb").encoder_options)
    for block in encoder.blocks:
        (layer,) = weighted(block)
        fan_in = layer.weight[0].numel()
        assert layer.weight.std().item() == pytest.approx(25 / fan_in**0.5, rel=0.05)
        assert layer.bias is not None
        assert not layer.bias.any()
    again = encoders.from_config(encoder.config or {})
    assert again.config == encoder.config
    for init in (0, -1.0, "25", True, math.inf):
        with usage_error("init"):
            encoders.mlp(4, (2,), init=init)
    with usage_error("choices: batch, length, standardise"):
        encoders.mlp(4, (2,), norm="zzzzzz")


PUBLISHED = {  # its rule, image size, channels, sides of the maps that go on, numbers that the publication's probe sees
    "scff3": ("scff", 32, (96, 384, 1536), (16, 8, 4), (6144, 6144, 6144)),
    "scff4": ("scff", 96, (96, 384, 1536, 6144), (48, 24, 12, 6), (864, 3456, 13824, 24576)),
    "softhebb3": ("softhebb", 32, (96, 384, 1536), (16, 8, 4), (6144, 6144, 24576)),
    "stochastic-ff3": ("stochastic-ff", 32, (96, 384, 1536), (16, 8, 4), (6144, 6144, 24576)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_nets(name: str) -> None:
    rule_name, size, channels, sides, features = PUBLISHED[name]
    rule = localssl.rules.get(rule_name)
    with torch.device("meta"):
        encoder = encoders.build(name, (3, size, size), 1.0, rule.encoder_options)
        shapes = encoder.output_shapes((3, size, size), emitted=True)
    assert shapes == [(c, side, side) for c, side in zip(channels, sides, strict=True)]
    patches = default_patches(name, size)
    assert patches is not None
    assert tuple(readout.dim(shape, p) for shape, p in zip(shapes, patches, strict=True)) == features
    biases = [m.bias is not None for m in encoder.modules() if isinstance(m, nn.Conv2d)]
    assert set(biases) == {name.startswith("scff")}
    small = encoders.build(name, (3, size, size), 0.05, rule.encoder_options)
    assert encoders.from_config(small.config or {}).config == small.config
    for block in small.blocks:
        kinds = [type(m) for m in block.modules()]
        pad = kinds.index(nn.ReflectionPad2d)
        if Standardise in kinds:
            assert pad < kinds.index(Standardise)
        if nn.BatchNorm2d in kinds:
            assert pad > kinds.index(nn.BatchNorm2d)
    learner = Learner(small, rule, (3, size, size), patches)
    a, b = torch.randn(2, 4, 3, size, size)
    assert learner.accumulate_grads(a, b).isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learner.encoder.parameters())
    with usage_error("without channels"):
        encoders.build(name, (3, size, size), 1e-4)
    with usage_error("scff3"):
        encoders.published("scff5")


@pytest.mark.parametrize("power", [0.7, 1.0, 1.4])
def test_triangle(power: float) -> None:
    a = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    z = layers.Triangle(power)(a)
    for n, c, p in np.ndindex(2, 5, 3):
        over = float(a[n, c, p].detach() - a[n, :, p].detach().sum() / 5)
        assert z[n, c, p].item() == pytest.approx(over**power if over > 0 else 0.0)
    z.sum().backward()
    assert a.grad is not None
    assert a.grad.isfinite().all()


# ------------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("rule", "options", "match"),
    [
        ("scff", {"theta1": "4"}, "theta1"),
        ("scff", {"theta2": (1.0, math.nan)}, "theta2"),
        ("scff", {"theta1": ()}, "theta1"),
        ("scff", {"penalty": -1.0}, "penalty"),
        ("scff", {"halves": "view"}, "did you mean 'views'"),
        ("scff", {"pad": -1}, "pad"),
        ("scff", {"theta": 1.0}, "did you mean 'theta"),
        ("stochastic-ff", {"copies": 1}, "copies"),
        ("stochastic-ff", {"copies": 2.0}, "copies"),
        ("stochastic-ff", {"dropout": 1.0}, "dropout"),
        ("stochastic-ff", {"dropout": "0.2"}, "dropout"),
        ("stochastic-ff", {"channels": 0}, "channels"),
        ("stochastic-ff", {"channels": ()}, "channels"),
        ("stochastic-ff", {"channels": (3, 2.5)}, "channels"),
        ("softhebb", {"t": None}, "t must"),
        ("softhebb", {"t": -1.0}, "t must"),
        ("softhebb", {"rates": "fast"}, "rates"),
    ],
)
def test_options_refused(rule: str, options: dict[str, Any], match: str) -> None:
    with usage_error(match):
        localssl.rules.get(rule, **options)


def test_the_random_projection_is_fixed_and_orthonormal() -> None:
    learner = made("stochastic-ff", "conv", {}, {"channels": (3, 30)})
    sizes = [tuple(m.weight.shape) for m in learner.parts["channels"]]  # type: ignore[union-attr]
    assert sizes == [(3, 4), (5, 5), (3, 3)]
    for module in learner.parts["channels"]:
        weight = module.get_parameter("weight")
        assert not weight.requires_grad
        torch.testing.assert_close(weight @ weight.T, torch.eye(len(weight), dtype=weight.dtype), rtol=0, atol=1e-6)


def test_hebbian_credit_needs_one_layer_a_block() -> None:
    blocks = [nn.Sequential(nn.Conv2d(2, 3, 3), nn.Conv2d(3, 3, 3))]
    learner = Learner(Encoder.from_blocks(blocks), localssl.rules.get("softhebb"), SHAPE)
    with usage_error("block 1 has 2 convolutions"):
        learner.accumulate_grads(*torch.randn(2, 3, *SHAPE))


def test_hebbian_credit_leaves_frozen_weights_alone() -> None:
    learner = made("softhebb", "conv", {}, {})
    learner.encoder.blocks[0].requires_grad_(False)
    learn(learner, *views())
    first, second, _ = gradients(learner)
    assert not first
    assert all(grad.isfinite().all() for grad in second.values())


# ----------------------------------------------------------------------------------------------------------- behaviour


def test_softhebb_brings_weights_to_length_one() -> None:
    torch.manual_seed(0)
    options = {**localssl.rules.get("softhebb").encoder_options, "init": 3.0}
    learner = Learner(encoders.mlp(8, (6,), **options), localssl.rules.get("softhebb"), (8, 1, 1))
    (layer,) = weighted(learner.encoder.blocks[0])
    optimiser = torch.optim.SGD(learner.parameters(), lr=0.01)
    for _ in range(600):
        x = torch.randn(64, 8, 1, 1) * torch.arange(1, 9)[:, None, None].rsqrt()
        optimiser.zero_grad()
        learner.accumulate_grads(x, x)
        optimiser.step()
    lengths = layer.weight.norm(dim=1)
    assert (lengths - 1).abs().max() < 0.35
    assert layer.bias is not None
    assert not layer.bias.any()


@pytest.mark.parametrize("rule", ["scff", "stochastic-ff"])
def test_losses_fall(rule: str) -> None:
    torch.manual_seed(0)
    encoder = encoders.build("vgg5", (1, 16, 16), 0.5, localssl.rules.get(rule).encoder_options)
    learner = Learner(encoder, localssl.rules.get(rule), (1, 16, 16))
    optimiser = torch.optim.Adam([p for p in learner.parameters() if p.requires_grad], lr=2e-3)
    torch.manual_seed(1)
    templates = torch.randn(8, 1, 16, 16)
    history: list[Tensor] = []
    for _ in range(60):
        x = templates + 0.1 * torch.randn(8, 1, 16, 16)
        optimiser.zero_grad()
        history.append(learner.accumulate_grads(x, x))
        optimiser.step()
    assert (torch.stack(history[-10:]).mean(0) < torch.stack(history[:10]).mean(0) - 0.01).all(), history[::20]


@pytest.mark.parametrize("rule", ENCODERS)
def test_a_run(rule: str, tmp_path: Path) -> None:
    said: list[str] = []
    descends = alignment.refusal(localssl.rules.get(rule)) is None
    run = run_tiny(tmp_path / "run", said, rule=rule, lr=None, align_every=int(descends))
    assert not [line for line in said if "diverging" in line or "dying" in line], said
    config = open_run(run.path).config
    assert config.optimizer == ("plain-sgd" if rule == "softhebb" else "adam")
    assert last_state(run.path)["step"] == 8
    assert all(torch.isfinite(p).all() for p in run.trained_learner()[0].parameters())
    learner, _ = run.trained_learner()
    learner.eval()
    if descends:
        (row, *_) = alignment.measure(learner.encoder, learner, [torch.randn(2, 8, 1, 16, 16).unbind()])
        assert -1 <= row.mean <= 1
    probed = evaluate.probe_run(run, evaluate.ProbeOptions(labels=("all",)))
    assert rule in probed


# ----------------------------------------------------------------------------------------------------- the study


def test_shifts_are_whole_pixels() -> None:
    images = torch.randint(1, 256, (200, 1, 6, 6), dtype=torch.uint8)
    torch.manual_seed(0)
    moved = scff_mnist.shifted(images).unflatten(1, (6, 6))
    counts: dict[tuple[int, int], int] = {}
    for image, shown in zip(images[:, 0].float() / 255, moved, strict=True):
        found = []
        for dy in range(-2, 3):
            for dx in range(-2, 3):
                want = torch.zeros(6, 6)
                for y in range(6):
                    for x in range(6):
                        if 0 <= y - dy < 6 and 0 <= x - dx < 6:
                            want[y, x] = image[y - dy, x - dx]
                if torch.equal(want, shown):
                    found.append((dy, dx))
        assert len(found) == 1
        counts[found[0]] = counts.get(found[0], 0) + 1
    for axis in (0, 1):  # round(U(-2, 2)): the ends half as often
        marginal = [sum(n for at, n in counts.items() if at[axis] == d) for d in range(-2, 3)]
        wanted = [25, 50, 50, 50, 25]
        assert all(abs(m - w) < 4 * w**0.5 for m, w in zip(marginal, wanted, strict=True)), marginal
