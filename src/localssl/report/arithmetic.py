"""What a training step costs by arithmetic alone: multiply-adds, parameters, numbers kept, from the encoder's sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from localssl import projections, readout
from localssl.encoders import Encoder
from localssl.engine.blocks import Pool, plan
from localssl.engine.passes import route_type
from localssl.rules import Rule, ScoreRule

MOMENTS = 2  # of Adam, numbers a parameter


@dataclass(frozen=True)
class Layer:
    """One block, in numbers of one sample.

    Args:
        weights: of the convolution or linear layer, its bias included.
        products: multiply-adds of one pass through it.
        x: its input. a: its drive, before the pool. z: its output. d: its readout. channels: of its output.
        route: bytes in which a pool's way back is held.
    """

    weights: int
    products: int
    x: int
    a: int
    z: int
    d: int
    channels: int
    route: int


@dataclass(frozen=True)
class Cost:
    """A training step of a batch of n images, both views of them.

    Args:
        convolutions: multiply-adds of the blocks' passes. projections: those of g = cBᵀ and ΔB.
        encoder: parameters of the blocks. b: of the projections, those that learn. fixed: numbers of the projections
            that stay as they were drawn.
        activity: numbers that are there at the peak besides parameters and moments: activity and gradients.
    """

    convolutions: int
    projections: int
    encoder: int
    b: int
    fixed: int
    activity: int

    @property
    def products(self) -> int:
        """All multiply-adds."""
        return self.convolutions + self.projections

    @property
    def parameters(self) -> int:
        """All parameters that learn."""
        return self.encoder + self.b

    @property
    def total(self) -> int:
        """All numbers that are there at the peak."""
        return (1 + MOMENTS) * self.parameters + self.fixed + self.activity


def layers(encoder: Encoder, shape: Sequence[int], patches: Sequence[int | None]) -> list[Layer]:
    """The blocks of an encoder for images of ``shape`` (C, H, W); on the meta device it takes no memory.

    Raises:
        ValueError: blocks of other parts than the engine knows.
    """
    blocks = plan(encoder)
    if isinstance(blocks, str):
        raise ValueError(blocks)
    found: list[Layer] = []
    x = torch.empty(1, *shape, device=next(encoder.parameters()).device)
    with torch.no_grad():
        for block, patch in zip(blocks, patches, strict=True):
            first = x
            for module in block.head:
                x = module(x)
            a = block.layer(x)
            x = a if block.pool is None else block.pool(a)
            weight = block.layer.weight
            products = a.numel() * weight[0].numel()
            weights = sum(p.numel() for p in block.layer.parameters())
            d = readout.dim(tuple(x.shape[1:]), patch)
            route = _route(block.pool, a, x)
            found.append(Layer(weights, products, first.numel(), a.numel(), x.numel(), d, x.shape[1], route))
    return found


def _route(pool: Pool | None, a: Tensor, z: Tensor) -> int:
    """Bytes: of a max-pool the place that every unit took, of an average pool the gates before it."""
    if isinstance(pool, nn.MaxPool1d | nn.MaxPool2d):
        return z.numel() * route_type(pool, a.shape[1:]).itemsize
    return 0 if pool is None else a.numel()


def step(encoder: Encoder, rule: Rule, shape: Sequence[int], patches: Sequence[int | None], n: int) -> Cost:
    """Cost of a step of ``rule`` on ``n`` images of ``shape`` (C, H, W), read out over ``patches``.

    Local rules make two passes through every block (forward, ΔW), backpropagation three (the first block has no
    gradient of its input to make). Activity, as the engine holds it: a lateral rule one block at a time, its input,
    output and gradient, and six vectors as long as the readout (positive, negative, g and signals); with references
    above, every block's input, and of a max-pooled unit its route, a byte on maps as wide as 254 units, two on wider
    ones; backpropagation every block's drive, and where it pools, its output and an index of eight bytes. The drive of
    one chunk, tiles of ΔB and what the libraries hold are not in it: they do not grow.

    Raises:
        ValueError: a rule that is neither a local score rule nor backpropagation, or blocks of other parts than the
            engine knows.
    """
    found = layers(encoder, shape, rule.patches(list(patches)))
    samples = 2 * n
    forward = sum(layer.products for layer in found)
    weights = sum(layer.weights for layer in found)
    with torch.device("meta"):
        dims = readout.Dims([layer.d for layer in found], [layer.channels for layer in found])
        products, b, fixed = _projections(rule.build(dims))
    if rule.credit == "backprop":
        kept = sum(layer.a + (3 * layer.z if layer.a > layer.z else 0) for layer in found)
        passes = 3 * forward - found[0].products
        return Cost(samples * passes, samples * products, weights, b, fixed, samples * kept + weights + b)
    if not isinstance(rule, ScoreRule) or rule.credit != "local":
        raise ValueError(f"no arithmetic for rule {rule.name!r}")
    kept = in_batch(found, rule)
    gradient = max(layer.weights for layer in found)
    return Cost(samples * 2 * forward, samples * products, weights, b, fixed, samples * kept + gradient)


def in_batch(found: Sequence[Layer], rule: ScoreRule) -> int:
    """Numbers of one sample and view that the engine ``hebbian`` holds at its peak, as ``step`` counts them."""
    last = len(found) - 1
    if any(r.source(i, last + 1) != i for r in rule.references.values() for i in range(last)):
        kept = sum(layer.x + layer.route // 4 for layer in found)
        return kept + found[-1].z + 6 * max(layer.d for layer in found)
    return max(layer.x + layer.z + 6 * layer.d for layer in found)


def between_views(found: Sequence[Layer], rule: ScoreRule) -> int:
    """Numbers of one sample that wait where view a comes first and view b after it, one sample at a time.

    Those of every readout that is the reference of some layer: Σ d_l under lateral references, d_L under direct
    feedback (paper, section 5).
    """
    sources = {r.source(i, len(found)) for r in rule.references.values() for i in range(len(found))}
    return sum(found[i].d for i in sources)


def _projections(parts: dict[str, list[nn.Module]]) -> tuple[int, int, int]:
    """Multiply-adds of g and of ΔB for one sample, the parameters that learn, and the numbers that do not."""
    products = learning = fixed = 0
    for module in (m for modules in parts.values() for m in modules):
        own, still = (sum(t.numel() for t in tensors) for tensors in (module.parameters(), module.buffers()))
        learning += own
        fixed += still
        if isinstance(module, projections.LowRank):  # inner read once where it is fixed; else outerᵀ for its change
            products += 2 * own + (still or module.outer.numel())
        else:
            products += 2 * own * (module.patches if isinstance(module, projections.PatchShared) else 1)
    return products, learning, fixed
