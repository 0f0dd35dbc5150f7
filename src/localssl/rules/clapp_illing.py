"""CLAPP as first published (Illing et al. 2021): patches of one image, each predicting those below it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from localssl import losses
from localssl.errors import UsageError, unknown
from localssl.inputs import Inputs, PatchGrid
from localssl.projections import Dense
from localssl.rules.base import Batch, Form, Projections, Rule

STEPS = 5  # the furthest prediction
NEGATIVES = 16  # of clapp-s, per position


@dataclass(frozen=True, kw_only=True)
class ClappIlling(Rule):
    """L^l = mean_k [ L(sg(c), z; W_k) + L(c, sg(z); V_k) ],  L(c, z; W) = mean max(0, 1 - c.W z⁺) + max(0, 1 + c.W z⁻).

    c: a patch's activity at (y, x); z⁺: that at (y + k + 1, x) of the same image, the k-th patch below that does not
    overlap it; k = 1 to 5, or as far as the grid goes. Block outputs are averaged over the patch: c, z: (channels,);
    W_k, V_k: channels × channels, no bias, one per k and layer ("predict_k", "retrodict_k"). Means over positions and
    images. Both views of the learner are images of their own here, 2n in all (the published recipe has one view, a grey
    random crop with flips, and reads out a 7 × 7 grid of patches; ours reads out the whole image, as of every rule).

    variant "clapp" (73.6 % on STL-10): z⁻ has the position of z⁺ in another image of the 2n, drawn with replacement,
    the same image for the whole grid; a coin per image says which of the two terms it gets, and each is a mean over
    those that got it. "clapp-s": both terms, 16 negatives from all images and positions that are targets at this k,
    averaged, and one matrix, L(c, z; W_k), gradient through both c and z (weight transport).

    Draws are anew for every k, layer and loss. ``negatives`` given with a batch (as alignment gives them) choose the
    image, an index into the 2n, at the position of z⁺, for all of them and in both variants; coins fall all the same.
    On STL-10 ``--image-size 64`` gives the published 7 × 7 grid. Published: Adam 2e-4, no decay, batches of 32, 600
    epochs ("clapp-s": 300).

    Args:
        variant: "clapp" or "clapp-s".
        coin: whether "clapp" tosses it; without, every image gets both terms, the same loss on average.
        patch: side of a patch; None: 16, and half the side of images smaller than 32.
        stride: pixels from one patch to the next; None: half a patch; less is refused.
        rows, columns: of the grid; the learner fills them in.
    """

    name: ClassVar[str] = "clapp-illing"
    form: ClassVar[Form | None] = Form("hinge", 2, "the patch k + 1 rows above, and below", "trained, one a k and side")
    uses_negatives: ClassVar[bool] = True
    negatives: ClassVar[str] = "random"
    no_draws: ClassVar[Mapping[str, Any]] = {"coin": False}
    variant: str = "clapp"
    coin: bool = True
    patch: int | None = None
    stride: int | None = None
    rows: int = 3
    columns: int = 3

    def __post_init__(self) -> None:
        if self.variant not in ("clapp", "clapp-s"):
            raise unknown("variant", str(self.variant), ("clapp", "clapp-s"))
        for name in ("patch", "stride"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise UsageError(f"{name} must be a whole number of at least 1, got {value!r}")
        if type(self.rows) is not int or type(self.columns) is not int or self.rows < 3 or self.columns < 1:
            raise UsageError(
                f"{self.name} predicts two rows down and more: it needs 3 rows of patches and 1 column or more, "
                f"got {self.rows} and {self.columns}; use a smaller patch or stride"
            )

    @override
    def for_images(self, shape: Sequence[int]) -> Rule:
        grid = PatchGrid(self.patch, self.stride)
        patch, stride = grid.sizes(shape)
        if patch > 2 * stride:
            raise UsageError(
                f"{self.name} predicts k + 1 rows down: patches of {patch} at a stride of {stride} would overlap what "
                f"they predict; use a stride of at least {-(-patch // 2)}"
            )
        rows, columns = grid.grid(shape)
        return replace(self, rows=rows, columns=columns)

    @override
    def inputs(self) -> Inputs:
        return PatchGrid(self.patch, self.stride)

    @override
    def patches(self, patches: list[int | None]) -> list[int | None]:
        return [None] * len(patches)

    @property
    def steps(self) -> range:
        """The k that the grid allows."""
        return range(1, min(STEPS, self.rows - 2) + 1)

    @property
    def keys(self) -> tuple[str, ...]:
        """The losses at every k: "predict" alone where one matrix serves both sides."""
        return ("predict",) if self.variant == "clapp-s" else ("predict", "retrodict")

    @override
    def build(self, dims: Sequence[int]) -> dict[str, list[nn.Module]]:
        return {f"{key}_{k}": [Dense(d, d) for d in dims] for k in self.steps for key in self.keys}

    @override
    def constants(self, part: str, samples: int) -> Sequence[int]:
        """Patches that are contexts and no targets (sg(c)), or targets and no contexts (sg(z)), at this k."""
        if self.variant == "clapp-s":
            return ()
        key, k = part.rsplit("_", 1)
        rows = [i // self.columns % self.rows for i in range(samples)]
        targets, contexts = range(int(k) + 1, self.rows), range(self.rows - int(k) - 1)
        held, free = (contexts, targets) if key == "predict" else (targets, contexts)
        return [i for i, row in enumerate(rows) if row in held and row not in free]

    def draw(self, shape: Sequence[int], given: Tensor | None, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Negatives and coins of one loss, for targets of ``shape`` (images, rows, columns).

        Returns:
            Negatives (images, rows, columns, m) as indices into the flattened targets, and the coins (images,), 1 for
            the positive term and 0 for the negative, or None where every image gets both.
        """
        images, *places = shape
        targets = images * places[0] * places[1]
        tossed = None
        if self.variant == "clapp-s" and given is None:
            return torch.randint(targets, (*shape, NEGATIVES), device=device), None
        other = torch.randint(images, (images,), device=device) if given is None else given
        if self.variant == "clapp" and self.coin:
            tossed = torch.randint(2, (images,), device=device)
        return torch.arange(targets, device=device).view(*shape)[other].unsqueeze(3), tossed

    @override
    def layer_loss(self, batch: Batch, layer: int, projections: Projections) -> Tensor:
        z = batch.z[layer]
        z = z.view(-1, self.rows, self.columns, z.shape[1])  # (images, rows, columns, channels)
        terms: list[Tensor] = []
        for k in self.steps:
            context, target = z[:, : -k - 1], z[:, k + 1 :]
            for key in self.keys:
                drawn = self.draw(target.shape[:3], batch.negatives, z.device)
                stopped = self.variant == "clapp"
                c = context.detach() if stopped and key == "predict" else context
                t = target.detach() if stopped and key == "retrodict" else target
                terms.append(_contrast(c, projections[f"{key}_{k}"][layer](t), *drawn))
        return torch.stack(terms).sum() / len(self.steps)


def _contrast(c: Tensor, g: Tensor, negatives: Tensor, coin: Tensor | None) -> Tensor:
    """The hinge loss of contexts c and predictions g = W z, both (images, rows, columns, channels)."""
    d = c.shape[3]
    s_pos = losses.score(c.reshape(-1, d), g.reshape(-1, d)).view(c.shape[:3])
    m = negatives.shape[3]
    facing = c.unsqueeze(3).expand(*c.shape[:3], m, d)
    s_neg = losses.score(facing.reshape(-1, d), g.reshape(-1, d)[negatives.flatten()]).view(*c.shape[:3], m)
    positive = losses.decreasing("hinge", s_pos, 1.0).flatten(1).mean(1)
    negative = losses.decreasing("hinge", -s_neg, 1.0).flatten(1).mean(1)
    if coin is None:
        return positive.mean() + negative.mean()
    shares = [side.to(positive.dtype) / side.sum().clamp_min(1) for side in (coin, 1 - coin)]  # none got it: 0
    return positive @ shares[0] + negative @ shares[1]
