"""Forward-Forward and PhyLL: losses, gradients and inputs against slow references, and the study of MNIST in small."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import localssl
from localssl import encoders, evaluate, oracle
from localssl.data.sources import open_images
from localssl.encoders import Encoder, Options, layers
from localssl.experiments import ff_mnist
from localssl.experiments.cells import Settings
from localssl.inputs import Hybrids, LabelInImage
from localssl.learner import Learner
from localssl.rules import Batch, Projections
from localssl.rules.forward_forward import ForwardForward, PeerMean
from localssl.rules.phyll import PhyLL

from .train_util import run_tiny
from .util import PATCHES, SHAPE, assert_close_report, numpy, to_oracle, usage_error, views, weighted

LABELS = torch.tensor([2, 0, 1])
NETWORKS = list(PATCHES)


def encoder_of(network: str, norm: str | None) -> Encoder:
    if network == "mlp":
        return encoders.mlp(2 * 8 * 8, widths=(7, 5, 4), norm=norm).double()
    channels = (SHAPE[0], 4, 5, 3)
    pools = (True, False, True) if network == "vgg" else (False, False, False)
    convs = [nn.Conv2d(channels[i], channels[i + 1], 3, padding=1) for i in range(3)]
    return Options(norm=norm).stack(convs, pools, {}).double()


def learner_of(network: str, rule: localssl.rules.Rule, norm: str | None = "length") -> Learner:
    """Weights such that the goodness of every block is near its threshold of one a unit: no sigmoid is saturated."""
    torch.manual_seed(0)
    learner = Learner(encoder_of(network, norm), rule, SHAPE, PATCHES[network])
    x = learner.inputs(*views(), None, LABELS)
    with torch.no_grad():
        for layer, block in enumerate(learner.encoder.blocks):
            scale = learner.encoder(x)[layer].square().mean().rsqrt()
            for parameter in block.parameters():
                parameter.mul_(scale)
        for running in (buffer for name, buffer in learner.projections.named_buffers() if name.startswith("peer")):
            running.uniform_()  # alike they would drop out, and the sign of the new part with them
    return learner


def compare(learner: Learner, name: str, network: str, norm: str | None = "length", **options: Any) -> oracle.Result:
    """Losses and gradients of one batch against the oracle's, on the samples that the learner sees itself."""
    a, b = views()
    torch.manual_seed(7)
    samples = learner.inputs(a, b, None, LABELS).numpy()
    parts = {key: [numpy(m.weight) for m in modules] for key, modules in learner.projections.items()}
    given: dict[str, Any] = {"patches": PATCHES[network], "samples": samples, "norm": norm, **options}
    expected = oracle.reference(name, to_oracle(learner.encoder), parts, a.numpy(), b.numpy(), None, **given)
    learner.zero_grad(set_to_none=True)
    torch.manual_seed(7)
    losses = learner.accumulate_grads(a, b, labels=LABELS)
    assert_close_report(losses, expected.losses, what="losses")
    for i, (block, grads) in enumerate(zip(learner.encoder.blocks, expected.block_grads, strict=True), start=1):
        (layer,) = weighted(block)
        for kind in ("weight", "bias"):
            assert_close_report(numpy(getattr(layer, kind).grad), grads[kind], what=f"block {i} {kind}")
    assert not list(learner.projections.parameters())  # what a rule brings here is not trained
    assert set(learner.projections) == set(expected.projection_grads)
    return expected


@pytest.mark.parametrize("norm", [None, "length"])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("options", [{}, {"threshold": 0.9, "peer": 0.5}, {"views": 1}], ids=str)
@pytest.mark.parametrize("name", ["ff", "ff-supervised"])
def test_forward_forward_equals_oracle(name: str, options: dict[str, Any], network: str, norm: str | None) -> None:
    extra = {"classes": 3} if name == "ff-supervised" else {}
    learner = learner_of(network, localssl.rules.get(name, **options, **extra), norm)
    compare(learner, name, network, norm, **options)


@pytest.mark.parametrize("norm", [None, "length"])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("options", [{}, {"theta": 30.0, "views": 1}, {"labelled": True, "classes": 3}], ids=str)
def test_phyll_equals_oracle(options: dict[str, Any], network: str, norm: str | None) -> None:
    compare(learner_of(network, localssl.rules.get("phyll", **options), norm), "phyll", network, norm, **options)


