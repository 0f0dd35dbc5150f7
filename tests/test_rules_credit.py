"""dfa, fa, sign-symmetric, pc and ipc: against their oracles, by their formulas, and in their limits."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import localssl
from localssl import alignment, readout
from localssl.credit.feedback_alignment import backward_weights, rerouted, weighted
from localssl.encoders import Encoder
from localssl.learner import Learner
from localssl.rules import Batch, Projections, Rule
from localssl.rules.bp_clapp_pp import BpClappPP
from localssl.rules.predictive_coding import IncrementalPredictiveCoding, PredictiveCoding

from .train_util import run_tiny
from .util import (
    PATCHES,
    SHAPE,
    HeldOutput,
    N,
    compare,
    run_oracle,
    small_encoder,
    small_learner,
    usage_error,
    views,
)

NEGATIVES = torch.tensor([4, 1, 1, 0, 5, 2])
LABELS = torch.tensor([3, 1, 3])
FEEDBACK: dict[str, tuple[str, dict[str, Any]]] = {
    "dfa": ("dfa", {}),
    "dfa per position": ("dfa", {"per_position": True, "spatial": True}),
    "fa": ("fa", {"f": "softplus"}),
    "fa spatial": ("fa", {"spatial": True, "loss_type": 1}),
    "sign-symmetric": ("sign-symmetric", {}),
    "uniform": ("sign-symmetric", {"magnitudes": "uniform", "margin": 2.0}),
}
CODING: dict[str, tuple[str, dict[str, Any]]] = {
    "pc": ("pc", {}),
    "ipc": ("ipc", {}),
    "pc lpl": ("pc", {"objective": "lpl", "steps": 3, "eta_h": 0.3}),
    "ipc lpl": ("ipc", {"objective": "lpl", "momentum": 0.0}),
    "pc ce": ("pc", {"objective": "ce", "classes": 5}),
    "ipc ce": ("ipc", {"objective": "ce", "eta_h": 0.05}),
    "pc learnt": ("pc", {"learnt_feedback": True}),
    "ipc learnt": ("ipc", {"learnt_feedback": True, "objective": "ce", "steps": 4}),
    "pc learnt ce": ("pc", {"learnt_feedback": True, "objective": "ce"}),
}
ALL = FEEDBACK | CODING


def gradients(learner: Learner) -> list[dict[str, Tensor]]:
    """Every block's gradients, zeros where there is none."""
    return [
        {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in block.named_parameters()}
        for block in learner.encoder.blocks
    ]


def of_backprop(learner: Learner, rule: Rule) -> list[dict[str, Tensor]]:
    """The end-to-end gradients of another rule's loss with the same parts."""
    reference = Learner(learner.encoder, rule, SHAPE, learner.patches).double()
    for key, modules in reference.projections.items():
        modules.load_state_dict(learner.projections[key].state_dict())
    learner.zero_grad(set_to_none=True)
    reference.accumulate_grads(*views(), NEGATIVES, LABELS)
    found = gradients(learner)
    learner.zero_grad(set_to_none=True)
    return found


# ------------------------------------------------------------------------------------------------------------- oracles


@pytest.mark.parametrize("network", PATCHES)
@pytest.mark.parametrize("case", ALL)
def test_equals_oracle(case: str, network: str) -> None:
    name, options = ALL[case]
    learner = small_learner(network, localssl.rules.get(name, **options))
    a, b = views()
    for negatives in (None, NEGATIVES):
        expected = run_oracle(learner, name, a, b, negatives, patches=PATCHES[network], labels=LABELS, **options)
        compare(learner, expected, a, b, negatives, labels=LABELS)
    assert all(bool(g.any()) for block in gradients(learner) for g in block.values())


@pytest.mark.parametrize("case", ["fa", "pc learnt"])
def test_no_bias_odd_maps_and_a_linear_block_on_top(case: str) -> None:
    torch.manual_seed(1)
    blocks = [
        nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, bias=False), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()),
        nn.Sequential(nn.Flatten(), nn.Linear(4 * 4 * 6, 5, bias=False), nn.ReLU()),
    ]
    name, options = ALL[case]
    learner = Learner(Encoder.from_blocks(blocks).double(), localssl.rules.get(name, **options), (2, 8, 13))
    a, b = views(shape=(2, 8, 13))
    compare(learner, run_oracle(learner, name, a, b, None, **options), a, b, None)


