"""The optimum of Definition 3.4, trained: every B descends the distance between its error and backpropagation's.

It reads the backpropagated error, so nothing about it is local: it shows how good a local rule of this form could be.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from typing_extensions import override

from localssl.credit.base import Step
from localssl.credit.local import Local
from localssl.optimizer import add_grad


class Optimum(Local):
    """The losses are those of local credit, the update is not.

    With e^l(B) = dL_fb^l/dz^l and t^l = dL/dz^l of the last layer's loss, per block l < L: W^l gets the gradient of its
    own block at e^l, B^l that of 2n Σ_j |e_j^l(B) − t_j^l|² (e and t are means over 2n samples; the factor makes it the
    mean of one sample's squared distance). The last block and its B learn from L itself.
    """

    crosses = True

    @override
    def updates(self, step: Step) -> Iterator[Tensor]:
        z: list[Tensor] = step.encoder(step.x)
        losses = step.losses(z)
        targets = torch.autograd.grad(losses[-1], z, retain_graph=True)
        errors = [
            torch.autograd.grad(loss, h, create_graph=True)[0]  # up to its own block, whose output is h, and no further
            for loss, h in zip(losses[:-1], z, strict=False)
        ]
        samples = len(z[0])
        for layer, (error, target) in enumerate(zip(errors, targets, strict=False)):
            distance = samples * (error - target.detach()).square().sum()
            _add([p for modules in step.projections.values() for p in modules[layer].parameters()], distance)
            _add(list(step.encoder.blocks[layer].parameters()), z[layer], error.detach())
        last = [step.encoder.blocks[-1], *(modules[-1] for modules in step.projections.values())]
        _add([p for module in last for p in module.parameters()], losses[-1])
        yield losses.detach()


def _add(parameters: Sequence[Tensor], output: Tensor, error: Tensor | None = None) -> None:
    wanted = [p for p in parameters if p.requires_grad]
    found = torch.autograd.grad(output, wanted, error, retain_graph=True, allow_unused=True) if wanted else ()
    for p, g in zip(wanted, found, strict=True):
        if g is not None:
            add_grad(p, g)


CREDITS = {"optimum": Optimum()}
