"""The part of a batch that a process has: random numbers are drawn for the whole, and everyone takes its own of them.

So what a sample gets does not depend on how many processes share its batch, as long as all draw from generators in the
same state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kornia.augmentation import AugmentationBase2D
from torch import Size, Tensor

OF_A_CALL = "order"  # Kornia's name for what all images of a call share


@dataclass(frozen=True)
class Part:
    """Samples ``first`` … ``first + count − 1`` of a batch of ``of``.

    Args:
        first: number of the first one, from 0.
        count: how many.
        of: how many the batch has.
    """

    first: int
    count: int
    of: int

    @classmethod
    def all(cls, count: int) -> Part:
        """Of a process alone."""
        return cls(0, count, count)

    def own(self, drawn: Tensor) -> Tensor:
        """These samples' rows of what was drawn for the whole batch, (``of``, ...)."""
        return drawn[self.first : self.first + self.count]

    def through(self, step: AugmentationBase2D, x: Tensor) -> Tensor:
        """Images (``count``, C, H, W) through one of Kornia's steps."""
        drawn: Mapping[str, Tensor] = step.forward_parameters(Size((self.of, *x.shape[1:])))
        shape = {"forward_input_shape": drawn["forward_input_shape"].new_tensor(x.shape)}
        own = {name: v if name == OF_A_CALL else self.own(v) for name, v in drawn.items() if name not in shape}
        return step(x, params=own | shape)
