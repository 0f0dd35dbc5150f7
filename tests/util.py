"""Helpers of the tests: comparisons that report ratios, small networks, and the way from an Encoder to the oracle."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

import localssl
from localssl import encoders, oracle
from localssl.encoders import Encoder
from localssl.errors import UsageError
from localssl.learner import Learner

SHAPE = (2, 8, 8)  # images of the small networks
N = 3  # images in a batch
PATCHES: dict[str, tuple[int, ...] | None] = {
    "vgg": (4, 2, 1),  # on maps of 4, 4, 2
    "flat": (8, 2, 4),  # on maps of 8, 8, 8; the last map has several patches in both, or spatial would be pooled
    "mlp": None,
}

SCORE_RULES: dict[str, tuple[str, dict[str, Any]]] = {  # case: rule name, its options
    "clapp": ("clapp", {}),
    "clapp++": ("clapp++", {}),
    "clapp++dfb": ("clapp++dfb", {}),
    "clapp++both": ("clapp++both", {}),
    "optimum": ("optimum", {}),
    "bp-clapp++": ("bp-clapp++", {}),
    "bp-clapp++spatial": ("bp-clapp++", {"spatial": True}),
}


def assert_close_report(actual: ArrayLike, expected: ArrayLike, rtol: float = 1e-10, what: str = "") -> None:
    """Fail unless |actual - expected| <= rtol · max|expected| everywhere; say where, both values and their ratio.

    A ratio of 2, of the batch size or of -1 names the mistake. Against zeros, nothing above 1e-15 passes.
    """
    got, want = np.asarray(actual, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    assert got.shape == want.shape, f"{what}: shape {got.shape}, expected {want.shape}"
    if got.size == 0:
        return
    bound = max(rtol * float(np.abs(want).max()), 1e-15)
    wrong = ~(np.abs(got - want) <= bound)  # a NaN is wrong
    if not wrong.any():
        return
    lines = [f"{what}: {int(wrong.sum())} of {got.size} differ by more than {bound:.2g}"]
    for index in np.argwhere(wrong)[:5]:
        at = tuple(int(i) for i in index)
        ratio = got[at] / want[at] if want[at] else np.inf
        lines.append(f"  at {at}: {got[at]:.15g}, expected {want[at]:.15g}, ratio {ratio:.9g}")
    raise AssertionError("\n".join(lines))


def numpy(tensor: Tensor) -> NDArray[np.float64]:
    """A float64 copy outside the graph."""
    return np.array(tensor.detach().double().numpy())


def to_oracle(encoder: Encoder) -> list[oracle.ConvBlock | oracle.LinearBlock]:
    """The weights of an encoder's blocks as the oracle takes them."""
    blocks: list[oracle.ConvBlock | oracle.LinearBlock] = []
    for block in encoder.blocks:
        (layer,) = weighted(block)
        weight = numpy(layer.weight)
        bias = None if layer.bias is None else numpy(layer.bias)
        if isinstance(layer, nn.Conv2d):
            blocks.append(oracle.ConvBlock(weight, bias, any(isinstance(m, nn.MaxPool2d) for m in block.modules())))
        else:
            blocks.append(oracle.LinearBlock(weight, bias))
    return blocks


