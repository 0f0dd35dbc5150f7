"""What may differ in the blocks of a named encoder, and the stack that comes of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn

from localssl.encoders.layers import ACTIVATIONS, NORMS, ImageNorm, PairStandardise
from localssl.encoders.stack import Encoder
from localssl.errors import UsageError, unknown
from localssl.grids import Grid

POOLS: dict[str, type[nn.Module]] = {"max": nn.MaxPool2d, "avg": nn.AvgPool2d}


@dataclass(frozen=True)
class Options:
    """What may differ in the blocks of a named encoder.

    Args:
        norm: "length", "standardise" or "batch" (per channel over the batch, no trained part), of every block's input;
            or None.
        activation: "relu", "relu-ste" (gradient straight through), "gelu", "tanh" or "triangle".
        late: activation and pooling stand at the head of the next block, so that a block's output is its drive a,
            before them; ``Encoder.emitted`` has what goes on. For rules whose loss is of the drive.
        paired: the first norm stands before the inputs, on every image by itself, not in the first block: of what the
            inputs make of images (the mean of two says whether they are alike, noise how large it is) it would take
            that away. ``Encoder.entry`` holds it.
        init: weights start from N(0, init²/fan_in), biases from 0; None: PyTorch's own start.
        pool: "max" or "avg", of vgg6, vgg5 and vgg11.
        bits: what enters and what leaves a layer is rounded to numbers of so many bits, see ``grids``; None: it is not.
    """

    norm: str | None = None
    activation: str = "relu"
    late: bool = False
    paired: bool = False
    init: float | None = None
    pool: str = "max"
    bits: int | None = None

    def __post_init__(self) -> None:
        if self.norm is not None and self.norm not in (*NORMS, "batch"):
            raise unknown("norm", str(self.norm), (*NORMS, "batch"))
        if self.activation not in ACTIVATIONS:
            raise unknown("activation", str(self.activation), ACTIVATIONS)
        if self.pool not in POOLS:
            raise unknown("pool", str(self.pool), POOLS)
        if self.init is not None and (type(self.init) not in (int, float) or not 0 < self.init < math.inf):
            raise UsageError(f"init is {self.init!r}; use a positive number, or None for PyTorch's own start")
        if self.bits is not None:
            Grid(self.bits)  # refuses what it does not take

    def norm_of(self, layer: nn.Module) -> nn.Module:
        """The norm in front of a convolution or linear layer, or of several in a row."""
        if isinstance(layer, nn.Sequential):
            layer = layer[0]
        if self.norm == "batch":
            if isinstance(layer, nn.Conv2d):
                return nn.BatchNorm2d(layer.in_channels, affine=False)
            assert isinstance(layer, nn.Linear)
            return nn.BatchNorm1d(layer.in_features, affine=False)
        return nn.Identity() if self.norm is None else NORMS[self.norm]()

    def entry_of(self, first: nn.Module, pad: int = 0) -> nn.Module | None:
        """The norm of images by themselves, where ``paired`` asks for one before the first layer.

        ``pad``: of the reflecting padding in front of it, over which SCFF's nets standardise a pair once more.
        """
        if not self.paired or self.norm is None:
            return None
        if self.norm == "standardise" and pad:
            return PairStandardise(pad)
        return ImageNorm(self.norm_of(first), flat=isinstance(first, nn.Linear))

    @torch.no_grad()
    def start(self, layer: nn.Module) -> None:
        """Draw the weights anew, where ``init`` asks for it."""
        for m in layer.modules():
            if self.init is not None and isinstance(m, nn.Conv2d | nn.Linear):
                m.weight.normal_(0, self.init / m.weight[0].numel() ** 0.5)
                if m.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]
                    m.bias.zero_()

    def stack(self, weighted: Sequence[nn.Module], pools: Sequence[bool], config: dict[str, Any]) -> Encoder:
        """The encoder of these convolutions or linear layers."""
        tails = [[ACTIVATIONS[self.activation](), *([POOLS[self.pool](2)] if pool else [])] for pool in pools]
        return self.assemble(weighted, tails, config)

    def assemble(
        self,
        weighted: Sequence[nn.Module],
        tails: Sequence[list[nn.Module]],
        config: dict[str, Any],
        pads: Sequence[int] = (),
    ) -> Encoder:
        """The encoder of these weighted parts, each followed by its tail of activation and pooling.

        ``pads``: width of the reflecting padding in front of each; the standardisation is over what is padded, the
        other norms over what is not.
        """
        blocks: list[nn.Module] = []
        emit: list[nn.Module] = []
        tail: list[nn.Module] = []
        for i, (layer, own_tail) in enumerate(zip(weighted, tails, strict=True)):
            head: list[nn.Module] = [nn.Flatten()] if i == 0 and isinstance(layer, nn.Linear) else []
            if self.late:
                head += tail
            pad = [nn.ReflectionPad2d(pads[i])] if pads else []
            norm = [] if self.norm is None or (self.paired and i == 0) else [self.norm_of(layer)]
            head += pad + norm if self.norm == "standardise" else norm + pad
            self.start(layer)
            tail = own_tail
            into = [Grid(self.bits)] if self.bits and (i == 0 or norm or self.late) else []
            out = [Grid(self.bits)] if self.bits else []
            blocks.append(nn.Sequential(*head, *into, layer, *([] if self.late else tail), *out))
            emit.append(nn.Sequential(*tail))
        own = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        entry = self.entry_of(weighted[0], pads[0] if pads else 0)
        return Encoder(blocks, config | own, emit if self.late else None, entry)
