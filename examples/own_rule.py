"""A rule of your own in twenty lines, trained on digits and held against backpropagation.

Run: python examples/own_rule.py
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import localssl
from localssl.alignment import measure
from localssl.data.sources import open_images
from localssl.data.specs import spec_for
from localssl.data.views import Views
from localssl.rules import Batch, Projections, Rule


@dataclass(frozen=True, kw_only=True)
class Decorrelate(Rule):
    """Per layer: pull the two views together, keep every unit's spread at one and units apart (as VICReg does)."""

    strength: float = 1.0

    def layer_loss(self, batch: Batch, layer: int, projections: Projections) -> Tensor:
        z = batch.z[layer]
        pull = (z[: batch.n] - z[batch.n :]).square().mean()
        spread = torch.relu(1 - (z.var(0) + 1e-4).sqrt()).mean()
        centred = z - z.mean(0)
        covariance = centred.T @ centred / (len(z) - 1)
        apart = (covariance - torch.diag(covariance.diagonal())).square().sum() / z.shape[1]
        return pull + self.strength * (spread + 0.1 * apart)


def main(steps: int = 60) -> None:
    localssl.rules.register("decorrelate", Decorrelate)
    torch.manual_seed(0)
    encoder = localssl.encoders.vgg5(in_channels=1)
    learner = localssl.Learner(encoder, localssl.rules.get("decorrelate"), (1, 16, 16), patches=(4, 4, 4, 2, 1))
    images = open_images("digits")
    views = Views(spec_for("digits").augmentation, [0.31], [0.32], channels=1, image_size=16)
    optimiser = torch.optim.Adam(learner.parameters(), lr=1e-3)
    for step in range(steps):
        view_a, view_b = views(images.batch(torch.randint(len(images), (64,))))
        losses = learner.accumulate_grads(view_a, view_b)
        optimiser.step()
        optimiser.zero_grad()
        if step % 20 == 0:
            print(f"step {step}: loss per layer {[round(float(x), 3) for x in losses]}")
    batches = [views(images.batch(torch.arange(64 * i, 64 * i + 64))) for i in range(5)]
    for row in measure(encoder, learner, batches):
        if row.quantity == "cosine" and row.parameter == "weights":
            print(f"block {row.block}: cosine with backpropagation {row.mean:.2f} [{row.low:.2f}, {row.high:.2f}]")


if __name__ == "__main__":
    main()
