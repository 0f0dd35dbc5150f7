"""The encoders of this library: the paper's VGG, a small one, a perceptron, one for time series."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from localssl.encoders.options import Options
from localssl.encoders.stack import Encoder
from localssl.errors import UsageError

VGG6_CHANNELS = (128, 256, 256, 512, 1024, 1024)  # paper, Table A1
VGG6_POOLS = (False, True, False, True, True, True)
VGG11_CHANNELS = (64, 128, 256, 256, 512, 512, 512, 512)  # Halvagal & Zenke 2023
VGG11_POOLS = (True, True, False, True, False, True, False, True)
VGG5_CHANNELS = (16, 32, 32, 64, 64)  # ours, for 16x16 digits
VGG5_POOLS = (False, True, False, True, True)


def conv_block(c_in: int, c_out: int, pool: bool) -> nn.Sequential:
    """3x3 convolution (stride 1, zero padding 1, bias), ReLU and, if ``pool``, 2x2 max-pooling."""
    layers: list[nn.Module] = [nn.Conv2d(c_in, c_out, 3, padding=1), nn.ReLU()]
    if pool:
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


def _vgg(
    name: str,
    base: Sequence[int],
    pools: Sequence[bool],
    width: float | Sequence[int],
    in_channels: int,
    options: Mapping[str, Any],
) -> Encoder:
    if isinstance(width, Sequence):
        channels = [int(c) for c in width]
        if len(channels) != len(base) or min(channels) < 1:
            raise UsageError(f"{name} takes a width factor or {len(base)} positive channel numbers, got {list(width)}")
    else:
        channels = [round(width * c) for c in base]
        if not min(channels) >= 1:
            raise UsageError(f"width {width:g} leaves {name} without channels; use at least {1 / min(base):.3g}")
    inputs = [in_channels, *channels[:-1]]
    convs = [nn.Conv2d(c_in, c, 3, padding=1) for c_in, c in zip(inputs, channels, strict=True)]
    return Options(**options).stack(convs, pools, {"name": name, "width": channels, "in_channels": in_channels})


def vgg6(width: float | Sequence[int] = 1.0, in_channels: int = 3, **options: Any) -> Encoder:
    """The six-block VGG of paper Table A1: 128, 256 M, 256, 512 M, 1024 M, 1024 M channels (M: 2x2 max-pool).

    Args:
        width: factor on the channel numbers (rounded), or a list of six channel numbers.
        in_channels: channels of the images.
        options: see ``Options``.

    Raises:
        UsageError: a width that leaves a block without channels, an unknown norm or activation.
    """
    return _vgg("vgg6", VGG6_CHANNELS, VGG6_POOLS, width, in_channels, options)


def vgg5(width: float | Sequence[int] = 1.0, in_channels: int = 1, **options: Any) -> Encoder:
    """A five-block VGG for 16x16 images: 16, 32 M, 32, 64 M, 64 M channels (ours; not in the paper).

    Args:
        width: factor on the channel numbers (rounded), or a list of five channel numbers.
        in_channels: channels of the images.
        options: see ``Options``.

    Raises:
        UsageError: a width that leaves a block without channels, an unknown norm or activation.
    """
    return _vgg("vgg5", VGG5_CHANNELS, VGG5_POOLS, width, in_channels, options)


def vgg11(width: float | Sequence[int] = 1.0, in_channels: int = 3, **options: Any) -> Encoder:
    """LPL's net, VGG-11's convolutions: 64 M, 128 M, 256, 256 M, 512, 512 M, 512, 512 M channels (M: 2x2 max-pool).

    Args:
        width: factor on the channel numbers (rounded), or a list of eight channel numbers.
        in_channels: channels of the images.
        options: see ``Options``.

    Raises:
        UsageError: a width that leaves a block without channels, an unknown norm or activation.
    """
    return _vgg("vgg11", VGG11_CHANNELS, VGG11_POOLS, width, in_channels, options)


def mlp(in_features: int = 784, widths: Sequence[int] = (512,) * 6, bias: bool = True, **options: Any) -> Encoder:
    """A multi-layer perceptron of [linear, ReLU] blocks; inputs of any shape are flattened first.

    Args:
        in_features: numbers in one input.
        widths: units of each block.
        bias: whether the linear layers have one.
        options: see ``Options``.

    Raises:
        UsageError: no block, a width below one, an unknown norm or activation.
    """
    if len(widths) == 0 or min(widths) < 1 or in_features < 1:
        raise UsageError(f"mlp needs positive sizes, got in_features={in_features}, widths={list(widths)}")
    if "pool" in options:
        raise UsageError(f"mlp has no pools; leave out pool={options['pool']}")
    inputs = [in_features, *widths[:-1]]
    layers = [nn.Linear(d_in, d, bias=bias) for d_in, d in zip(inputs, widths, strict=True)]
    config = {"name": "mlp", "in_features": in_features, "widths": list(widths), "bias": bias}
    return Options(**options).stack(layers, [False] * len(layers), config)


def cnn1d(width: float = 1.0, in_channels: int = 1) -> Encoder:
    """Four blocks for time series (N, C, T): 32, 64, 64, 128 channels, kernels of 5, ReLU, the time halved by maxima.

    Args:
        width: factor on the channel numbers (rounded).
        in_channels: channels of the series.

    Raises:
        UsageError: a width that leaves a block without channels.
    """
    channels = [round(width * c) for c in (32, 64, 64, 128)]
    if min(channels) < 1:
        raise UsageError(f"width {width:g} leaves cnn1d without channels; use at least 0.03")
    sizes = zip([in_channels, *channels[:-1]], channels, strict=True)
    blocks = [nn.Sequential(nn.Conv1d(c_in, c, 5, padding=2), nn.ReLU(), nn.MaxPool1d(2)) for c_in, c in sizes]
    return Encoder(blocks, {"name": "cnn1d", "width": width, "in_channels": in_channels})
