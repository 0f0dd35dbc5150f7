"""Training in passes, as the peers' own recipes have it: one layer after the other, or all layers at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from localssl.data.sources import Images
from localssl.encoders import Encoder
from localssl.learner import Learner
from localssl.rules.per_layer import of_layer
from localssl.rules.scff import SCFF

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
        repaired: what the layer below gives is paired anew (SCFF).
    """

    layer: int | None
    lr: float
    weight_decay: float = 0.0
    factor: float = 1.0
    period: int = 1
    epochs: int = 1
    optimiser: str = "adamw"
    repaired: bool = False

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
    below: Encoder | None = None
    if how.layer is not None and how.repaired:
        below, part = _alone(learner, how.layer)
        frozen = list(below.blocks)
    else:
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
            if below is not None:
                with torch.no_grad():
                    given = below.emitted(a)[-1]
                    a, b = given, given if b is a else below.emitted(b)[-1]
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


def _alone(learner: Learner, layer: int) -> tuple[Encoder, Learner]:
    """What lies below a layer of an SCFF net, and a learner of that layer alone, which pairs what that gives.

    The source pairs anew at every layer below, too. Only positive pairs run on, whose halves are equal: their drive is
    twice that of one half, and what goes on is standardised, so that images by themselves may stand for them.
    """
    whole, rule, block = learner.encoder, learner.rule, learner.encoder.blocks[layer - 1]
    (convolution,) = (m for m in block.modules() if isinstance(m, nn.Conv2d))
    assert isinstance(rule, SCFF)
    pad = convolution.kernel_size[0] // 2
    below = Encoder(list(whole.blocks)[: layer - 1], emit=list(whole.emit)[: layer - 1], entry=whole.entry)
    alone = Encoder([nn.Sequential(nn.ReflectionPad2d(pad), convolution)], emit=[whole.emit[layer - 1]])
    theta1, theta2, penalty = (of_layer(values, layer - 1) for values in (rule.theta1, rule.theta2, rule.penalty))
    own = replace(rule, theta1=theta1, theta2=theta2, penalty=penalty, pad=pad)
    shape = below.output_shapes(learner.input_shape, emitted=True)[-1]
    return below, Learner(alone, own, shape, engine="autograd")
