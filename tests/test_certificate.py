"""The locality certificate: honest rules are local, and every cheat is named with its own reason."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from typing_extensions import override

import localssl
from localssl import certificate, cli, rules
from localssl.certificate import Certificate, certify, listing
from localssl.certificate.reading import BATCH, ERROR, GRADIENT, INSIDE, LABELS, READS, SYNAPSE, TRANSPORT
from localssl.certificate.worlds import Leaks, Worlds
from localssl.credit import CREDITS, Step, predictive_coding
from localssl.credit.local import Local
from localssl.encoders import Encoder, run_block
from localssl.learner import Learner
from localssl.projections import KINDS, Dense
from localssl.rules import Batch, Rule, ScoreRule
from localssl.rules.base import Projections

PAGE = Path(__file__).parents[1] / "docs" / "certificate.md"
ABOVE = (TRANSPORT, GRADIENT)
EXPECTED: dict[str, tuple[str, ...]] = {  # every built-in rule and why it is not local
    **dict.fromkeys(("clapp", "clapp++", "clapp++dfb", "clapp++both", "clapp-illing"), ()),
    **dict.fromkeys(("ff", "ff-supervised", "phyll", "scff"), ()),
    **dict.fromkeys(("bp-clapp++", "sign-symmetric", "optimum"), ABOVE),
    **dict.fromkeys(("lpl", "stochastic-ff"), (BATCH,)),
    **dict.fromkeys(("bp-infonce", "bp-lpl"), (*ABOVE, BATCH)),
    **dict.fromkeys(("pc", "ipc"), (*ABOVE, SYNAPSE)),
    "bp": (*ABOVE, LABELS),
    "bp-simclr": (*ABOVE, BATCH, SYNAPSE),
    "softhebb": (BATCH, SYNAPSE),
    "fa": (GRADIENT,),
    "dfa": (ERROR,),
}


def test_every_built_in_rule_has_a_row() -> None:
    assert list(rows_of_the_page()) == sorted(EXPECTED) == listing.built_in()
    for name in ("clapp", "dfa"):  # the heading, too
        assert all(line in PAGE.read_text(encoding="utf-8") for line in listing.table([name]).splitlines())


def rows_of_the_page() -> dict[str, str]:
    """The rows of the documentation's table by rule."""
    page = PAGE.read_text(encoding="utf-8")
    lines = page.split("made by docs_tables -->")[1].split("<!--")[0].strip().splitlines()[2:]
    return {line.split("`")[1]: line for line in lines}


@pytest.mark.parametrize("name", EXPECTED)
def test_built_in_rules(name: str) -> None:
    """By what is known of them, and by the documentation: python -m localssl.report.docs_tables docs."""
    found = certify(name)
    assert found.reasons == EXPECTED[name]
    assert found.verdict == ("not local" if EXPECTED[name] else "local")
    assert found.untraced == ()
    assert len(found.layer_costs) == found.layers == 3
    assert {r.what for r in found.reads} <= set(READS)
    assert listing.as_table([found]).splitlines()[2:] == [rows_of_the_page()[name]]


def test_what_a_local_rule_reads() -> None:
    found = certify("clapp++dfb")
    first = {r.source: (r.what, r.distance) for r in found.reads if r.target == "encoder.blocks.0.0.weight"}
    assert first["x"] == ("pre", 1)
    assert first["u^1"] == ("gate", 0)
    assert first["z^3"] == ("feedback", 2)
    assert first["feedback^1"] == ("own B", 0)
    assert "z^2" not in first
    assert "feedback^2" not in first
    assert found.distance == 2
    assert certify("clapp++").distance == 1
    assert "feedback" in found.names("ΔB", 1)
    assert "feedback" not in found.names("ΔB", 3)


def test_labels_in_the_image_are_no_reason() -> None:
    found = certify("ff-supervised")
    assert found.labels_enter
    assert found.reasons == ()
    assert not certify("ff").labels_enter