def weighted(block: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    """The convolutions and linear layers of a block."""
    return [m for m in block.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


def small_encoder(name: str, shape: Sequence[int] = SHAPE) -> Encoder:
    """Three blocks, float64: "vgg" (pools), "flat" (no pools), "mlp"; unequal widths, so that no transpose passes."""
    if name == "mlp":
        return encoders.mlp(math.prod(shape), widths=(7, 5, 4)).double()
    pools = (True, False, True) if name == "vgg" else (False, False, False)
    channels = (SHAPE[0], 4, 5, 3)
    blocks = [encoders.conv_block(channels[i], channels[i + 1], pool) for i, pool in enumerate(pools)]
    return Encoder.from_blocks(blocks).double()


def small_learner(name: str, rule: localssl.rules.Rule, seed: int = 0) -> Learner:
    """A small network under a rule, with projections so large that scores fall on both sides of the margin."""
    torch.manual_seed(seed)
    learner = Learner(small_encoder(name, rule.inputs().shape(SHAPE)), rule, SHAPE, PATCHES[name])
    with torch.no_grad():
        for parameter in learner.encoder.parameters():
            parameter.mul_(1.5)
        z = learner.batch(*views(seed), labels=torch.arange(N)).z
        for key, modules in learner.projections.items():
            for layer, module in enumerate(modules):
                own = z[layer] if len(modules) == len(z) else z[-1]
                if key in ("lateral", "feedback"):
                    nn.init.normal_(module.weight)
                    scores = own @ module.weight @ (z[-1] if key == "feedback" else own).T
                    module.weight.mul_(2 / scores.square().mean().sqrt())
    return learner


def views(seed: int = 0, n: int = N, shape: Sequence[int] = SHAPE) -> tuple[Tensor, Tensor]:
    """Two views that share an image each."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(n, *shape, generator=generator, dtype=torch.float64)
    a, b = (image + 0.3 * torch.randn(n, *shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return a, b


def run_oracle(
    learner: Learner, rule_name: str, a: Tensor, b: Tensor, negatives: Tensor | None, **options: Any
) -> oracle.Result:
    """The oracle's answer for a learner's weights; ``patches`` are the learner's as the small networks were given."""
    projections = {key: [numpy(m.weight) for m in modules] for key, modules in learner.projections.items()}
    given = None if negatives is None else negatives.numpy()
    return oracle.reference(rule_name, to_oracle(learner.encoder), projections, a.numpy(), b.numpy(), given, **options)


def compare(
    learner: Learner,
    expected: oracle.Result,
    a: Tensor,
    b: Tensor,
    negatives: Tensor | None,
    rtol: float = 1e-10,
    labels: Tensor | None = None,
) -> None:
    """Losses and every gradient of one batch against the oracle's, to ``rtol`` of the largest entry."""
    learner.zero_grad(set_to_none=True)
    losses = learner.accumulate_grads(a, b, negatives, labels)
    assert_close_report(losses, expected.losses, rtol, "losses")
    for i, (block, grads) in enumerate(zip(learner.encoder.blocks, expected.block_grads, strict=True), start=1):
        (layer,) = weighted(block)
        for kind in ("weight", "bias"):
            parameter = getattr(layer, kind)
            assert (parameter is not None) == (kind in grads), f"block {i} {kind}"
            if parameter is not None:
                assert_close_report(numpy(parameter.grad), grads[kind], rtol, f"block {i} {kind}")
    trained = {key for key, parts in learner.projections.items() if any(p.requires_grad for p in parts.parameters())}
    assert trained == set(expected.projection_grads)
    for key, grads in expected.projection_grads.items():
        for i, (module, grad) in enumerate(zip(learner.projections[key], grads, strict=True), start=1):
            assert_close_report(numpy(module.weight.grad), grad, rtol, f"projection {key} {i}")


def usage_error(match: str) -> Any:
    """A ``UsageError`` of one line that matches."""
    return pytest.raises(UsageError, match=rf"^(?=[^\n]*{match})[^\n]+$")


def assert_derivative(parameters: Sequence[Tensor], gradients: Sequence[Any], loss: Callable[[], float]) -> None:
    """The difference quotient of a loss along a random direction is what the gradients say."""
    directions = [torch.randn_like(p) for p in parameters]
    ends: list[float] = []
    for step in (1e-6, -1e-6):
        with torch.no_grad():
            for p, v in zip(parameters, directions, strict=True):
                p.add_(v, alpha=step)
            ends.append(loss())
            for p, v in zip(parameters, directions, strict=True):
                p.sub_(v, alpha=step)
    along = sum(float((torch.as_tensor(g) * v).sum()) for g, v in zip(gradients, directions, strict=True))
    assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(along, rel=1e-5)


class HeldOutput(nn.Module):
    """A block whose output is held at a value while its graph stays whole: held + (z - z), and z - z is exactly 0.

    It holds the reference of a feedback rule fixed while everything above a block changes. A gradient that leaked down
    from the last layer's loss would still pass, through the changed weights.
    """

    def __init__(self, block: nn.Module, held: Tensor) -> None:
        super().__init__()
        self.block, self.held = block, held

    def forward(self, x: Tensor) -> Tensor:
        z = self.block(x)
        return self.held + (z - z.detach())
