"""Pairs of images (SCFF), noisy copies of one (Stochastic FF), one view alone (SoftHebb)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from typing_extensions import override

from localssl.encoders.layers import Standardise, standardised_pair
from localssl.errors import UsageError
from localssl.inputs.base import Inputs


@dataclass(frozen=True)
class Pairs(Inputs):
    """n positive pairs, then n negative ones (Chen et al. 2025), each as the mean of its two halves.

    Positive: image i beside itself; negative: image i beside image (i + s) mod n, one s uniform in 1..n-1 a batch. The
    source sends both halves l and r through one kernel, a = W*l + W*r + 2b = 2 (W*(l + r)/2 + b): the block is linear
    up to its drive, so the mean may enter in place of the pair, and an image by itself stands for (x, x). The factor 2
    is the rule's business. The halves come standardised by themselves (encoder option ``paired``).

    The source then pads a pair by reflection and standardises it once more, over both halves and what is padded. With
    ``pad`` that is done here, see ``layers.standardised_pair``. Without padding it multiplies all images by the same
    sqrt((2D - 1)/(2D - 2)), D numbers an image, and is left out; where a block pads with zeros the source says nothing.

    Args:
        halves: "same": both halves come from view a (the source on CIFAR-10 and STL-10), view b is not used; "views":
            the left half from view a, the right one from view b (the source on MNIST).
        pad: width of the reflecting padding in front of the first block; 0: it has none.
    """

    halves: str = "same"
    pad: int = 0

    @override
    def shape(self, input_shape: Sequence[int]) -> tuple[int, ...]:
        if self.pad and (len(input_shape) != 3 or self.pad >= min(input_shape[1:])):
            raise UsageError(f"pad={self.pad} needs images larger than that, got {tuple(input_shape)}; leave it out")
        return tuple(input_shape)

    @override
    def __call__(
        self, view_a: Tensor, view_b: Tensor, negatives: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        left, right = view_a, view_a if self.halves == "same" else view_b
        shift = int(torch.randint(1, len(left), ()))
        if self.pad == 0:
            return torch.cat((left + right, left + right.roll(-shift, 0))) / 2
        left, right = Standardise()(left), Standardise()(right)  # of what the encoder's entry made of them: the images'
        return torch.cat([standardised_pair(left, r, self.pad) for r in (right, right.roll(-shift, 0))])


@dataclass(frozen=True)
class NoisyCopies(Inputs):
    """Copies of view a under dropout (Zhu et al. 2025), copy by copy: (copies * n, ...), image b's are b, n + b, ….

    The source batch-normalises images before it makes them noisy (encoder option ``paired``). View b is not used. The
    probe sees images without noise.

    Args:
        copies: of each image, two or more.
        dropout: probability that a number of the image is set to 0, the others being divided by 1 - dropout.
    """

    copies: int = 4
    dropout: float = 0.2

    @override
    def __call__(
        self, view_a: Tensor, view_b: Tensor, negatives: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        return nn.functional.dropout(view_a.repeat(self.copies, *[1] * (view_a.ndim - 1)), self.dropout)


@dataclass(frozen=True)
class Single(Inputs):
    """View a alone, (n, ...): for rules that compare nothing."""

    @override
    def __call__(
        self, view_a: Tensor, view_b: Tensor, negatives: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        return view_a