@dataclass(frozen=True, kw_only=True)
class Plain(ScoreRule):
    """CLAPP++ as a base for cheats; ``extra`` is added to the loss."""

    references: ClassVar[Any] = {"lateral": localssl.references.Own()}

    def extra(self, batch: Batch, layer: int) -> Tensor:
        return batch.z[layer].sum() * 0

    @override
    def losses(self, batch: Batch, projections: Projections) -> Tensor:
        own = super().losses(batch, projections)
        return own + torch.stack([self.extra(batch, layer) for layer in range(len(own))])


def test_the_base_of_the_cheats_is_local() -> None:
    assert certify(Plain()).reasons == ()


@dataclass(frozen=True, kw_only=True)
class Labels(Plain):
    @override
    def extra(self, batch: Batch, layer: int) -> Tensor:
        assert batch.labels is not None
        return ((batch.labels % 2).repeat(2) * batch.z[layer][:, 0]).mean()


@dataclass(frozen=True, kw_only=True)
class LabelsThroughPython(Plain):
    @override
    def extra(self, batch: Batch, layer: int) -> Tensor:
        assert batch.labels is not None
        return batch.z[layer][0, 0] * batch.labels.tolist()[0]


@dataclass(frozen=True, kw_only=True)
class Mean(Plain):
    @override
    def extra(self, batch: Batch, layer: int) -> Tensor:
        z = batch.z[layer]
        return (z - z.mean(0)).square().mean()


@dataclass(frozen=True, kw_only=True)
class OtherLayersB(Plain):
    @override
    def losses(self, batch: Batch, projections: Projections) -> Tensor:
        below = projections["lateral"][0].weight.detach().mean(1)[:3]  # type: ignore[union-attr,operator]
        return super().losses(batch, projections) + torch.stack([(z[:, :3] * below).mean() for z in batch.z])


@pytest.mark.parametrize(
    ("rule", "reason"),
    [(Labels, LABELS), (LabelsThroughPython, LABELS), (Mean, BATCH), (OtherLayersB, SYNAPSE)],
)
def test_cheats_in_a_loss(rule: type[Rule], reason: str) -> None:
    found = certify(rule)
    assert found.verdict == "not local"
    assert found.reasons == (reason,)


class Leaky(Local):
    """The second block's gradient reaches the first."""

    @override
    def activities(self, encoder: Encoder, x: Tensor) -> list[Tensor]:
        outputs: list[Tensor] = []
        for number, block in enumerate(encoder.blocks, start=1):
            x = run_block(block, x if number == 2 else x.detach(), number)
            outputs.append(x)
        return outputs


class Added(Local):
    """Local, and something is added to every gradient."""

    def error(self, weights: Sequence[Tensor], z: Sequence[Tensor], layer: int) -> Tensor:
        """What is added to dL/dz of a layer, (N, d)."""
        return torch.zeros_like(z[layer])

    def change(self, weights: Sequence[Tensor], z: Sequence[Tensor], layer: int) -> Tensor | float:
        """What is added to the gradient of a layer's weights."""
        return 0.0

    @override
    def updates(self, step: Step) -> Iterator[Tensor]:
        z = self.activities(step.encoder, step.x)
        losses = step.losses(z)
        layers = [m for m in step.encoder.modules() if isinstance(m, nn.Linear)]
        weights, values = [m.weight.detach() for m in layers], [h.detach() for h in z]
        errors = [self.error(weights, values, layer) for layer in range(len(z))]
        torch.autograd.backward([losses.sum(), *z], [None, *errors])
        for layer, module in enumerate(layers):
            assert module.weight.grad is not None
            module.weight.grad += self.change(weights, values, layer)
        yield losses.detach()


class Transposed(Added):
    """The next layer's activity comes down through its own weights, transposed: no autograd."""

    @override
    def error(self, weights: Sequence[Tensor], z: Sequence[Tensor], layer: int) -> Tensor:
        return z[layer + 1] @ weights[layer + 1] / 100 if layer + 1 < len(z) else torch.zeros_like(z[layer])


