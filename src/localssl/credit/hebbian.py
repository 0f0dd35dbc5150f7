"""Hebbian credit: every weight changes by what stands on its two sides; no loss is differentiated."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from typing_extensions import override

from localssl.credit.base import Step
from localssl.credit.local import Local
from localssl.encoders import run_block
from localssl.errors import UsageError
from localssl.optimizer import add_grad
from localssl.rules.softhebb import HebbianRule


class Hebbian(Local):
    """Block by block ΔW = r · D / max|D|, D = Σ y (x - u w) over samples and positions; .grad gets -ΔW, biases get 0.

    x: what enters the block's one convolution or linear layer, u: what leaves it, without the bias. y and r are the
    rule's.
    """

    @override
    def updates(self, step: Step) -> Iterator[Tensor]:
        rule = step.rule
        assert isinstance(rule, HebbianRule)
        x, outputs = step.x, list[Tensor]()
        for number, block in enumerate(step.encoder.blocks, start=1):
            layer = weighted(block, number)
            drives: list[Tensor] = []
            handle = layer.register_forward_hook(lambda *call, into=drives: into.append(call[2]))
            try:
                x = run_block(block, x.detach(), number)
            finally:
                handle.remove()
            outputs.append(x.detach())
            if layer.weight.requires_grad:
                _add(rule, number - 1, layer, drives[0])
        with torch.no_grad():
            losses = step.losses(outputs)
        yield losses


def weighted(block: nn.Module, number: int) -> nn.Conv2d | nn.Linear:
    """The block's one layer with weights.

    Raises:
        UsageError: it has none, or several.
    """
    found = [m for m in block.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    if len(found) != 1:
        raise UsageError(f"block {number} has {len(found)} convolutions or linear layers; a Hebbian rule needs one")
    return found[0]


def _add(rule: HebbianRule, index: int, layer: nn.Conv2d | nn.Linear, drive: Tensor) -> None:
    weight, bias = layer.weight, layer.bias
    shape = (-1, *[1] * (drive.ndim - 2))
    with torch.no_grad():
        u = drive if bias is None else drive - bias.view(shape)  # pyright: ignore[reportUnnecessaryComparison]
        y = rule.activity(u, index)
        yu = (y * u).transpose(0, 1).flatten(1).sum(1)
    (yx,) = torch.autograd.grad(drive, weight, y)  # u is linear in W: its derivative along y is Σ y x
    with torch.no_grad():
        rows = (-1, *[1] * (weight.ndim - 1))
        change = yx - yu.view(rows) * weight
        change /= change.abs().max() + 1e-30
        change *= rule.rate(weight.flatten(1).norm(dim=1), index).view(rows)
        add_grad(weight, -change)
        if bias is not None and bias.requires_grad and bias.grad is None:  # pyright: ignore[reportUnnecessaryComparison]
            bias.grad = torch.zeros_like(bias)


CREDITS = {"hebbian": Hebbian()}
