"""What an inputs component is. Most rules take this one as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Inputs:
    """The two views, stacked a then b: (2n, ...). Subclasses make something else of them."""

    def shape(self, input_shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of one sample as the encoder sees it, for views of ``input_shape``.

        Raises:
            UsageError: views that this component cannot take.
        """
        return tuple(input_shape)

    def __call__(
        self, view_a: Tensor, view_b: Tensor, negatives: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        """What the encoder sees, (N, ...); the rule knows how the N samples are laid out."""
        return torch.cat((view_a, view_b))
