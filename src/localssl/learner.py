"""The learner: one batch in, losses and updates out. It composes an encoder and a rule and knows no rule by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from localssl import readout
from localssl.credit import ACTIVITIES, optimum
from localssl.encoders import Encoder
from localssl.errors import UsageError
from localssl.rules.base import Batch, Credit, Projections, Rule


class Learner(nn.Module):
    """An encoder, a rule and the rule's projections.

    Args:
        encoder: the stack of blocks to train.
        rule: from ``localssl.rules.get`` or your own.
        input_shape: shape of one image, (C, H, W).
        patches: side of the patches that share a projection, per block, on the block outputs; None averages over all
            positions. Larger than the map: clipped to it.

    Attributes:
        projections: by key ("lateral", "feedback", "head"), one entry per loss; ``projections[key][l].weight`` is B^l
            of shape (d_z, d_c). A key is absent where the rule has none.

    Raises:
        UsageError: patches that do not divide the maps, or inputs that the encoder does not accept.
    """

    def __init__(
        self, encoder: Encoder, rule: Rule, input_shape: Sequence[int], patches: readout.Patches = None
    ) -> None:
        super().__init__()
        if not isinstance(rule, Rule):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"Learner takes a rule object, got {rule!r}; write localssl.rules.get({str(rule)!r})")
        self.encoder = encoder
        self.rule = rule
        self.input_shape = tuple(input_shape)
        self.output_shapes = encoder.output_shapes(self.input_shape)
        self.patches = rule.patches(readout.per_block(patches, len(encoder.blocks)))
        for block, (shape, patch) in enumerate(zip(self.output_shapes, self.patches, strict=True), start=1):
            readout.check(shape, patch, block)
        dims = [readout.dim(shape, patch) for shape, patch in zip(self.output_shapes, self.patches, strict=True)]
        param = next(encoder.parameters(), torch.empty(0))
        parts = {key: nn.ModuleList(modules) for key, modules in rule.build(dims).items()}
        self.projections = nn.ModuleDict(parts).to(param.device, param.dtype)

    @property
    def parts(self) -> Projections:
        """The projections as a rule sees them."""
        return cast(Projections, self.projections)

    def losses(
        self, view_a: Tensor, view_b: Tensor, negatives: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        """One loss per layer, (L,), or (1,) for an end-to-end rule: means over the 2n samples.

        Args:
            view_a, view_b: two views of the same n >= 2 images, each (n, C, H, W).
            negatives: LongTensor (2n,) of indices into the stacked positives, serving every layer and every loss;
                None leaves the choice to the rule. Ignored by rules that draw none.
            labels: LongTensor (n,), for supervised rules only.

        Raises:
            UsageError: views of another shape than ``input_shape``, fewer than two images, bad negatives.
        """
        return self._losses(view_a, view_b, negatives, labels, self.rule.credit)

    def accumulate_grads(
        self, view_a: Tensor, view_b: Tensor, negatives: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        """Add the rule's update to ``.grad`` of the blocks and projections; the optimiser descends it.

        The update is the gradient of the sum of the losses; under a local rule each term reaches its own block and
        its own projections only (``credit.optimum`` says what it does instead). Arguments, errors and the returned
        losses (detached) are those of ``losses``.
        """
        if self.rule.credit == "optimum":
            z = self._outputs(view_a, view_b, negatives, "backprop")
            batch = self.read(z, negatives, labels)
            return optimum.accumulate(self.encoder, self.rule, self.parts, z, batch)
        losses = self.losses(view_a, view_b, negatives, labels)
        losses.sum().backward()  # pyright: ignore[reportUnknownMemberType]
        return losses.detach()

    def end_to_end_loss(
        self, view_a: Tensor, view_b: Tensor, negatives: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        """The rule's own last-layer loss, a scalar whose graph runs through all blocks: the reference of alignment."""
        return self._losses(view_a, view_b, negatives, labels, "backprop")[-1]

    def batch(
        self,
        view_a: Tensor,
        view_b: Tensor,
        negatives: Tensor | None = None,
        labels: Tensor | None = None,
        credit: Credit | None = None,
    ) -> Batch:
        """Both views through the blocks, read out: what the rule sees. Arguments and errors as in ``losses``."""
        return self.read(self._outputs(view_a, view_b, negatives, credit or self.rule.credit), negatives, labels)

    def read(self, z: Sequence[Tensor], negatives: Tensor | None = None, labels: Tensor | None = None) -> Batch:
        """What the rule sees of the block outputs z^l, (2n, ...), view a above view b."""
        found = [readout.readout(h, patch) for h, patch in zip(z, self.patches, strict=True)]
        return Batch(found, negatives, labels)

    def _outputs(self, view_a: Tensor, view_b: Tensor, negatives: Tensor | None, credit: Credit) -> list[Tensor]:
        self.check(view_a, view_b, negatives)
        return ACTIVITIES[credit](self.encoder, torch.cat((view_a, view_b)))

    def _losses(
        self,
        view_a: Tensor,
        view_b: Tensor,
        negatives: Tensor | None,
        labels: Tensor | None,
        credit: Credit,
    ) -> Tensor:
        return self.rule.losses(self.batch(view_a, view_b, negatives, labels, credit), self.parts)

    def check(self, view_a: Tensor, view_b: Tensor, negatives: Tensor | None = None) -> None:
        """Refuse views and negatives that ``losses`` does not take, with its errors."""
        for view in (view_a, view_b):
            if tuple(view.shape[1:]) != self.input_shape:
                raise UsageError(
                    f"a view has images of shape {tuple(view.shape[1:])}, the learner takes {self.input_shape}"
                )
        n = len(view_a)
        if len(view_b) != n:
            raise UsageError(f"view a has {n} images, view b {len(view_b)}; both must show the same images")
        if n < 2:
            raise UsageError(f"a batch of {n} image has no negatives; use at least 2 images")
        dtype = next(self.encoder.parameters(), view_a).dtype
        if not torch.is_autocast_enabled(view_a.device.type) and {view_a.dtype, view_b.dtype} != {dtype}:
            raise UsageError(
                f"the views are {view_a.dtype} and {view_b.dtype}, the encoder is {dtype}; convert one of them"
            )
        if negatives is not None and self.rule.uses_negatives:
            if not isinstance(negatives, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise UsageError(f"negatives must be a LongTensor of {2 * n} indices, got a {type(negatives).__name__}")
            if negatives.shape != (2 * n,) or negatives.dtype != torch.int64:
                raise UsageError(
                    f"negatives must be a LongTensor of {2 * n} indices (both views), "
                    f"got {negatives.dtype} of shape {tuple(negatives.shape)}"
                )
            if int(negatives.min()) < 0 or int(negatives.max()) >= 2 * n:
                raise UsageError(f"negatives must lie in 0..{2 * n - 1}")
