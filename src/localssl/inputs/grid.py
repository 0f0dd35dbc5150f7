"""A grid of patches, each a sample of its own (CLAPP as first published)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from localssl.errors import UsageError
from localssl.inputs.base import Inputs


@dataclass(frozen=True)
class PatchGrid(Inputs):
    """Every view cut into overlapping square patches, each a sample of its own: (2n · rows · columns, C, p, p).

    Laid out by view (a, then b), row, column. No patch sees another. A rest at the right and lower edge is left out.

    Args:
        patch: p, side of a patch; None: 16, and half the side of images smaller than 32.
        stride: pixels from one patch to the next; None: half a patch.
    """

    patch: int | None = None
    stride: int | None = None

    def grid(self, input_shape: Sequence[int]) -> tuple[int, int]:
        """Rows and columns of patches on a view of ``input_shape`` (C, H, W).

        Raises:
            UsageError: views that are no images, or smaller than one patch.
        """
        patch, stride = self.sizes(input_shape)
        rows, columns = ((side - patch) // stride + 1 for side in input_shape[1:])
        return rows, columns

    @override
    def shape(self, input_shape: Sequence[int]) -> tuple[int, ...]:
        patch, _ = self.sizes(input_shape)
        return (input_shape[0], patch, patch)

    @override
    def __call__(
        self, view_a: Tensor, view_b: Tensor, negatives: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        x = torch.cat((view_a, view_b))
        patch, stride = self.sizes(x.shape[1:])
        cut = x.unfold(2, patch, stride).unfold(3, patch, stride)  # (2n, C, rows, columns, p, p)
        return cut.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)

    def sizes(self, input_shape: Sequence[int]) -> tuple[int, int]:
        """Side of a patch and stride, in pixels.

        Raises:
            UsageError: views that are no images, or smaller than one patch.
        """
        if len(input_shape) != 3:
            raise UsageError(f"patches are cut from images (C, H, W), got views of shape {tuple(input_shape)}")
        side = min(input_shape[1:])
        patch = min(16, side // 4 * 2) if self.patch is None else self.patch
        stride = patch // 2 if self.stride is None else self.stride
        if not (1 <= patch <= side and stride >= 1):
            raise UsageError(f"patches of {patch} at a stride of {stride} do not fit views of {tuple(input_shape)}")
        return patch, stride
