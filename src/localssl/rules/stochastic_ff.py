"""Stochastic Forward-Forward: no negatives; many dimensions over the images, few over an image's noisy copies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from localssl.errors import UsageError
from localssl.inputs import Inputs, NoisyCopies
from localssl.projections import Dense
from localssl.rules.base import Batch, Form, Projections, Rule


def effective_dimension(y: Tensor) -> Tensor:
    """ED = tr(C)² / (|C|_F² + 1e-6) of samples y (..., samples, k), C = yᵀy / (samples - 1), not centred."""
    c = y.mT @ y / (y.shape[-2] - 1)
    trace = c.diagonal(dim1=-2, dim2=-1).sum(-1)
    return trace.square() / (c.square().sum((-2, -1)) + 1e-6)


@dataclass(frozen=True, kw_only=True)
class StochasticFF(Rule):
    """L^l = ½ mean_b ED(C_b) - ½ ED(C_all),  ED(C) = tr(C)² / (|C|_F² + 1e-6)   (Zhu et al. 2025).

    C: second moment, not centred, of block outputs sent through a fixed random matrix with orthonormal rows to k
    channels, divided by samples - 1. C_b: over the copies and positions of image b. C_all: over images and positions of
    the mean over copies. Samples: noisy copies of every image, see ``inputs.NoisyCopies``.

    As published: loss, dropout 0.2 on the batch-normalised image, 30, 20 and 10 channels, batch normalisation without
    trained part before every later block. Published, and an option: 20 copies (each costs a pass). What differs in the
    common setting: 4 copies; the encoder; layers trained together; k = 10 for layers beyond the third (nothing is
    published for them); images without noise when they are probed. The sources differ on whether the published number
    is of this unsupervised loss; its code's entry point groups the images by class (not verified).

    Args:
        copies: noisy copies of every image, two or more.
        dropout: of the noise.
        channels: k; one number, or one a layer (layers beyond the list take its last). No more than the block has.
    """

    name: ClassVar[str] = "stochastic-ff"
    form: ClassVar[Form | None] = Form("effective dimensions", None, "noisy copies, with gradient", "fixed")
    encoder_options: ClassVar[Mapping[str, Any]] = {"norm": "batch", "paired": True}
    copies: int = 4
    dropout: float = 0.2
    channels: int | Sequence[int] = (30, 20, 10)

    def __post_init__(self) -> None:
        if type(self.copies) is not int or self.copies < 2:
            raise UsageError(f"copies must be a whole number of 2 or more, got {self.copies!r}")
        if type(self.dropout) not in (int, float) or not 0 <= self.dropout < 1:
            raise UsageError(f"dropout must be 0 or more and below 1, got {self.dropout!r}")
        if not self._channels() or any(type(k) is not int or k < 1 for k in self._channels()):
            raise UsageError(
                f"channels must be a positive whole number, or a list of them, one a layer; got {self.channels!r}"
            )

    def _channels(self) -> list[int]:
        return list(self.channels) if isinstance(self.channels, list | tuple) else [self.channels]  # pyright: ignore

    @override
    def inputs(self) -> Inputs:
        return NoisyCopies(self.copies, self.dropout)

    @override
    def patches(self, patches: list[int | None]) -> list[int | None]:
        return [None] * len(patches)  # the loss is of whole maps; a readout's length is the number of channels

    @override
    def build(self, dims: Sequence[int]) -> dict[str, list[nn.Module]]:
        wanted = self._channels()
        found: list[nn.Module] = []
        for layer, d in enumerate(dims):
            fixed = Dense(min(wanted[min(layer, len(wanted) - 1)], d), d)
            nn.init.orthogonal_(fixed.weight)
            found.append(fixed.requires_grad_(False))
        return {"channels": found}

    @override
    def layer_loss(self, batch: Batch, layer: int, projections: Projections) -> Tensor:
        z = batch.maps[layer]
        with torch.autocast(z.device.type, enabled=False):  # ED is a ratio of sums of many squares
            weight = projections["channels"][layer].get_parameter("weight")
            y = z.flatten(2).mT if z.ndim > 2 else z[:, None]  # (copies * n, positions, channels)
            y = y.to(weight.dtype) @ weight.mT
            y = y.reshape(self.copies, -1, *y.shape[1:])  # (copies, n, positions, k)
            own = effective_dimension(y.transpose(0, 1).flatten(1, 2)).mean()
            return 0.5 * own - 0.5 * effective_dimension(y.mean(0).flatten(0, 1))
