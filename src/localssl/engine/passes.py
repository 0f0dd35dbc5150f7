"""A block's passes without autograd: activity forward, dendritic signal to its synapses (paper equation 6)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from localssl.engine.blocks import Block, Pool
from localssl.engine.weights import change_of
from localssl.optimizer import add_grad

CHUNK = 4 * 2**20  # bytes of drive that a block makes at a time; half of it costs a twentieth of a step
aten = torch.ops.aten


class Passed(NamedTuple):
    """What is kept of a block that ran.

    Args:
        x: the presynaptic activity (N, ...).
        z: the block's output (N, ...); where a max-pooled or unpooled unit is 0, its gate ρ'(a) is closed.
        route: where a signal at z goes in the drive a: of a max-pool, for every unit of z how far behind the first
            place of its window the one that it took lies on the map, a byte where that fits (``route_type``); of an
            average pool, the gates, one bool a unit of a; None without a pool, or where nobody wants it.
        drive: shape of one sample's drive a.
    """

    x: Tensor
    z: Tensor
    route: Tensor | None
    drive: tuple[int, ...]


def run(block: Block, x: Tensor, keep: bool = True) -> Passed:
    """The block's output for inputs ``x`` (N, ...).

    A pooled block's drive is made chunk by chunk of samples, so that it is never there as a whole. Without ``keep``
    there is no route.
    """
    for module in block.head:
        x = module(x)
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    x = _laid_out(x)
    layer = block.layer
    bias = _bias(layer)
    weight, bias = layer.weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    if block.pool is None:
        a = drive_of(layer, x, weight, bias)
        return Passed(x, a.relu_(), None, tuple(a.shape[1:]))
    z: Tensor | None = None
    route: Tensor | None = None
    firsts: Tensor | None = None
    drive: tuple[int, ...] = ()
    count = _chunk(block, x)
    for first in range(0, len(x), count):
        a = drive_of(layer, x[first : first + count], weight, bias)
        drive = tuple(a.shape[1:])
        pooled, back = _pool(block.pool, a, keep)
        if back is not None and isinstance(block.pool, nn.MaxPool1d | nn.MaxPool2d):
            firsts = _firsts(block.pool, pooled, drive) if firsts is None else firsts
            back = back.sub_(firsts).to(route_type(block.pool, drive))  # in place: else a third map of eight bytes
        z = _put(z, pooled, first, len(x))
        route = None if back is None else _put(route, back, first, len(x))
        del a, pooled, back  # else they are there while the next chunk is made
    assert z is not None
    return Passed(x, z, route, drive)


def _put(whole: Tensor | None, part: Tensor, first: int, count: int) -> Tensor:
    """``whole`` (count, ...), made if it is not there yet, with ``part`` from sample ``first`` on."""
    if len(part) == count:
        return part
    if whole is None:
        whole = _empty((count, *part.shape[1:]), part)
    whole[first : first + len(part)] = part
    return whole


Change = Callable[[nn.Module, Tensor, Tensor, Sequence[bool]], tuple[Tensor | None, Tensor | None]]


def learn(block: Block, passed: Passed, soma: Tensor, kernel: tuple[int, ...], change_by: Change | None = None) -> None:
    """Add dL/dW (and of the bias) to ``.grad``: pre x gate x dendritic signal, summed over samples and positions.

    Args:
        block, passed: the block, and what is kept of its run.
        soma: dL/d(readout), (N, d): the dendritic signal at every unit of the readout.
        kernel: the readout's patch on the map; () where there is no map.
        change_by: in place of ``weights.change_of``.
    """
    layer = block.layer
    wanted = (layer.weight, _bias(layer))
    mask = [p is not None and p.requires_grad for p in wanted]
    if not any(mask):
        return
    count = _chunk(block, passed.x)
    signal = _at_patches(soma, passed.z, kernel)
    firsts: Tensor | None = None
    if isinstance(block.pool, nn.MaxPool1d | nn.MaxPool2d):
        firsts = _firsts(block.pool, passed.z, passed.drive)
    for first in range(0, len(passed.x), count):
        part = slice(first, first + count)
        route = None if passed.route is None else passed.route[part]
        places = route if firsts is None or route is None else route.to(torch.int64).add_(firsts)
        at_a = _at_drive(block.pool, signal[part], passed.z[part], kernel, places, passed.drive)
        del places  # eight bytes a unit
        for p, change in zip(wanted, (change_by or change_of)(layer, passed.x[part], at_a, mask), strict=True):
            if p is not None and change is not None:
                add_grad(p, change)
        del at_a  # else it is there while the next chunk's is made


def _chunk(block: Block, x: Tensor) -> int:
    """Samples in a chunk; all, where the weights are larger than a chunk of the drive, as each adds a whole ΔW."""
    weight = block.layer.weight
    drive = weight.shape[0] * x[0, 0].numel()
    fit = max(1, CHUNK // (drive * x.element_size()))
    return len(x) if weight.numel() > fit * drive else fit


def _bias(layer: nn.Module) -> nn.Parameter | None:
    return layer.bias  # pyright: ignore[reportReturnType]


def _laid_out(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x.contiguous()


def _empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Room for a map or a sequence, laid out as ``_laid_out`` does."""
    layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)