class ThroughNumPy(Transposed):
    """The same behind torch's back."""

    @override
    def error(self, weights: Sequence[Tensor], z: Sequence[Tensor], layer: int) -> Tensor:
        return super().error([torch.tensor(w.numpy().copy()) for w in weights], z, layer)


class Below(Added):
    """Weight decay by the weights of the layer below."""

    @override
    def change(self, weights: Sequence[Tensor], z: Sequence[Tensor], layer: int) -> Tensor | float:
        return 0.01 * weights[layer - 1].mean() if layer else 0.0


class Neighbours(Added):
    """Sanger's term: y yᵀ W, in which a neuron reads the weights of the others."""

    @override
    def change(self, weights: Sequence[Tensor], z: Sequence[Tensor], layer: int) -> Tensor | float:
        return 0.01 * z[layer].T @ z[layer] @ weights[layer]


class Decay(Added):
    """Weight decay: a synapse reads its own weight."""

    @override
    def change(self, weights: Sequence[Tensor], z: Sequence[Tensor], layer: int) -> Tensor | float:
        return 0.01 * weights[layer]


class Reward(Added):
    """One number a sample from the last layer multiplies every layer's own signal: a modulator."""

    @override
    def error(self, weights: Sequence[Tensor], z: Sequence[Tensor], layer: int) -> Tensor:
        return (z[-1] @ weights[-1]).sum(1, keepdim=True) * z[layer] / 100


def on_mlp(credit: Local, monkeypatch: pytest.MonkeyPatch) -> Certificate:
    monkeypatch.setitem(CREDITS, "cheat", credit)

    class Cheat(Plain):
        credit: ClassVar[str] = "cheat"

        @property
        @override
        def per_layer(self) -> bool:
            return True

    torch.manual_seed(0)
    encoder = localssl.encoders.mlp(2 * 8 * 8, widths=(7, 6, 5))
    return certify(Learner(encoder, Cheat(), (2, 8, 8)))


