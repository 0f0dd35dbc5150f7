"""Errors that come down through other weights than the forward ones: fixed random, sign-concordant, or straight down.

In all of them a block's own derivative (activation, pooling, norm) is exact, and the last block learns from its own
gradient. The graph that ``activities`` makes is cut before every block, so that ``Learner.losses(...).backward()``
reaches the last block alone; the whole update is that of ``accumulate_grads``.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from localssl.credit.base import Step
from localssl.credit.local import Local
from localssl.encoders import Encoder
from localssl.rules.base import Rule

Weighted = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear


class Feedback(nn.Module):
    """Backward weights, ``weight``; fixed unless ``learnt``."""

    def __init__(self, weight: Tensor, learnt: bool = False):
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=learnt)


class DirectFeedbackAlignment(Local):
    """The last readout's error goes straight to every layer: δ^l = F^l δ^L (Nøkland 2016).

    δ^L = dL/dz^L is the whole derivative, (N, d_L), what a sample gets in its several roles already summed. δ^l is the
    error of layer l's readout, (N, d_l): with a mean over positions every position gets 1/positions of it. F^l is
    (d_l, d_L), N(0, 1/d_L), fixed; part "direct".
    """

    @override
    def build(
        self, encoder: Encoder, rule: Rule, dims: Sequence[int], parts: Mapping[str, Sequence[nn.Module]]
    ) -> dict[str, list[nn.Module]]:
        return {"direct": [Feedback(torch.randn(d, dims[-1]) / math.sqrt(dims[-1])) for d in dims[:-1]]}

    @override
    def updates(self, step: Step) -> Iterator[Tensor]:
        batch = step.read(self.activities(step.encoder, step.x))
        losses = step.rule.losses(batch, step.projections)
        (top,) = torch.autograd.grad(losses.sum(), batch.z[-1], retain_graph=True)
        errors = [
            F.linear(top, matrix.weight).to(z.dtype)  # pyright: ignore[reportArgumentType]
            for z, matrix in zip(batch.z, step.projections["direct"], strict=False)
        ]
        told = [(z, e) for z, e in zip(batch.z, errors, strict=False) if z.requires_grad]  # not a black box's own block
        torch.autograd.backward([losses.sum(), *(z for z, _ in told)], [None, *(e for _, e in told)])
        yield losses.detach()


class FeedbackAlignment(Local):
    """Backpropagation whose way down leads through fixed random weights W_fb instead of W (Lillicrap et al. 2016).

    W_fb has the shape and PyTorch's default distribution of its forward weights, so that errors start at the size that
    backpropagation's have; part "backward", one for every convolution and linear layer in the order of the encoder's
    modules (that of the first layer is never used: nobody asks for the error of the images). Other modules' derivatives
    are exact.
    """

    crosses = True

    @override
    def build(
        self, encoder: Encoder, rule: Rule, dims: Sequence[int], parts: Mapping[str, Sequence[nn.Module]]
    ) -> dict[str, list[nn.Module]]:
        return {"backward": backward_weights(weighted(encoder))}

    def way(self, rule: Rule, forward: Tensor, feedback: Tensor) -> Tensor:
        """The weights that an error goes down through, for a layer's forward and backward ones."""
        return feedback

    @override
    def updates(self, step: Step) -> Iterator[Tensor]:
        modules = weighted(step.encoder)
        ways = [
            self.way(step.rule, module.weight.detach(), matrix.weight)  # pyright: ignore[reportArgumentType]
            for module, matrix in zip(modules, step.projections["backward"], strict=True)
        ]
        with rerouted(modules, ways):
            losses = step.losses(step.encoder(step.x))
        losses.sum().backward()
        yield losses.detach()


class SignSymmetric(FeedbackAlignment):
    """As ``FeedbackAlignment``, the backward weights with the signs of the present forward ones (Liao et al. 2016).

    sign(W) ∘ |W_fb| (their frSF: fixed random magnitudes), or sign(W) · mean|W_fb| of each layer where the rule's
    ``magnitudes`` is "uniform" (their uSF but for the scale).
    """

    @override
    def way(self, rule: Rule, forward: Tensor, feedback: Tensor) -> Tensor:
        size = feedback.abs()
        return forward.sign() * (size.mean() if getattr(rule, "magnitudes", "fixed") == "uniform" else size)


def weighted(encoder: Encoder) -> list[Weighted]:
    """The convolutions and linear layers of all blocks, in the order of the encoder's modules."""
    return [module for module in encoder.blocks.modules() if isinstance(module, Weighted)]


def backward_weights(modules: Iterable[Weighted], learnt: bool = False) -> list[nn.Module]:
    """Weights of the shapes of the forward ones, drawn as PyTorch draws those of a new layer."""
    found: list[nn.Module] = []
    for module in modules:
        weight = torch.empty(module.weight.shape)
        nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
        found.append(Feedback(weight, learnt))
    return found


@contextmanager
def rerouted(modules: Sequence[Weighted], ways: Sequence[Tensor]) -> Generator[None]:
    """Within, errors go down through ``ways``, one for each of the modules; values and own gradients stay.

    Every such layer sees its input cut off, for the gradient of its own weights; its output gets v − sg(v) on top,
    exactly zero, with v the same layer with other weights: that hands the error to its input.
    """
    inputs: dict[nn.Module, list[Tensor]] = {}

    def cut(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        inputs.setdefault(module, []).append(args[0])
        return (args[0].detach(), *args[1:])

    def join(way: Tensor) -> Any:
        def hook(module: Weighted, args: tuple[Any, ...], output: Tensor) -> Tensor:
            x = inputs[module].pop()
            if not x.requires_grad:  # the images
                return output
            value = F.linear(x, way) if isinstance(module, nn.Linear) else module._conv_forward(x, way, None)
            return output + (value - value.detach())

        return hook

    handles: list[Any] = []
    try:
        for module, way in zip(modules, ways, strict=True):
            handles += [module.register_forward_pre_hook(cut), module.register_forward_hook(join(way.detach()))]
        yield
    finally:
        for handle in handles:
            handle.remove()


CREDITS = {
    "direct-feedback-alignment": DirectFeedbackAlignment(),
    "feedback-alignment": FeedbackAlignment(),
    "sign-symmetric": SignSymmetric(),
}
