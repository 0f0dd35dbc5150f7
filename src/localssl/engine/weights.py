"""The gradient of a block's weights from its inputs and the dendritic signal at its drive, each by its fastest way."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

WORTH = 2**16  # input times output channels, from which matrix products make up for the copies that they need
aten = torch.ops.aten


def change_of(layer: nn.Module, x: Tensor, at_a: Tensor, mask: Sequence[bool]) -> tuple[Tensor | None, Tensor | None]:
    """dL/dW and dL/d(bias) of these samples, where asked for.

    Args:
        layer: a linear layer or a convolution.
        x: its inputs (N, ...).
        at_a: dL/da at its drive (N, ...).
        mask: whether dL/dW, and dL/d(bias), are wanted.
    """
    if isinstance(layer, nn.Linear):
        at_a, x = at_a.flatten(0, -2), x.flatten(0, -2)
        return (at_a.T @ x if mask[0] else None), (at_a.sum(0) if mask[1] else None)
    assert isinstance(layer, nn.Conv1d | nn.Conv2d)
    if isinstance(layer, nn.Conv2d) and by_places(layer, x):
        return (by_products(layer, x, at_a) if mask[0] else None), (at_a.sum((0, 2, 3)) if mask[1] else None)
    sizes = None if layer.bias is None else [layer.out_channels]  # pyright: ignore[reportUnnecessaryComparison]
    still = [0] * len(layer.stride)
    geometry = (list(layer.stride), list(layer.padding), list(layer.dilation), False, still, layer.groups)
    weight = layer.weight.to(x.dtype)
    _, change, bias = aten.convolution_backward(at_a, x, weight, sizes, *geometry, [False, *mask])
    return change, bias


def by_places(layer: nn.Conv2d, x: Tensor) -> bool:
    """Whether dL/dW is made place by place of the kernel, by matrix products.

    Without AVX-512 oneDNN's gradient of weights takes 1.4 to 4 times its forward pass; from ``WORTH`` on products are
    ahead of it (``benchmarks/weights.py``). With AVX-512, as PyTorch sees it (``ATEN_CPU_CAPABILITY`` may tell it
    otherwise), that was not measured, and oneDNN makes it.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu") or layer.groups != 1:
        return False
    plain = isinstance(layer.padding, tuple) and torch.backends.cpu.get_cpu_capability() == "AVX2"
    return plain and layer.in_channels * layer.out_channels >= WORTH


def by_products(layer: nn.Conv2d, x: Tensor, at_a: Tensor) -> Tensor:
    """Each place of the kernel reads the inputs shifted by as much: one product of the signal with those."""
    (rows, columns), (top, left) = layer.kernel_size, layer.padding
    (down, right), (apart, across) = layer.stride, layer.dilation
    samples, channels, height, width = x.shape
    signal = at_a.permute(0, 2, 3, 1).reshape(-1, at_a.shape[1]).T
    change = x.new_empty(at_a.shape[1], rows, columns, channels)  # channels-last, as the products leave it
    for i in range(rows):
        to_y, of_y = _within(at_a.shape[2], height, down, i * apart - int(top))
        for j in range(columns):
            to_x, of_x = _within(at_a.shape[3], width, right, j * across - int(left))
            shifted = x.new_zeros(samples, *at_a.shape[2:], channels)
            shifted[:, to_y, to_x] = x[:, :, of_y, of_x].permute(0, 2, 3, 1)
            change[:, i, j] = signal @ shifted.view(-1, channels)
            del shifted  # else it is there while the next place's is made
    return change.permute(0, 3, 1, 2)


def _within(outputs: int, inputs: int, stride: int, shift: int) -> tuple[slice, slice]:
    """Which outputs of one axis read an input that is there, and which inputs those are, at this shift."""
    first = max(0, -(shift // stride))
    last = min(outputs - 1, (inputs - 1 - shift) // stride)
    if last < first:
        return slice(0, 0), slice(0, 0)
    return slice(first, last + 1), slice(first * stride + shift, last * stride + shift + 1, stride)
