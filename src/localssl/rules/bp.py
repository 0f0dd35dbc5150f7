"""Supervised backpropagation: what labels and weight transport together reach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from localssl.errors import UsageError
from localssl.rules.base import Batch, Form, Projections, Rule


@dataclass(frozen=True, kw_only=True)
class Bp(Rule):
    """L = mean_i cross-entropy(H z_i^L, y_i), gradient through all blocks (paper Table A3's supervised objective).

    z^L: (2n, channels), averaged over all positions; H: linear to ``classes``, no bias (ours; the paper does not
    describe its head). Both views of an image carry its label.

    Args:
        classes: number of labels; ``localssl train`` fills in the data set's.
    """

    name: ClassVar[str] = "bp"
    form: ClassVar[Form | None] = Form("cross-entropy", None, "the label", "trained head")
    credit: ClassVar[str] = "backprop"
    uses_labels: ClassVar[bool] = True
    classes: int = 10

    def __post_init__(self) -> None:
        if type(self.classes) is not int or self.classes < 1:
            raise UsageError(f"classes must be a whole number of at least 1, got {self.classes!r}")

    @override
    def patches(self, patches: list[int | None]) -> list[int | None]:
        return [None] * len(patches)

    @override
    def build(self, dims: Sequence[int]) -> dict[str, list[nn.Module]]:
        return {"head": [nn.Linear(dims[-1], self.classes, bias=False)]}

    @override
    def losses(self, batch: Batch, projections: Projections) -> Tensor:
        labels = batch.labels
        if labels is None:  # the learner has asked for them already
            raise UsageError(f"rule {self.name!r} is supervised: it needs the labels of the images")
        if int(labels.min()) < 0 or int(labels.max()) >= self.classes:
            raise UsageError(f"labels must lie in 0..{self.classes - 1}; set the rule's option classes")
        return F.cross_entropy(projections["head"][0](batch.z[-1]), torch.cat((labels, labels)))[None]
