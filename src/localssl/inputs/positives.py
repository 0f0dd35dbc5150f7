"""Positives above negatives: hybrids of two images, images with a label written in (Forward-Forward, PhyLL)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from localssl.errors import UsageError
from localssl.inputs.base import Inputs


@dataclass(frozen=True)
class PositivesAndNegatives(Inputs):
    """Positives above as many negatives, negative i made from positive i: (2m, ...), m = views · n.

    Args:
        views: 2: positives of both views, stacked a then b; 1: of view a alone.
    """

    views: int = 2

    def __post_init__(self) -> None:
        if type(self.views) is not int or self.views not in (1, 2):
            raise UsageError(f"views must be 1 (view a alone) or 2, got {self.views!r}")

    def shown(self, view_a: Tensor, view_b: Tensor) -> list[Tensor]:
        """The views that are used."""
        return [view_a] if self.views == 1 else [view_a, view_b]


@dataclass(frozen=True)
class Hybrids(PositivesAndNegatives):
    """Positives: the views. Negatives: hybrids m x_i + (1 - m) x_j of two images in the same view (Hinton 2022).

    j = i + s mod n with one shift s a view, uniform in 1 .. n-1, so never the image itself. m is a mask of its own for
    every hybrid, the same in all channels: random bits, blurred ``blurs`` times with [1/4 1/2 1/4] along every axis
    (the border is repeated outwards), 1 where above 1/2. Its patches are large, its long-range statistics wrong.
    Vectors (n, d) are taken as images of one line.

    Args:
        blurs: how often; more give larger patches. Hinton does not say, reimplementations have 6 to 10.
    """

    blurs: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.blurs) is not int or self.blurs < 0:
            raise UsageError(f"blurs must be a whole number, 0 or more, got {self.blurs!r}")

    @override
    def __call__(
        self, view_a: Tensor, view_b: Tensor, negatives: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        """Both views, a hybrid of every image in view a, then of every image in view b (or those of view a alone)."""
        shown = self.shown(view_a, view_b)
        return torch.cat([*shown, *(self.hybrids(view) for view in shown)])

    def hybrids(self, view: Tensor) -> Tensor:
        """One hybrid for every image of a view (n, ...)."""
        shift = int(torch.randint(1, len(view), ()))
        return torch.where(self.masks(view), view, view.roll(-shift, 0))

    def masks(self, view: Tensor) -> Tensor:
        """A mask for every image, (n, 1, H, W) or (n, d), True where the hybrid shows image i itself."""
        shape = (len(view), 1, *view.shape[2:]) if view.ndim > 2 else tuple(view.shape)
        m = torch.randint(2, shape, device=view.device).float()
        for axis in range(2, m.ndim) if m.ndim > 2 else (1,):
            for _ in range(self.blurs):
                m = _blurred(m, axis)
        return m > 0.5


def _blurred(m: Tensor, axis: int) -> Tensor:
    last = m.shape[axis] - 1
    before = torch.cat((m.narrow(axis, 0, 1), m.narrow(axis, 0, last)), axis)
    after = torch.cat((m.narrow(axis, 1, last), m.narrow(axis, last, 1)), axis)
    return (before + 2 * m + after) / 4


@dataclass(frozen=True)
class LabelInImage(PositivesAndNegatives):
    """Positives: images with their label written in. Negatives: with a wrong one, uniform over the others.

    The first ``classes`` pixels in reading order, in all channels, are 0 but for a 1 at the label, in the units in
    which the images come (Hinton 2022; ``tall``: another height). The neutral image has 0.1 in all of them.

    Args:
        classes: number of labels.
        tall: the mark is as high as the largest number in the batch, and not 1 (Momeni et al. 2023).
    """

    classes: int = 10
    tall: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.classes) is not int or self.classes < 2:
            raise UsageError(f"classes must be a whole number from 2, got {self.classes!r}")

    @override
    def shape(self, input_shape: Sequence[int]) -> tuple[int, ...]:
        """That of the views; they need room for the label."""
        pixels = torch.Size(input_shape[1:] if len(input_shape) > 1 else input_shape).numel()
        if pixels < self.classes:
            raise UsageError(f"images of {pixels} pixels have no room for one of {self.classes} labels")
        return tuple(input_shape)

    @override
    def __call__(
        self, view_a: Tensor, view_b: Tensor, negatives: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        """The views with the right label, then the same with a wrong one.

        Raises:
            UsageError: no labels, or one outside 0 .. classes - 1.
        """
        if labels is None:
            raise UsageError("the label is written into the image: labels are needed")
        if int(labels.min()) < 0 or int(labels.max()) >= self.classes:
            raise UsageError(f"labels must lie in 0..{self.classes - 1}, got {int(labels.min())}..{int(labels.max())}")
        shown = self.shown(view_a, view_b)
        positive = torch.cat(shown)
        right = labels.repeat(len(shown))
        wrong = (right + torch.randint(1, self.classes, right.shape, device=right.device)) % self.classes
        written = F.one_hot(torch.cat((right, wrong)), self.classes).to(positive.dtype)
        if self.tall:
            written = written * positive.max()
        return self.written(torch.cat((positive, positive)), written)

    def neutral(self, images: Tensor) -> Tensor:
        """Images (N, ...) that show no label: 0.1 where it would stand. A copy."""
        return self.written(images.clone(), torch.full((self.classes,), 0.1, dtype=images.dtype, device=images.device))

    def written(self, x: Tensor, values: Tensor) -> Tensor:
        """``x``, whose first pixels may be overwritten, with ``values`` there: (classes,) or (N, classes)."""
        if x.ndim == 2:
            x[:, : self.classes] = values
            return x
        flat = x.flatten(2)  # x itself, or a copy where channels come last in memory
        flat[:, :, : self.classes] = values.unsqueeze(-2)
        return flat.view_as(x)