def drive_of(layer: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The weighted sums a of inputs x."""
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, bias)
    assert isinstance(layer, nn.Conv1d | nn.Conv2d)
    convolve = F.conv1d if isinstance(layer, nn.Conv1d) else F.conv2d
    return convolve(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)


def _pool(pool: Pool, a: Tensor, keep: bool) -> tuple[Tensor, Tensor | None]:
    """The pooled activity, and of an average pool the gates, of a max-pool the places that it took."""
    if isinstance(pool, nn.AvgPool1d | nn.AvgPool2d):
        return pool(a.relu_()), (a > 0) if keep else None
    if not keep:
        return pool(a).relu_(), None
    z, index = F.max_pool2d_with_indices(_map(a), *windows(pool), ceil_mode=pool.ceil_mode)
    z, index = (_unmapped(part, a.ndim) for part in (z, index))
    return z.relu_(), index  # ReLU after the pool: the same, on fewer units


def _firsts(pool: Pool, z: Tensor, drive: Sequence[int]) -> Tensor:
    """Index of every window's first place on the map of one sample's drive; before the map, where that is padded."""
    _, strides, padding, _ = windows(pool)
    rows, columns = (
        torch.arange(-p * unit, (n * s - p) * unit, s * unit, device=z.device)
        for n, s, p, unit in zip(_map(z).shape[2:], strides, padding, (drive[-1], 1), strict=True)
    )
    return rows.unsqueeze(1) + columns


def route_type(pool: nn.MaxPool1d | nn.MaxPool2d, drive: Sequence[int]) -> torch.dtype:
    """The smallest that holds how far a window's last place lies behind its first one on the map of a drive."""
    (height, across), _, _, (down, right) = windows(pool)
    farthest = (height - 1) * down * drive[-1] + (across - 1) * right
    return torch.uint8 if farthest < 2**8 else torch.int16 if farthest < 2**15 else torch.int32


def _at_patches(soma: Tensor, z: Tensor, kernel: tuple[int, ...]) -> Tensor:
    """The signal of a readout, shared among the positions of its patches: (N, C, h, w), as a map of patches."""
    patches = [size // k for size, k in zip(z.shape[2:], kernel, strict=True)]
    shared = (soma / math.prod(kernel)).view(len(z), z.shape[1], *patches).to(z.dtype)
    return _laid_out(shared)


def _at_drive(
    pool: Pool | None,
    signal: Tensor,
    z: Tensor,
    kernel: tuple[int, ...],
    route: Tensor | None,
    drive: tuple[int, ...],
) -> Tensor:
    """dL/da (N, *drive): the signal spread over its patch, through the pool, through the gate.

    ``route``: gates, or places on the map.
    """
    shape = list(z.shape[:2])  # z as (N, C, h, k, w, k): the signal is the same along every k
    for axis, k in enumerate(kernel):
        shape += [z.shape[2 + axis] // k, k]
        signal = signal.unsqueeze(3 + 2 * axis)
    by_patch = z.view(shape)
    spread = signal.expand(shape)
    if not isinstance(pool, nn.AvgPool1d | nn.AvgPool2d):
        spread = aten.threshold_backward(spread, by_patch, 0)  # the gate; an average pool's lie before it
    spread = spread.reshape(z.shape)
    if pool is None:
        return spread
    assert route is not None
    spread = _laid_out(spread)
    into = _map(_empty((len(z), *drive), z))
    # Both calls read the shape alone of their second argument.
    if isinstance(pool, nn.AvgPool1d | nn.AvgPool2d):
        divisor = pool.divisor_override if isinstance(pool, nn.AvgPool2d) else None
        counting = (pool.ceil_mode, pool.count_include_pad, divisor)
        aten.avg_pool2d_backward.grad_input(_map(spread), into, *windows(pool), *counting, grad_input=into)
        return _unmapped(into, z.ndim).mul_(route)
    aten.max_pool2d_with_indices_backward.grad_input(
        _map(spread), into, *windows(pool), pool.ceil_mode, _map(route), grad_input=into
    )
    return _unmapped(into, z.ndim)  # looked at anew: whoever writes the rule down follows what was written there


def _map(x: Tensor) -> Tensor:
    """A sequence (N, C, T) as a map of one row; maps as they are."""
    return x.unsqueeze(2) if x.ndim == 3 else x


def _unmapped(x: Tensor, ndim: int) -> Tensor:
    """What ``_map`` made of something of so many axes, as it was."""
    return x.squeeze(2) if ndim == 3 else x


def windows(pool: Pool) -> list[list[int]]:
    """Kernel, stride and padding, and of a max-pool the dilation, on a map; a sequence is one of one row."""
    found: list[tuple[Any, int]] = [(pool.kernel_size, 1), (pool.stride, 1), (pool.padding, 0)]
    if isinstance(pool, nn.MaxPool1d | nn.MaxPool2d):
        found.append((pool.dilation, 1))
    if isinstance(pool, nn.MaxPool2d | nn.AvgPool2d):
        return [[n, n] if isinstance(n, int) else list(n) for n, _ in found]
    return [[across, *([n] if isinstance(n, int) else n)] for n, across in found]