@pytest.mark.parametrize(
    ("credit", "reasons"),
    [
        (Added(), ()),
        (Leaky(), (TRANSPORT, GRADIENT)),
        (Transposed(), (TRANSPORT,)),
        (ThroughNumPy(), None),
        (Below(), (SYNAPSE,)),
        (Neighbours(), (SYNAPSE,)),
        (Decay(), ()),
        (Reward(), ()),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Local) else "",
)
def test_cheats_in_credit(credit: Local, reasons: tuple[str, ...] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    found = on_mlp(credit, monkeypatch)
    if reasons is None:  # what leaves torch cannot be followed: everything that differed may have been read
        assert TRANSPORT in found.reasons
    else:
        assert found.reasons == reasons


def test_which_weights_and_how(monkeypatch: pytest.MonkeyPatch) -> None:
    leak = on_mlp(Leaky(), monkeypatch).because(TRANSPORT)
    assert {(r.layer, r.source) for r in leak} == {(1, "W^2")}
    assert all("aten.mm (backward)" in r.evidence for r in leak)
    explicit = on_mlp(Transposed(), monkeypatch).because(TRANSPORT)
    assert {(r.layer, r.source) for r in explicit} == {(1, "W^2"), (2, "W^3")}
    assert all("aten.mm" in r.evidence and "backward" not in r.evidence for r in explicit)


class LowRank(nn.Module):
    """B = outer · inner."""

    def __init__(self, d_z: int, d_c: int, rank: int, learnt: bool) -> None:
        super().__init__()
        self.inner, self.outer = Dense(rank, d_c), Dense(d_z, rank)
        self.inner.weight.requires_grad_(learnt)

    @override
    def forward(self, c: Tensor) -> Tensor:
        return self.outer(self.inner(c))


class BareLowRank(nn.Module):
    """The same without modules inside."""

    def __init__(self, d_z: int, d_c: int, rank: int, learnt: bool) -> None:
        super().__init__()
        self.inner = nn.Parameter(torch.randn(rank, d_c) / d_c**0.5, requires_grad=learnt)
        self.outer = nn.Parameter(torch.randn(d_z, rank) / rank**0.5)

    @override
    def forward(self, c: Tensor) -> Tensor:
        return c @ self.inner.T @ self.outer.T


class PatchLocal(nn.Module):
    """A block-diagonal B: two matrices, each from half of c to half of z."""

    def __init__(self, d_z: int, d_c: int, rank: int, learnt: bool) -> None:
        super().__init__()
        self.half = d_c // 2
        self.first, self.second = Dense(d_z // 2, self.half), Dense(d_z - d_z // 2, d_c - self.half)

    @override
    def forward(self, c: Tensor) -> Tensor:
        return torch.cat((self.first(c[:, : self.half]), self.second(c[:, self.half :])), 1)


@pytest.mark.parametrize(
    ("kind", "learnt", "reasons"),
    [
        (LowRank, True, (SYNAPSE,)),
        (LowRank, False, ()),
        (BareLowRank, True, (SYNAPSE,)),
        (BareLowRank, False, ()),
        (PatchLocal, True, ()),
    ],
)
def test_factors_of_b(kind: type[nn.Module], learnt: bool, reasons: tuple[str, ...]) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Factors(Plain):
        @override
        def build(self, dims: Sequence[int]) -> dict[str, list[nn.Module]]:
            return {"lateral": [kind(d, d, 3, learnt) for d in dims]}

    found = certify(Factors)
    assert found.reasons == reasons
    assert {r.target.rpartition("inner")[1] for r in found.because(SYNAPSE)} == ({"inner"} if reasons else set())


@pytest.mark.parametrize("projection", KINDS)
def test_the_library_s_own_projections(projection: str) -> None:
    """A trained low-rank feedback B is what reads another synapse's weight; frozen, patch-local and shared ones do not.

    Every layer has several patches and every B is smaller than a dense one.
    """
    sizes = ((2, 5), (5, 6))
    stack = Encoder.from_blocks([nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.ReLU()) for i, o in sizes])
    rule = rules.get("clapp++both", projection=projection, rank=3)
    made = localssl.Learner(stack, rule, (2, 4, 4), (2, 2))
    assert {type(p) is Dense for key in made.parts.values() for p in key} == {projection == "dense"}
    found = certify(made)
    trained = projection in ("low-rank", "patch-local", "patch-shared")
    assert found.reasons == ((SYNAPSE,) if trained else ())
    targets = {r.target for r in found.because(SYNAPSE)}
    assert all(t.endswith(".inner") for t in targets)
    keys = {"lateral", "feedback"} if projection == "low-rank" else {"feedback"} if trained else set()
    assert {t.split(".")[1] for t in targets} == keys


def test_blocks_of_several_layers() -> None:
    def block(c_in: int, c: int, *norm: nn.Module) -> nn.Module:
        convs = [nn.Conv2d(c_in, c, 3, padding=1), *norm, nn.ReLU(), nn.Conv2d(c, c, 3, padding=1), nn.ReLU()]
        return nn.Sequential(*convs)

    torch.manual_seed(0)
    plain = Encoder.from_blocks([block(2, 4), block(4, 5)])
    found = certify(Learner(plain, Plain(), (2, 8, 8)))
    assert (found.verdict, found.reasons) == ("block-local", (INSIDE,))
    normed = Encoder.from_blocks([block(2, 4, nn.BatchNorm2d(4)), block(4, 5)])
    found = certify(Learner(normed, Plain(), (2, 8, 8)))
    assert (found.verdict, found.reasons) == ("not local", (BATCH, INSIDE))
    assert any("BatchNorm2d in block 1" in r.evidence for r in found.because(BATCH))


@pytest.mark.parametrize("objective", ["clapp", "ce"])
def test_learnt_feedback_of_predictive_coding_transports_no_weights(objective: str) -> None:
    """And its pairs, though their states settle together, are no statistics of the batch."""
    rule = localssl.rules.get("pc", learnt_feedback=True, objective=objective)
    torch.manual_seed(0)
    found = certify(Learner(localssl.encoders.mlp(128, widths=(7, 6, 5)), rule, (2, 8, 8)))
    assert TRANSPORT not in found.reasons
    assert any(r.source == "backward^3" for r in found.because(ERROR))
    if objective == "ce":
        assert {"head^3", "backward_head^3"} <= {r.source for r in found.because(ERROR)}
        return
    assert GRADIENT in found.reasons
    assert BATCH not in found.reasons
    assert any("in a larger batch" in r.evidence for r in found.reads if r.what == "other samples")


def test_a_head_above_that_sends_its_error_down_by_its_transpose(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found where no weight of a block is; a B whose prediction comes down is none."""
    monkeypatch.setattr(predictive_coding, "_heads", lambda parts: {})  # pyright: ignore[reportUnknownLambdaType]
    found = certify(localssl.rules.get("pc", learnt_feedback=True, objective="ce"))
    assert {r.source for r in found.because(TRANSPORT)} == {"head^3"}
    assert {r.layer for r in found.because(TRANSPORT)} == {1, 2}
    assert "head^3" in {r.source for r in certify("bp").because(TRANSPORT)}
    assert {r.source for r in certify("bp-clapp++").because(TRANSPORT)} == {"W^2", "W^3"}
    assert TRANSPORT not in certify("dfa").reasons


def test_costs_are_counted_from_the_products() -> None:
    """By hand, for [linear, ReLU] x 3 and B of a d × d: ΔW is N d_in d_out, Bc and ΔB are N d² each."""
    widths, entry = (7, 6, 5), 128
    torch.manual_seed(0)
    found = certify(Learner(localssl.encoders.mlp(entry, widths=widths), Plain(), (2, 8, 8)))
    sizes = list(zip((entry, *widths[:-1]), widths, strict=True))
    assert [c.operations for c in found.layer_costs] == [d_in * d + 2 * d * d for d_in, d in sizes]
    assert found.cost.operations == sum(d_in * d + 2 * d * d for d_in, d in sizes)
    backprop = certify(
        Learner(localssl.encoders.mlp(entry, widths=widths), localssl.rules.get("bp-clapp++"), (2, 8, 8))
    )
    down = [6 * 7, 5 * 6]  # the error on its way to blocks 1 and 2
    head = 2 * 5 * 5
    assert backprop.cost.operations == sum(d_in * d for d_in, d in sizes) + sum(down) + head


def test_a_learner_is_left_as_it_is() -> None:
    torch.manual_seed(0)
    learner = Learner(localssl.encoders.mlp(128, widths=(7, 6, 5)), Plain(), (2, 8, 8))
    before = {k: v.clone() for k, v in learner.state_dict().items()}
    state = torch.get_rng_state()
    certify(learner)
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None for p in learner.parameters())
    assert all(v.dtype == before[k].dtype and torch.equal(v, before[k]) for k, v in learner.state_dict().items())
    assert not any(block._forward_hooks for block in learner.encoder.blocks)


def computed(x: Tensor) -> list[Tensor]:
    """Views, writing in place and into views, several outputs, random numbers, a backward pass, out=."""
    torch.manual_seed(3)
    y = x.clone()
    y[1:].mul_(2).add_(x[:-1])
    y.t()[0] = x[:, 1]
    value, place = y.max(1)
    noisy = torch.nn.functional.dropout(y, 0.5)
    out = torch.empty_like(y)
    torch.mul(noisy, y, out=out)
    leaf = out.detach().requires_grad_()
    (leaf.relu() @ y.T).square().sum().backward()
    assert leaf.grad is not None
    return [y, value, place, noisy, out, *torch.unbind(out), leaf.grad]


def test_worlds_are_what_a_run_there_would_be() -> None:
    here, there = torch.randn(4, 5, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    worlds = Worlds()
    worlds.put("there", here, there)
    with worlds, Leaks(worlds):
        found = computed(here)
    for one, other in zip(found, computed(there), strict=True):
        value = worlds.see("there", one)
        assert torch.equal(one.detach() if value is None else value, other.detach())
    assert not worlds.escaped


def test_only_numbers_that_matter_are_read() -> None:
    x = torch.randn(4, 5)
    worlds = Worlds()
    worlds.put("there", x, x + 1)
    with worlds:
        nothing = [torch.zeros_like(x), x.new_ones(3), x * 0, x - x, torch.ones(x.shape)]
        number = float(x[0, 0])
    assert all(worlds.see("there", t) is None for t in nothing)
    assert worlds.escaped
    assert number == float(x[0, 0])


def test_a_faint_mean_is_seen() -> None:
    assert certify(localssl.rules.get("ff", peer=0.03)).reasons == (BATCH,)


class Bare(nn.Module):
    """A block that calls no module: a linear layer without a derivative."""

    def __init__(self, c_in: int, c: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(c, c_in, 3, 3) / (9 * c_in) ** 0.5)

    @override
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.kernel, padding=1)


@pytest.mark.parametrize(("name", "reasons"), [("clapp++", ()), ("bp-clapp++", ABOVE)])
def test_blocks_without_modules(name: str, reasons: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    encoder = Encoder.from_blocks([Bare(2, 4), Bare(4, 5)])
    found = certify(Learner(encoder, localssl.rules.get(name), (2, 8, 8)))
    assert found.reasons == reasons
    assert {r.source for r in found.because(TRANSPORT)} == ({"W^2"} if reasons else set())


def test_reasons_are_known() -> None:
    assert set(certificate.REASONS) == {BATCH, ERROR, GRADIENT, INSIDE, LABELS, SYNAPSE, TRANSPORT}


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = Path(__file__).parents[1] / "examples" / "my_rule.py"
    out = tmp_path / "reads.csv"
    arguments = ["certify", "--rule", "clapp++dfb", "--rule", f"{own}:MyRule", "--out", str(out)]
    assert cli.main(arguments) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "MyRule │ not local │ batch statistics" in shown
    lines = out.read_text(encoding="utf-8").splitlines()
    assert lines[1] == ",".join(listing.LONG)
    assert any(line.startswith("clapp++dfb,1,encoder.blocks.0.0.weight,ΔW,feedback,z^3,2,,") for line in lines)
    assert any(line.startswith("MyRule,all,,,cost,") for line in lines)


def test_the_command_on_a_named_encoder(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["certify", "--rule", "clapp++", "--rule-options", "f=softplus", "--encoder", "mlp"]
    assert cli.main([*arguments, "--width", "0.02", "--image-size", "6"]) == 0
    assert "clapp++ │ local" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--rule", "clap"], "unknown rule 'clap'"),
        (["--rule", "clapp", "lpl", "--rule-options", "eps=1"], "--rule-options goes with one --rule"),
        (["--rule", "clapp", "--width", "2"], "--width and --image-size go with --encoder"),
        (["--rule", "clapp", "--encoder", "vgg7"], "unknown encoder 'vgg7'"),
        (["--rule", "clapp", "--encoder", "vgg6", "--image-size", "0"], "--image-size 0: use 1 or more"),
        (["--rule", "clapp", "--out", "/nowhere/x.csv"], "there is no folder /nowhere"),
    ],
)
def test_bad_input(arguments: list[str], found: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["certify", *arguments]) == 2
    error = capsys.readouterr().err
    assert found in error
    assert error.count("\n") == 1


def test_the_command_on_an_encoder_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It has widths of its own: none is asked of it that nobody typed."""
    file = tmp_path / "net.py"
    file.write_text(
        "from torch import nn\n\n\ndef net(input_shape):\n    return [nn.Sequential(nn.Flatten(), nn.Linear(48, 4))]\n"
    )
    arguments = ["certify", "--rule", "clapp++", "--encoder", f"{file}:net", "--image-size", "4"]
    assert cli.main(arguments) == 0
    assert "local" in capsys.readouterr().out
    assert cli.main([*arguments, "--width", "0.5"]) == 2
    assert "width" in capsys.readouterr().err
