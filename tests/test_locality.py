"""No gradient crosses a block under a local rule: by construction, for every registered local rule, bit for bit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import localssl
from localssl.credit import CREDITS
from localssl.learner import Learner
from localssl.rules import ScoreRule

from .util import HeldOutput, N, small_learner, views

LOCAL = [name for name in localssl.rules.names() if localssl.rules.get(name).credit == "local"]
END_TO_END = [name for name in localssl.rules.names() if localssl.rules.get(name).credit == "backprop"]
WITH_SCORES = [name for name in localssl.rules.names() if isinstance(localssl.rules.get(name), ScoreRule)]
NETWORKS = ["vgg", "mlp"]
NEGATIVES = torch.tensor([4, 1, 1, 0, 5, 2])
LABELS = torch.arange(N)
LAYERS = 3


def run(learner: Learner) -> None:
    learner.zero_grad(set_to_none=True)
    dtype = next(learner.parameters()).dtype
    a, b = (view.to(dtype) for view in views())
    torch.manual_seed(0)  # for rules that draw
    learner.accumulate_grads(a, b, NEGATIVES, LABELS)


def last_output(learner: Learner) -> Tensor:
    a, b = (view.to(next(learner.parameters()).dtype) for view in views())
    torch.manual_seed(0)  # the samples of ``run``
    return learner.encoder(learner.enter(a, b, NEGATIVES, LABELS))[-1].detach()


def held(learner: Learner, output: Tensor) -> Learner:
    learner.encoder.blocks[-1] = HeldOutput(learner.encoder.blocks[-1], output)
    return learner


def gradients(learner: Learner, layer: int) -> dict[str, Tensor]:
    """The gradients of one layer: its block's and its projections'."""
    found = {f"block.{name}": p.grad for name, p in learner.encoder.blocks[layer].named_parameters()}
    for key, modules in learner.projections.items():
        found |= {f"{key}.{name}": p.grad for name, p in modules[layer].named_parameters() if p.requires_grad}
    assert all(grad is not None for grad in found.values())
    return {name: grad.clone() for name, grad in found.items() if grad is not None}


@torch.no_grad()
def disturb(learner: Learner, above: int) -> None:
    """New weights for every block above ``above`` and for its projections."""
    torch.manual_seed(99)
    parts = [*learner.encoder.blocks[above + 1 :]]
    for modules in learner.projections.values():
        parts += modules[above + 1 :]
    for part in parts:
        for parameter in part.parameters():
            parameter.add_(torch.randn_like(parameter))


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def build(name: str, network: str, dtype: torch.dtype = torch.float64) -> Learner:
    options = {"projection_dim": 6} if name == "bp-infonce" else {}
    return small_learner(network, localssl.rules.get(name, **options)).to(dtype)


def looks_up(name: str) -> bool:
    """Whether a rule takes a reference from another layer than its own."""
    references = getattr(localssl.rules.get(name), "references", {})
    return any(reference.source(layer, LAYERS) != layer for reference in references.values() for layer in range(LAYERS))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("layer", range(LAYERS - 1))
@pytest.mark.parametrize("name", LOCAL)
def test_nothing_above_a_block_matters_to_it(name: str, layer: int, network: str, dtype: torch.dtype) -> None:
    before = build(name, network, dtype)
    after = copy.deepcopy(before)
    disturb(after, layer)
    output = last_output(before)
    assert not torch.equal(output, last_output(after))
    if looks_up(name):
        before, after = held(before, output), held(after, output)
    run(before)
    run(after)
    for lower in range(layer + 1):
        assert same(gradients(before, lower), gradients(after, lower)), f"block {lower + 1} or its B changed"
    for upper in range(layer + 1, LAYERS):
        assert not same(gradients(before, upper), gradients(after, upper)), f"block {upper + 1} did not change"


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", LOCAL)
def test_middle_blocks_may_change_where_the_last_output_stays(name: str, network: str) -> None:
    """The same with no stand-in: block 2 doubled and block 3 halved leave z^3 as it is, to the last bit (ReLU)."""
    before = build(name, network)
    after = copy.deepcopy(before)
    with torch.no_grad():
        for parameter in after.encoder.blocks[1].parameters():
            parameter.mul_(2)
        weight, _ = after.encoder.blocks[2].parameters()
        weight.mul_(0.5)
        for modules in after.projections.values():
            modules[1].weight.add_(1.0)  # its loss changes in more than scale
    assert torch.equal(last_output(before), last_output(after))
    run(before)
    run(after)
    assert same(gradients(before, 0), gradients(after, 0))
    assert not same(gradients(before, 1), gradients(after, 1))


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", END_TO_END)
def test_the_same_construction_sees_backpropagation(name: str, network: str) -> None:
    """With the last output held or not, the end-to-end references' first gradient does depend on the blocks above."""
    for hold in (False, True):
        before = build(name, network)
        after = copy.deepcopy(before)
        with torch.no_grad():
            for parameter in after.encoder.blocks[1].parameters():
                parameter.add_(0.1)
        if hold:
            output = last_output(before)
            before, after = held(before, output), held(after, output)
        run(before)
        run(after)
        first, second = (
            {name: p.grad for name, p in learner.encoder.blocks[0].named_parameters() if p.grad is not None}
            for learner in (before, after)
        )
        assert first
        assert not same(first, second)