# ------------------------------------------------------------------------------------------------- feedback alignment


@pytest.mark.parametrize("network", PATCHES)
@pytest.mark.parametrize("per_position", [False, True])
def test_dfa_is_the_papers_formula(network: str, per_position: bool) -> None:
    """dW^l = γ^L (F^l B^L c^L) ρ'(a^l) z^(l-1), summed over samples and roles, by every block's Jacobian."""
    learner = small_learner(network, localssl.rules.get("dfa", per_position=per_position))
    a, b = views()
    learner.accumulate_grads(a, b, NEGATIVES)
    z = learner.encoder(torch.cat((a, b)))
    top = readout.readout(z[-1], learner.patches[-1]).detach()
    g = top @ learner.projections["lateral"][0].weight.T
    partner = torch.cat((torch.arange(N, 2 * N), torch.arange(N)))
    error = torch.zeros_like(top)
    for i in range(2 * N):
        pos, neg = partner[i], partner[NEGATIVES[i]]
        error[pos] -= float(top[pos] @ g[i] < 1) * g[i] / (2 * N)
        error[neg] += float(top[neg] @ g[i] > -1) * g[i] / (2 * N)
    for layer in (0, 1):
        out = learner.encoder.blocks[layer](z[layer - 1].detach() if layer else torch.cat((a, b)))
        own = error @ learner.projections["direct"][layer].weight.T
        if out.ndim == 4:
            own = own.view_as(out) if per_position else own[:, :, None, None].expand_as(out) / out[0, 0].numel()
        parameters = list(learner.encoder.blocks[layer].parameters())
        for p, grad in zip(parameters, torch.autograd.grad(out, parameters, own), strict=True):
            torch.testing.assert_close(p.grad, grad, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", ["dfa", "fa", "sign-symmetric"])
@pytest.mark.parametrize("network", PATCHES)
def test_the_last_block_and_its_projection_learn_by_backpropagation(name: str, network: str) -> None:
    learner = small_learner(network, localssl.rules.get(name, f="softplus"))
    expected = of_backprop(learner, BpClappPP(f="softplus"))
    losses = learner.accumulate_grads(*views(), NEGATIVES)
    assert torch.equal(losses, learner.losses(*views(), NEGATIVES))
    found = gradients(learner)
    for kind, value in found[-1].items():
        torch.testing.assert_close(value, expected[-1][kind], rtol=1e-12, atol=1e-15)
    kind = next(kind for kind in found[0] if kind.endswith("weight"))
    assert F.cosine_similarity(found[0][kind].flatten(), expected[0][kind].flatten(), dim=0) < 0.999


def assert_backprop_through_forward_weights(learner: Learner) -> None:
    """With the forward weights for the backward ones, fa's update is backpropagation's."""
    with torch.no_grad():
        for module, part in zip(weighted(learner.encoder), learner.projections["backward"], strict=True):
            part.weight.copy_(module.weight)
    expected = of_backprop(learner, BpClappPP())
    learner.accumulate_grads(*views(), NEGATIVES)
    for block, wanted in zip(gradients(learner), expected, strict=True):
        for kind, value in block.items():
            torch.testing.assert_close(value, wanted[kind], rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("network", PATCHES)
def test_fa_through_the_forward_weights_is_backpropagation(network: str) -> None:
    learner = small_learner(network, localssl.rules.get("fa"))
    assert_backprop_through_forward_weights(learner)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("network", PATCHES)
def test_rerouted_values_are_the_same_to_the_last_bit_and_hooks_go(network: str, dtype: torch.dtype) -> None:
    encoder = small_encoder(network).to(dtype)
    x = torch.cat(views()).to(dtype)
    plain = encoder(x)
    ways = [m.weight.to(dtype) for m in backward_weights(weighted(encoder))]  # type: ignore[union-attr]
    with rerouted(weighted(encoder), ways):
        other = encoder(x)
    assert all(torch.equal(p, o) for p, o in zip(plain, other, strict=True))
    with pytest.raises(ZeroDivisionError), rerouted(weighted(encoder), ways):
        raise ZeroDivisionError
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in encoder.modules())


def test_residual_and_other_blocks_and_padding_modes() -> None:
    """A block with a shortcut and a norm: the convolutions are rerouted, all else keeps its derivative."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect")
            self.norm = nn.GroupNorm(1, 3)

        def forward(self, x: Tensor) -> Tensor:
            return x + torch.relu(self.norm(self.conv(x)))

    torch.manual_seed(0)
    encoder = Encoder.from_blocks([nn.Conv2d(2, 3, 3, stride=2, groups=1), Residual(), Residual()]).double()
    learner = Learner(encoder, localssl.rules.get("fa"), SHAPE)
    assert_backprop_through_forward_weights(learner)


def test_backward_weights_are_fixed_and_signs_are_not() -> None:
    learner = small_learner("vgg", localssl.rules.get("sign-symmetric"))
    before = [part.weight.clone() for part in learner.projections["backward"]]
    optimizer = torch.optim.AdamW(learner.parameters(), lr=0.1, weight_decay=0.1)
    learner.accumulate_grads(*views())
    first = gradients(learner)
    optimizer.step()
    assert all(torch.equal(p.weight, old) for p, old in zip(learner.projections["backward"], before, strict=True))
    with torch.no_grad():  # the same network with one sign turned in the last block: block 1 hears of it
        weight = weighted(learner.encoder)[2].weight
        weight[:, 0].neg_()
    learner.zero_grad(set_to_none=True)
    learner.accumulate_grads(*views())
    assert not torch.equal(gradients(learner)[0]["0.weight"], first[0]["0.weight"])


@pytest.mark.parametrize("name", ["dfa", "fa", "sign-symmetric", "bp-clapp++"])
def test_feedback_does_not_hear_of_forward_weights(name: str) -> None:
    """Blocks above scaled so that every gate and sign stays, the last output held: only bp's block 1 hears of it.

    dfa hears of no gate either: any weights above will do.
    """
    found = []
    for scale in (1, 4):
        learner = small_learner("vgg", localssl.rules.get(name))
        value = learner.encoder(torch.cat(views()))[-1].detach()
        with torch.no_grad():
            for parameter in learner.encoder.blocks[1].parameters():
                parameter.mul_(scale)
            weighted(learner.encoder)[2].weight.div_(scale)  # the same drive of block 3
            for parameter in learner.encoder.blocks[2].parameters():
                parameter.mul_(scale)
            if name == "dfa" and scale > 1:
                for block in learner.encoder.blocks[1:]:
                    for parameter in block.parameters():
                        parameter.add_(torch.randn_like(parameter))
        learner.encoder.blocks[-1] = HeldOutput(learner.encoder.blocks[-1], value)
        learner.accumulate_grads(*views(), NEGATIVES)
        found.append(gradients(learner)[0]["0.weight"])
    assert torch.equal(found[0], found[1]) == (name != "bp-clapp++")
    assert found[0].any()


# --------------------------------------------------------------------------------------------------- predictive coding


@dataclasses.dataclass(frozen=True, kw_only=True)
class Nudged(PredictiveCoding):
    """pc with its loss times beta."""

    beta: float = 1.0

    def losses(self, batch: Batch, projections: Projections) -> Tensor:
        return self.beta * super().losses(batch, projections)


@pytest.mark.parametrize("network", ["vgg", "mlp"])
@pytest.mark.parametrize("objective", ["clapp", "lpl", "ce"])
def test_pc_becomes_backpropagation_as_the_nudge_goes_to_zero(objective: str, network: str) -> None:
    """At the states' equilibrium dF/dW / beta = dL/dW + O(beta) (Whittington & Bogacz 2017)."""
    errors = []
    for beta in (1e-3, 1e-4):
        learner = small_learner(network, Nudged(objective=objective, steps=400, eta_h=0.2, beta=beta))
        expected = of_backprop(learner, learner.rule.end_to_end)  # type: ignore[attr-defined]
        learner.accumulate_grads(*views(), NEGATIVES, LABELS)
        found = gradients(learner)
        worst = 0.0
        for block, wanted in zip(found, expected, strict=True):
            for kind, value in block.items():
                worst = max(worst, ((value / beta - wanted[kind]).norm() / wanted[kind].norm()).item())
        errors.append(worst)
    assert errors[1] < 2e-2
    assert errors[1] < 0.2 * errors[0]


@pytest.mark.parametrize("eta_h", [1.0, 0.1])
@pytest.mark.parametrize("network", PATCHES)
@pytest.mark.parametrize("objective", ["clapp", "lpl", "ce"])
def test_ipc_first_gradients_are_backpropagations(objective: str, network: str, eta_h: float) -> None:
    """Weights held, block l's first gradient comes at step L - l and is eta_h^(L - l) times backpropagation's.

    At eta_h = 1 that is Song et al. 2020's exact equality (Z-IL). And with T steps only the top T blocks learn.
    """
    learner = small_learner(network, IncrementalPredictiveCoding(objective=objective, steps=3, eta_h=eta_h))
    expected = of_backprop(learner, learner.rule.end_to_end)  # type: ignore[attr-defined]
    for t, _ in enumerate(learner.updates(*views(), NEGATIVES, LABELS)):
        found = gradients(learner)
        for block in range(2 - t):
            assert not any(bool(value.any()) for value in found[block].values())
        for kind, value in found[2 - t].items():
            torch.testing.assert_close(value / eta_h**t, expected[2 - t][kind], rtol=1e-9, atol=1e-13)
        learner.zero_grad(set_to_none=True)


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("name", ["pc", "ipc"])
def test_few_steps_train_only_the_top_blocks(name: str, steps: int) -> None:
    learner = small_learner("vgg", localssl.rules.get(name, steps=steps))
    learner.accumulate_grads(*views())
    alive = [any(bool(g.any()) for g in block.values()) for block in gradients(learner)]
    reached = steps if name == "ipc" else steps + 1  # pc's weights move after its last step, ipc's before
    assert alive == [block >= 3 - reached for block in range(3)]


def test_labels_are_needed_by_the_supervised_objective_alone() -> None:
    assert localssl.rules.get("pc", objective="ce").uses_labels
    assert not localssl.rules.get("pc").uses_labels
    assert localssl.rules.get("pc").uses_negatives
    assert not localssl.rules.get("ipc", objective="lpl").uses_negatives
    learner = small_learner("mlp", localssl.rules.get("ipc", objective="ce"))
    with usage_error("supervised"):
        learner.accumulate_grads(*views())
    assert set(learner.projections) == {"head"}
    assert small_learner("mlp", localssl.rules.get("ipc", objective="lpl")).accumulate_grads(*views()).isfinite().all()


# --------------------------------------------------------------------------------------------------- options and runs


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("sign-symmetric", {"magnitudes": "some"}, "magnitudes"),
        ("dfa", {"f": "square"}, "square"),
        ("pc", {"objective": "infonce"}, "objective"),
        ("pc", {"steps": 0}, "steps"),
        ("ipc", {"steps": 2.5}, "steps"),
        ("pc", {"eta_h": 0.0}, "eta_h"),
        ("pc", {"eta_h": "big"}, "eta_h"),
        ("ipc", {"momentum": 1.0}, "momentum"),
        ("pc", {"classes": 0}, "classes"),
    ],
)
def test_options_are_refused(name: str, options: dict[str, Any], match: str) -> None:
    with usage_error(match):
        localssl.rules.get(name, **options)