def test_the_cases_are_neither_saturated_nor_all_alike() -> None:
    for network in NETWORKS:
        learner = learner_of(network, localssl.rules.get("ff"))
        batch = learner.batch(*views())
        for z in batch.maps:
            excess = z.flatten(1).square().sum(1) - z[0].numel()
            assert float(excess.detach().abs().min()) < 10, network
            assert bool((excess > 0).any()), network
            assert bool((excess < 0).any()), network


class Broken(ForwardForward):
    """ff with one mistake, chosen by name."""

    mistake = ""

    def layer_loss(self, batch: Batch, layer: int, projections: Projections) -> Tensor:
        z = batch.maps[layer].flatten(1)
        excess = z.square().sum(1) - z.shape[1]
        if self.mistake == "mean of squares":
            excess = z.square().mean(1) - 1
        if self.mistake == "readout":
            excess = batch.z[layer].square().sum(1) - batch.z[layer].shape[1]
        sign = torch.where(torch.arange(len(z)) < len(z) // 2, -1.0, 1.0)
        if self.mistake == "negatives up":
            sign = -sign
        loss = nn.functional.softplus(sign * excess)
        return loss.sum() if self.mistake == "sum over samples" else loss.mean()


@pytest.mark.parametrize("mistake", ["mean of squares", "readout", "negatives up", "sum over samples"])
def test_a_wrong_rule_fails(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compare(learner_of("vgg", Broken()), "ff", "vgg")
    monkeypatch.setattr(Broken, "mistake", mistake)
    with pytest.raises(AssertionError, match="ratio"):
        compare(learner_of("vgg", Broken()), "ff", "vgg")


@pytest.mark.parametrize("name", ["ff", "ff-supervised", "phyll"])
def test_extreme_activity_and_none_leave_finite_numbers(name: str) -> None:
    for value in (-1.0, 1e6):
        learner = Learner(encoder_of("vgg", "length").float(), localssl.rules.get(name), SHAPE)
        with torch.no_grad():
            for parameter in learner.parameters():
                parameter.fill_(value)
        a, b = (view.float() for view in views())
        assert bool(learner.accumulate_grads(a, b, labels=LABELS).isfinite().all())
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in learner.parameters())


def test_half_precision_sums_in_single() -> None:
    for name in ("ff", "phyll"):
        learner = Learner(encoder_of("vgg", "length").float(), localssl.rules.get(name), SHAPE)
        with torch.autocast("cpu", torch.bfloat16):
            assert learner.losses(*(view.float() for view in views())).dtype == torch.float32


def test_directions_are_of_length_one_frozen_and_not_shared() -> None:
    torch.manual_seed(3)
    encoder = encoders.mlp(4, widths=(50, 50))
    learner = Learner(encoder, localssl.rules.get("phyll"), (4, 1, 1))
    first, second = (m.weight.clone() for m in learner.projections["direction"])
    assert float(first.norm()) == pytest.approx(1)
    assert not torch.equal(first, second)
    torch.optim.AdamW(learner.parameters(), lr=0.1, weight_decay=0.1).step()
    learner.accumulate_grads(torch.randn(3, 4, 1, 1), torch.randn(3, 4, 1, 1))
    torch.optim.AdamW(learner.parameters(), lr=0.1, weight_decay=0.1).step()
    assert torch.equal(learner.projections["direction"][0].weight, first)
    assert "projections.direction.0.weight" in learner.state_dict()  # a checkpoint keeps it


def test_peer_means_move_in_training_alone() -> None:
    peer = PeerMean(3)
    z = torch.tensor([[1.0, 0.0, 2.0], [3.0, 0.0, 0.0]])
    m = torch.tensor([0.65, 0.45, 0.55])
    assert float(peer.eval()(z)) == pytest.approx(float((m.mean() - m).square().mean()))
    assert torch.equal(peer.weight, torch.full((3,), 0.5))
    peer.train()(z)
    torch.testing.assert_close(peer.weight, m)


# ------------------------------------------------------------------------------------------------ straight-through ReLU


def test_straight_through() -> None:
    a = torch.tensor([-2.0, -0.0, 0.0, 1e-30, 3.0], requires_grad=True)
    z = layers.StraightThrough()(a)
    assert torch.equal(z, torch.relu(a))
    (grad,) = torch.autograd.grad((z * torch.arange(5)).sum(), a)
    assert grad.tolist() == [0, 1, 2, 3, 4]


def test_forward_forward_without_peers_does_not_see_it() -> None:
    """dG/dz = 2z is zero where a unit is off; only peer normalisation reaches such units."""
    found: dict[tuple[str, float], list[Tensor]] = {}
    for peer in (0.0, 0.03):
        for activation in ("relu", "relu-ste"):
            torch.manual_seed(0)
            encoder = encoders.mlp(2 * 8 * 8, widths=(7, 5, 4), norm="length", activation=activation).double()
            assert encoders.from_config(encoder.config or {}).config == encoder.config
            learner = Learner(encoder, localssl.rules.get("ff-supervised", peer=peer), SHAPE)
            torch.manual_seed(1)
            learner.accumulate_grads(*views(), labels=LABELS)
            found[activation, peer] = [p.grad for p in encoder.parameters() if p.grad is not None]
    assert all(torch.equal(x, y) for x, y in zip(found["relu", 0.0], found["relu-ste", 0.0], strict=True))
    assert not any(torch.equal(x, y) for x, y in zip(found["relu", 0.03], found["relu-ste", 0.03], strict=True))


# -------------------------------------------------------------------------------------------------------------- inputs


def blurred(line: list[float]) -> list[float]:
    last = len(line) - 1
    return [line[max(i - 1, 0)] / 4 + line[i] / 2 + line[min(i + 1, last)] / 4 for i in range(len(line))]


@pytest.mark.parametrize("blurs", [0, 1, 3])
@pytest.mark.parametrize("shape", [(2, 5, 4), (6,), (1, 1, 1)])
@pytest.mark.parametrize("n_views", [1, 2])
def test_hybrids(n_views: int, shape: tuple[int, ...], blurs: int) -> None:
    n = 4
    pair = [torch.randn(n, *shape), torch.randn(n, *shape)]
    torch.manual_seed(11)
    found = Hybrids(n_views, blurs)(*pair)
    assert found.shape == (2 * n_views * n, *shape)
    torch.manual_seed(11)
    for v, view in enumerate(pair[:n_views]):
        assert torch.equal(found[v * n : (v + 1) * n], view)
        shift = int(torch.randint(1, n, ()))
        bits = torch.randint(2, (n, 1, *shape[1:]) if len(shape) > 1 else (n, *shape)).double().numpy()
        for i in range(n):
            grid: list[list[float]] = np.atleast_2d(bits[i].reshape(bits[i].shape[1:] or (-1,))).tolist()
            if len(shape) == 1:
                grid = [bits[i].tolist()]
            for _ in range(blurs):
                grid = [blurred(row) for row in grid]
                if len(shape) > 1:
                    grid = np.array([blurred(column) for column in np.array(grid).T.tolist()]).T.tolist()
            hybrid = found[(n_views + v) * n + i]
            for channel in range(shape[0]) if len(shape) > 1 else [0]:
                for y, row in enumerate(grid):
                    for x, m in enumerate(row):
                        at = (channel, y, x) if len(shape) > 1 else (x,)
                        assert hybrid[at] == (view[i][at] if m > 0.5 else view[(i + shift) % n][at])


def test_masks_show_half_of_each_image_in_patches_that_grow_with_the_blurs() -> None:
    torch.manual_seed(0)
    edges: list[float] = []
    for blurs in (0, 4, 16):
        mask = Hybrids(blurs=blurs).masks(torch.zeros(200, 3, 28, 28)).float()
        assert mask.shape == (200, 1, 28, 28)
        assert float(mask.mean()) == pytest.approx(0.5, abs=0.05)
        edges.append(float(mask.diff(dim=2).abs().mean()))
    assert edges[0] > 2 * edges[1] > 2.5 * edges[2]


@pytest.mark.parametrize("shape", [(2, 3, 4), (12,), (1, 9, 9)])
@pytest.mark.parametrize("n_views", [1, 2])
def test_label_in_image(n_views: int, shape: tuple[int, ...]) -> None:
    n, classes = 5, 7
    pair = [torch.rand(n, *shape), torch.rand(n, *shape)]
    before = [view.clone() for view in pair]
    labels = torch.tensor([0, 6, 3, 3, 1])
    inputs = LabelInImage(n_views, classes)
    assert inputs.shape(shape) == shape
    found = inputs(*pair, None, labels)
    assert found.shape == (2 * n_views * n, *shape)
    assert all(torch.equal(one, other) for one, other in zip(pair, before, strict=True))
    width = shape[-1]
    for i, sample in enumerate(found):
        image = pair[i // n % n_views][i % n]
        for channel in range(shape[0]) if len(shape) > 1 else [0]:
            plane, own = (sample[channel], image[channel]) if len(shape) > 1 else (sample[None], image[None])
            written = [float(plane[k // width, k % width]) for k in range(classes)]
            assert sorted(written) == [0.0] * (classes - 1) + [1.0]
            assert (written.index(1.0) == int(labels[i % n])) == (i < n_views * n)
            rest = range(classes, plane.numel())
            assert all(plane[k // width, k % width] == own[k // width, k % width] for k in rest)
    neutral = inputs.neutral(pair[0])
    assert torch.equal(pair[0], before[0])
    flat = neutral.flatten(2) if len(shape) > 1 else neutral[:, None]
    assert bool((flat[:, :, :classes] == 0.1).all())
    assert torch.equal(
        flat[:, :, classes:], (pair[0].flatten(2) if len(shape) > 1 else pair[0][:, None])[:, :, classes:]
    )


def test_a_tall_label_is_as_high_as_the_largest_number_of_the_batch() -> None:
    a, b = torch.rand(2, 4, 1, 5, 5)
    a[2, 0, 4, 4] = 3.5
    found = localssl.rules.get("phyll", labelled=True, classes=4).inputs()(a, b, None, torch.tensor([0, 1, 2, 3]))
    assert torch.equal(found[:, 0, 0, :4].sort(1).values, torch.tensor([0.0, 0.0, 0.0, 3.5]).expand(16, 4))


def test_label_in_image_whatever_the_memory_format() -> None:
    a, b = torch.rand(2, 4, 3, 5, 5)
    labels = torch.tensor([0, 1, 2, 3])
    found: list[Tensor] = []
    for memory in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        found.append(LabelInImage()(a.to(memory_format=memory), b.to(memory_format=memory), None, labels))
    assert torch.equal(*found)


def test_wrong_labels_are_uniform_over_the_others() -> None:
    torch.manual_seed(0)
    labels = torch.full((6000,), 2)
    view = torch.zeros(6000, 1, 2, 2)
    counts = LabelInImage(1, 4)(view, view, None, labels)[6000:].flatten(1).sum(0)
    assert counts[2] == 0
    assert all(abs(float(c) - 2000) < 4 * 2000**0.5 for c in counts[[0, 1, 3]])


def test_what_is_refused() -> None:
    for name in ("ff", "ff-supervised"):
        for options in ({"threshold": 0}, {"threshold": "1"}, {"threshold": float("inf")}):
            with usage_error("threshold"):
                localssl.rules.get(name, **options)
        with usage_error("peer"):
            localssl.rules.get(name, peer=-0.1)
    for name in ("ff", "ff-supervised", "phyll"):
        for value in (0, 3, True, "2"):
            with usage_error("views"):
                localssl.rules.get(name, views=value)
    for name in ("ff", "phyll"):
        for value in (-1, 1.5):
            with usage_error("blurs"):
                localssl.rules.get(name, blurs=value)
    for theta in (0, -1.0, float("nan"), "4"):
        with usage_error("theta"):
            localssl.rules.get("phyll", theta=theta)
    with usage_error("classes"):
        localssl.rules.get("ff-supervised", classes=1)
    with usage_error("classes"):
        localssl.rules.get("phyll", labelled=True, classes=1)
    with usage_error("labelled"):
        localssl.rules.get("phyll", labelled=2)
    with usage_error("no room"):
        Learner(encoders.mlp(9), localssl.rules.get("ff-supervised"), (1, 3, 3))
    learner = Learner(encoders.mlp(16), localssl.rules.get("ff-supervised", classes=3), (1, 4, 4))
    a, b = torch.rand(2, 3, 1, 4, 4)
    with usage_error("supervised"):
        learner.losses(a, b)
    with usage_error(r"0\.\.2"):
        learner.losses(a, b, labels=torch.tensor([0, 1, 3]))


# ------------------------------------------------------------------------------------------------------ training, study


@pytest.mark.parametrize("encoder", [None, "mlp"])
@pytest.mark.parametrize("name", ["ff", "ff-supervised", "phyll"])
def test_trains_and_aligns(name: str, encoder: str | None, tmp_path: Path) -> None:
    run = run_tiny(tmp_path, rule=name, encoder=encoder)
    assert run.config.encoder.get("norm") == (None if name == "phyll" else "length")
    found = evaluate.align_run(run, evaluate.AlignOptions(batches=2))
    cosines = [row.mean for row in found.rows if row.quantity == "cosine" and row.parameter == "weights"]
    assert cosines[-1] == pytest.approx(1, abs=1e-6)
    assert all(abs(c) < 1 for c in cosines[:-1])
    again = evaluate.align_run(run, evaluate.AlignOptions(batches=2))
    assert repr(again.rows) == repr(found.rows)


@pytest.mark.parametrize("rule", [ForwardForward(), PhyLL()], ids=lambda rule: rule.name)
def test_learns_to_tell_digits_from_hybrids(rule: localssl.rules.Rule) -> None:
    torch.manual_seed(0)
    digits = open_images("digits", image_size=16).batch(torch.arange(200)) / 255
    learner = Learner(encoders.mlp(256, (40, 30), norm=rule.encoder_options.get("norm")), rule, (1, 16, 16))
    before = copy.deepcopy(learner)
    optimiser = torch.optim.Adam(learner.parameters(), lr=3e-3)
    for _ in range(150):
        x = digits[torch.randperm(150)[:30]]
        learner.accumulate_grads(x, x)
        optimiser.step()
        optimiser.zero_grad()
    unseen = digits[150:]
    after, start = learner.losses(unseen, unseen), before.losses(unseen, unseen)
    assert bool((after < 0.95 * start).all()), (after, start)


@pytest.fixture
def small_study(monkeypatch: pytest.MonkeyPatch) -> None:
    """The study on 600 images of four stripes instead of digits, with narrow layers."""

    def load(split: str, root: Path | None) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0 if split == "train" else 1)
        labels = torch.randint(4, (600,), generator=generator)
        x = torch.rand(600, 1, 28, 28, generator=generator)
        x[torch.arange(600), 0, 7 * labels + 3] += 5.0
        return x, labels

    for name, value in {
        "DATA": "digits",
        "_load": load,
        "TRAINED_ON": 400,
        "WIDTHS": (30, 20, 20),
        "BATCH": 20,
    }.items():
        monkeypatch.setattr(ff_mnist, name, value)
    monkeypatch.setattr(ff_mnist, "EPOCHS", 6)


@pytest.mark.usefixtures("small_study")
def test_the_study_goes_on_where_it_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Settings(tmp_path / "whole", threads=1)
    ff_mnist.run(whole)
    stopped = Settings(tmp_path / "stopped", threads=1)
    original = ff_mnist.Study.train_epoch

    def killed(study: ff_mnist.Study) -> None:
        original(study)
        if study.epoch == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(ff_mnist.Study, "train_epoch", killed)
    with pytest.raises(KeyboardInterrupt):
        ff_mnist.run(stopped)
    assert not list((tmp_path / "stopped" / "cells").iterdir())
    monkeypatch.setattr(ff_mnist.Study, "train_epoch", original)
    ff_mnist.run(stopped)
    tables = [(s.out / "ff-mnist.csv").read_text().splitlines()[-1].split(",") for s in (whole, stopped)]
    assert tables[0][:4] == tables[1][:4]
    assert float(tables[0][2]) < 40  # of 75 by chance
    states = [torch.load(s.out / "runs" / "ff-supervised-s0-of-6.pt", weights_only=True) for s in (whole, stopped)]
    for name, value in states[0]["learner"].items():
        assert torch.equal(value, states[1]["learner"][name]), name
    assert states[0]["history"] == states[1]["history"]


@pytest.mark.usefixtures("small_study")
def test_the_layers_do_not_see_the_readout(tmp_path: Path) -> None:
    one, other = (ff_mnist.Study(None, 0, 6) for _ in range(2))
    nn.init.normal_(other.readout.weight)
    one.train_epoch()
    other.train_epoch()
    for name, value in one.learner.state_dict().items():
        assert torch.equal(value, other.learner.state_dict()[name]), name