@pytest.mark.parametrize("name", LOCAL)
def test_the_construction_catches_a_leak(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Local credit that forgets to cut the graph fails the first test, held output or not."""
    monkeypatch.setitem(CREDITS, "local", CREDITS["backprop"])
    monkeypatch.setattr("localssl.engine.choice.refusal", lambda *_: "this test wants autograd")
    for hold in (False, True):
        before = build(name, "vgg")
        after = copy.deepcopy(before)
        disturb(after, 0)
        if hold:
            output = last_output(before)
            before, after = held(before, output), held(after, output)
        run(before)
        run(after)
        assert not same(gradients(before, 0), gradients(after, 0))


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("layer", range(LAYERS))
@pytest.mark.parametrize("name", LOCAL)
def test_a_loss_reaches_its_own_block_and_projections_only(name: str, layer: int, network: str) -> None:
    learner = build(name, network)
    learner.losses(*views(), NEGATIVES, LABELS)[layer].backward()
    for other in range(LAYERS):
        parameters = list(learner.encoder.blocks[other].parameters())
        for modules in learner.projections.values():
            parameters += [p for p in modules[other].parameters() if p.requires_grad]  # others are fixed
        for parameter in parameters:  # the losses are stacked, which may hand exact zeros to the other layers
            reached = parameter.grad is not None and bool(parameter.grad.any())
            assert reached == (other == layer), f"loss {layer + 1}, parameter of layer {other + 1}"


@pytest.mark.parametrize("name", LOCAL)
def test_a_layers_loss_is_connected_to_one_block(name: str) -> None:
    """The graph itself: seen from a loss summed alone, other blocks' parameters are not there at all."""
    learner = build(name, "vgg")
    batch = learner.batch(*views(), NEGATIVES, LABELS)
    for layer, z in enumerate(batch.z):
        for other, block in enumerate(learner.encoder.blocks):
            grads = torch.autograd.grad(z.sum(), list(block.parameters()), retain_graph=True, allow_unused=True)
            assert all((grad is not None) == (other == layer) for grad in grads)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", END_TO_END)
def test_end_to_end_losses_reach_every_block(name: str, network: str) -> None:
    learner = build(name, network)
    losses = learner.losses(*views(), NEGATIVES, LABELS)
    assert losses.shape == (1,)
    losses[0].backward()
    for block in learner.encoder.blocks:
        for parameter in block.parameters():
            assert parameter.grad is not None
            assert bool(parameter.grad.any())


@pytest.mark.parametrize("name", LOCAL)
def test_end_to_end_loss_of_a_local_rule(name: str) -> None:
    """The reference of alignment: the last loss's value, through all blocks."""
    learner = build(name, "vgg")
    torch.manual_seed(0)  # for rules that draw
    loss = learner.end_to_end_loss(*views(), NEGATIVES, LABELS)
    assert loss.shape == ()
    torch.manual_seed(0)
    assert loss.item() == learner.losses(*views(), NEGATIVES, LABELS)[-1].item()
    loss.backward()
    first = next(learner.encoder.blocks[0].parameters()).grad
    assert first is not None
    assert bool(first.any())


@pytest.mark.parametrize("name", WITH_SCORES)
def test_references_get_no_gradient(name: str) -> None:
    """dL/dz in closed form for f linear, z_pos and z_neg the only ways in; a reference would add (z_pos - z_neg) B."""
    rule = localssl.rules.get(name, f="linear")
    torch.manual_seed(2)
    z = [torch.randn(2 * N, d, dtype=torch.float64, requires_grad=True) for d in (5, 4, 3)]
    parts = rule.build([5, 4, 3])
    projections = nn.ModuleDict({key: nn.ModuleList(modules) for key, modules in parts.items()}).double()
    losses = rule.losses(localssl.rules.Batch(z, NEGATIVES), projections)
    partner = torch.cat((torch.arange(N, 2 * N), torch.arange(N)))
    layers = list(range(LAYERS)) if rule.per_layer else [LAYERS - 1]
    for i, layer in enumerate(layers):
        grads = torch.autograd.grad(losses[i], z, retain_graph=True, allow_unused=True)
        expected = torch.zeros_like(z[layer])
        for key, reference in rule.references.items():  # type: ignore[attr-defined]
            g = z[reference.source(layer, LAYERS)].detach() @ projections[key][i].weight.detach().T
            for sample in range(2 * N):
                expected[partner[sample]] -= g[sample] / (2 * N)
                expected[partner[NEGATIVES[sample]]] += g[sample] / (2 * N)
        for other, grad in enumerate(grads):
            if other == layer:
                torch.testing.assert_close(grad, expected, rtol=1e-12, atol=1e-14)
            else:
                assert grad is None or not grad.any(), f"loss {layer + 1} reaches the reference, layer {other + 1}"


def test_views_get_no_gradient() -> None:
    for name in LOCAL:
        a, b = (view.requires_grad_() for view in views())
        learner = build(name, "vgg")
        losses = learner.losses(a, b, NEGATIVES, LABELS)
        grads = torch.autograd.grad(losses[1:].sum(), [a, b], allow_unused=True)
        assert all(grad is None or not grad.any() for grad in grads), name
