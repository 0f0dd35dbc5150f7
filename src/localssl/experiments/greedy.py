"""Training in passes, as the peers' own recipes have it: one layer after the other, or all layers at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from localssl.data.sources import Images
from localssl.encoders import Encoder
from localssl.learner import Learner

MakeViews = Callable[[Tensor], tuple[Tensor, Tensor]]  # of uint8 images (n, C, H, W)


@dataclass(frozen=True)
class Pass:
    """Some epochs with an optimiser of their own.

    Args:
        layer: the one that learns, from 1, those below frozen; None: all, each by its own loss.
        lr: rate at first.
        weight_decay: see the optimiser.
        factor, period: the rate is multiplied by ``factor`` every ``period`` batches.
        epochs: how many.
        optimiser: "adamw", "adam" or "plain-sgd".
    """

    layer: int | None
    lr: float
    weight_decay: float = 0.0
    factor: float = 1.0
    period: int = 1
    epochs: int = 1
    optimiser: str = "adamw"

    def optimise(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """A fresh optimiser of these parameters."""
        if self.optimiser == "plain-sgd":
            return torch.optim.SGD(parameters, lr=self.lr, weight_decay=self.weight_decay)
        kind = torch.optim.AdamW if self.optimiser == "adamw" else torch.optim.Adam
        return kind(parameters, lr=self.lr, weight_decay=self.weight_decay, fused=True)


def train(learner: Learner, images: Images, views: MakeViews, how: Pass, batch: int) -> list[float]:
    """Train, and return the mean loss of every epoch: the layer's own, or the sum over layers.

    What is drawn comes from torch's generator, which the caller seeds. A last batch of fewer than two images is left.
    """
    part = learner if how.layer is None else _up_to(learner, how.layer)
    frozen = [] if how.layer is None else list(part.encoder.blocks)[:-1]
    for block in frozen:
        block.requires_grad_(False)
    optimiser = how.optimise([p for p in part.parameters() if p.requires_grad])
    found: list[float] = []
    step = 0
    for epoch in range(how.epochs):
        total, batches = 0.0, 0
        for index in torch.randperm(len(images)).split(batch):
            if len(index) < 2:
                continue
            a, b = views(images.batch(index))
            step += 1
            optimiser.param_groups[0]["lr"] = how.lr * how.factor ** (step // how.period)
            for losses in part.updates(a, b):
                optimiser.step()
                optimiser.zero_grad()
                total += float(losses.sum() if how.layer is None else losses[-1])
            batches += 1
        found.append(round(total / batches, 5))
        which = "all layers" if how.layer is None else f"layer {how.layer}"
        print(f"{which}, epoch {epoch + 1} of {how.epochs}: loss {found[-1]:.4f}", flush=True)
    for block in frozen:
        block.requires_grad_(True)
    return found


def _up_to(learner: Learner, layer: int) -> Learner:
    """The learner of the first layers, of the same modules: what lies above need not run."""
    whole = learner.encoder
    if layer == len(whole.blocks):
        return learner
    encoder = Encoder(list(whole.blocks)[:layer], emit=list(whole.emit)[:layer], entry=whole.entry)
    part = Learner(encoder, learner.rule, learner.input_shape, learner.patches[:layer])
    for key in part.projections:
        part.projections[key] = nn.ModuleList([learner.parts[key][i] for i in range(layer)])
    return part