def test_predictive_coding_takes_rules_of_its_kind() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Other(BpClappPP):
        credit = "predictive-coding"

    with usage_error("PredictiveCoding"):
        Learner(small_encoder("mlp"), Other(), SHAPE)


@pytest.mark.parametrize("case", ["dfa", "fa", "sign-symmetric", "pc", "ipc ce", "pc learnt", "ipc learnt"])
def test_trains_and_aligns(case: str, tmp_path: Path) -> None:
    name, options = ALL[case]
    typed = tuple(f"{key}={str(value).lower()}" for key, value in options.items())
    run = run_tiny(tmp_path / "run", rule=name, rule_options=typed)
    learner, step = run.trained_learner()
    assert step == 8
    start = run.learner()
    for block, old in zip(learner.encoder.blocks, start.encoder.blocks, strict=True):
        for p, q in zip(block.parameters(), old.parameters(), strict=True):
            assert not torch.equal(p, q)
    fixed = [p for p in learner.projections.parameters() if not p.requires_grad]
    was = [p for p in start.projections.parameters() if not p.requires_grad]
    assert all(torch.equal(p, q) for p, q in zip(fixed, was, strict=True))
    images = run.images("train", limit=32)
    labels = images.labels
    pair = (*run.views()(images.batch(torch.arange(16))), None, None if labels is None else labels[:16])
    rows = alignment.measure(learner.encoder, learner, [pair, pair])
    cosines = [r.mean for r in rows if r.quantity == "cosine" and r.parameter == "weights"]
    assert len(cosines) == 5
    if name != "ipc":  # its update sums over steps and states
        assert cosines[-1] > 0.9
