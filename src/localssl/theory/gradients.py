"""Weight gradients at optimal (or chosen) projections: layerwise, and end to end from the last layer's loss.

One form serves every f: at scores u_k = x_k·B y_k the gradient is Σ f'(u_k) ∂(x_k·g_k), with g_k = B y_k constant. At
the optimum f'(u_k) is -2λα_k, also at the hinge's kink, where the plain derivative would be decided by rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from localssl import credit as credits
from localssl import losses, readout
from localssl.alignment import block_gradients
from localssl.encoders import Encoder
from localssl.errors import UsageError
from localssl.references import Own, Reference
from localssl.theory.forms import Form, Hinge, form
from localssl.theory.projection import signed, solve

_OWN = Own()

Projections = Literal["optimal", "identity"] | Sequence[Tensor | None]


@dataclass(frozen=True)
class Samples:
    """Network inputs of one batch: positives, negatives and what the references are the activities of, (n, …) each.

    ``c_neg``: inputs of the negatives' references where they are others (Forward-Forward), else None.
    """

    pos: Tensor
    neg: Tensor
    c: Tensor
    c_neg: Tensor | None = None

    @classmethod
    def from_views(cls, view_a: Tensor, view_b: Tensor) -> Samples:
        """The CLAPP family's samples: both views stacked, the positive the other view, the negative the next one."""
        positives = torch.cat((view_b, view_a))
        return cls(positives, positives.roll(-1, 0), torch.cat((view_a, view_b)))


@dataclass(frozen=True)
class Setting:
    """What the layers' losses are.

    Args:
        f: "softplus", "hinge", "linear" (no margin but the hinge's 1) or a ``Form``.
        loss_type: 2 or 1.
        weight_decay: λ.
        reference: ``Own()``, c^l = z^l, or ``Last()``, c^l = z^L (direct feedback).
        projections: "optimal"; "identity"; or one B per layer, (d_z, d_c), None where it is optimal.
        patches: patch size per block for convolutional maps; None averages over all positions.
    """

    f: str | Form | Hinge = "softplus"
    loss_type: int = 2
    weight_decay: float = 0.01
    reference: Reference = _OWN
    projections: Projections = "optimal"
    patches: readout.Patches = None


def gradients(encoder: Encoder, samples: Samples, setting: Setting) -> tuple[list[Tensor], list[Tensor]]:
    """Per block: the layerwise gradient and the end-to-end one, each a flat float64 vector of all its weights.

    End to end: the last layer's loss with its own B (under either reference the same), through all blocks.

    Raises:
        UsageError: as ``optimal_projection``, or projections that do not fit.
    """
    found: list[list[Tensor]] = []
    for credit in ("local", "backprop"):
        z = _read(encoder, samples, setting, credit)
        last = len(z) - 1
        layers = range(len(z)) if credit == "local" else [last]
        loss = torch.stack([_linearised(z, layer, setting) for layer in layers]).sum()
        found.append(block_gradients(encoder, loss))
    return found[0], found[1]


def _read(encoder: Encoder, samples: Samples, setting: Setting, credit: str) -> list[list[Tensor]]:
    """Per layer: the readouts of positives, negatives, references and, where there are any, negatives' references."""
    inputs = [samples.pos, samples.neg, samples.c, *([] if samples.c_neg is None else [samples.c_neg])]
    patches = readout.per_block(setting.patches, len(encoder.blocks))
    activities = credits.of(credit).activities(encoder, torch.cat(inputs))
    return [
        list(readout.readout(h, patch).split(len(samples.pos))) for h, patch in zip(activities, patches, strict=True)
    ]


def _linearised(z: list[list[Tensor]], layer: int, setting: Setting) -> Tensor:
    """A scalar with the gradient of the layer's loss: Σ f'(u_k) x_k·g_k."""
    z_pos, z_neg = z[layer][:2]
    source = setting.reference.source(layer, len(z))
    c, *rest = [part.detach() for part in z[source][2:]]
    c_neg = rest[0] if rest else None
    x = signed(z_pos, z_neg, setting.loss_type)
    projection = _projection(setting.projections, layer, (z_pos.shape[1], c.shape[1]))
    if projection is None:
        optimum = solve(z_pos, z_neg, c, setting.f, setting.loss_type, setting.weight_decay, c_neg)
        return (optimum.slopes * losses.score(x, optimum.predict(optimum.y))).sum()
    y = c if setting.loss_type == 1 else torch.cat((c, c if c_neg is None else c_neg))
    scores = losses.score(x, y @ projection.to(y).T)
    return (form(setting.f).slope(scores.detach()) * scores).sum()


def _projection(projections: Projections, layer: int, shape: tuple[int, int]) -> Tensor | None:
    if projections == "optimal":
        return None
    if projections == "identity":
        if shape[0] != shape[1]:
            raise UsageError(f"B = I needs references as long as the layer is wide, got {shape[1]} and {shape[0]}")
        return torch.eye(shape[0], dtype=torch.float64)
    if isinstance(projections, str):
        raise UsageError(f"projections is {projections!r}; choose 'optimal', 'identity' or a list of matrices")
    chosen = projections[layer]
    if chosen is not None and chosen.shape != shape:
        raise UsageError(f"B of layer {layer + 1} must be {shape}, got {tuple(chosen.shape)}")
    return chosen
