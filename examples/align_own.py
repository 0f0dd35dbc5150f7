"""How close is my own rule to backpropagation in my own encoder? Ten lines from the blocks to the table.

Run: python examples/align_own.py
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

import localssl
from localssl.data.sources import open_images
from localssl.data.specs import spec_for
from localssl.data.views import Views
from localssl.rules import Batch, Projections, Rule


@dataclass(frozen=True, kw_only=True)
class Agree(Rule):
    """Per layer: the cosine of the two views of an image up, that with the next image's down."""

    def layer_loss(self, batch: Batch, layer: int, projections: Projections) -> Tensor:
        z = nn.functional.normalize(batch.z[layer], dim=1)
        mine, other = z, nn.functional.normalize(batch.positives(layer), dim=1)
        return (mine * other.roll(1, 0)).sum(1).mean() - (mine * other).sum(1).mean()


def main(steps: int = 40) -> list[localssl.alignment.LayerAlignment]:
    torch.manual_seed(0)
    images, held_out = open_images("digits"), open_images("digits", "test")
    views = Views(spec_for("digits").augmentation, [0.31], [0.32], 1, 16)
    blocks = [nn.Sequential(nn.Conv2d(c, 24, 3, 2, 1), nn.BatchNorm2d(24), nn.GELU()) for c in (1, 24, 24)]
    encoder = localssl.encoders.Encoder.from_blocks(blocks)
    learner = localssl.Learner(encoder, Agree(), input_shape=(1, 16, 16), patches=(4, 2, 2))
    optimiser = torch.optim.Adam(learner.parameters(), lr=1e-3)
    for index in torch.randint(len(images), (steps, 64)):
        learner.accumulate_grads(*views(images.batch(index)))
        optimiser.step()
        optimiser.zero_grad()
    parts = ((held_out, torch.arange(448)), (images, torch.arange(448)))
    test, fit = ([views(part.batch(i)) for i in index.split(64)] for part, index in parts)
    rows = localssl.alignment.measure(encoder.eval(), [learner, "clapp"], test, fit=fit)
    for r in rows:
        if r.quantity == "cosine" and r.parameter == "weights":
            print(f"{r.rule:6s} block {r.block}: {r.mean:5.2f} [{r.low:5.2f}, {r.high:5.2f}], {r.reference}")
    return rows


if __name__ == "__main__":
    main()
