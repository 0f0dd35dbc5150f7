"""The networks of the theory: no biases, float64, weights orthonormal or PyTorch's default."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from localssl.encoders import Encoder
from localssl.errors import UsageError

WEIGHTS = ("orthonormal", "default")


def mlp(
    widths: Sequence[int],
    in_features: int,
    generator: torch.Generator,
    weights: str = "orthonormal",
    relu: bool = False,
) -> Encoder:
    """Layers z^l = W^l z^(l-1), or ReLU of it, one block each; W^l is n^l × n^(l-1).

    Args:
        widths: n^1 … n^L.
        in_features: n^0.
        generator: of the weights.
        weights: "orthonormal": orthonormal rows where the layer shrinks, columns where it widens, both where it is
            square. "default": PyTorch's for nn.Linear, uniform on ±1/√n^(l-1).
        relu: apply max(0, ·) in every layer.

    Raises:
        UsageError: unknown ``weights``.
    """
    sizes = [in_features, *widths]
    made = [_weights((b, a), generator, weights) for a, b in pairwise(sizes)]
    return from_weights(made, relu)


def stretched(weight: Tensor, spread: float, generator: torch.Generator) -> Tensor:
    """``weight`` (orthonormal) with singular values e^(spread · ξ), ξ standard normal, scaled to a mean square of 1."""
    u, _, vt = torch.linalg.svd(weight, full_matrices=False)
    values = (spread * torch.randn(len(vt), generator=generator, dtype=torch.float64)).exp()
    return (u * (values / values.square().mean().sqrt())) @ vt


def from_weights(weights: Sequence[Tensor], relu: bool = False) -> Encoder:
    """The multi-layer perceptron with these matrices, (n^l, n^(l-1)) each; no biases."""
    blocks: list[nn.Module] = []
    for weight in weights:
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=torch.float64)
        linear.weight.data.copy_(weight)
        blocks.append(nn.Sequential(linear, nn.ReLU()) if relu else linear)
    return Encoder.from_blocks(blocks)


def linear_convnet(
    generator: torch.Generator, layers: int = 4, channels: int = 32, in_channels: int = 1, weights: str = "default"
) -> Encoder:
    """Linear convolutions with kernel 2 and stride 2 (Figure 4B); "orthonormal": over the 4 × channels inputs."""
    blocks: list[nn.Module] = []
    for layer in range(layers):
        c_in = in_channels if layer == 0 else channels
        conv = nn.Conv2d(c_in, channels, 2, stride=2, bias=False, dtype=torch.float64)
        conv.weight.data.copy_(_weights((channels, 4 * c_in), generator, weights).view_as(conv.weight))
        blocks.append(conv)
    return Encoder.from_blocks(blocks)


def _weights(shape: tuple[int, int], generator: torch.Generator, weights: str) -> Tensor:
    if weights not in WEIGHTS:
        raise UsageError(f"weights is {weights!r}; choose one of {', '.join(WEIGHTS)}")
    weight = torch.empty(shape, dtype=torch.float64)
    if weights == "orthonormal":
        return nn.init.orthogonal_(weight, generator=generator)
    return nn.init.kaiming_uniform_(weight, a=5**0.5, generator=generator)
