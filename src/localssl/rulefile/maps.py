"""Convolutions and pools, written down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from localssl.rulefile.calls import Call, Found, refuse


def convolution(call: Call) -> str:
    """A convolution and its bias."""
    refuse(not call["transposed"], "transposed convolutions")
    geometry = {key: list(call[key]) for key in ("stride", "padding", "dilation")}
    bias = call["bias"]
    positions = [1] * len(geometry["stride"])
    plain = call.out if bias is None else call.out - bias.view(-1, *positions)
    drive = call.emit("conv", call["input"], call["weight"], result=plain, groups=call["groups"], **geometry)
    if bias is None:
        return drive
    return call.emit("add", drive, call.shaped(call.notes.read(bias), (1, len(bias), *positions)))


def convolution_backward(call: Call) -> Found:
    """Gradients of a convolution's weights and bias."""
    error, x, weight = call["grad_output"], call["input"], call["weight"]
    wanted = call["output_mask"]
    geometry = {key: list(call[key]) for key in ("stride", "padding", "dilation")}
    found: list[str | None] = [None, None, None]
    made = dict(zip([place for place in range(3) if wanted[place]], call.outputs, strict=True))
    if wanted[0]:
        found[0] = call.notes.unreadable(made[0], "an error sent down through a convolution")
    if wanted[1]:
        attributes = geometry | {"groups": call["groups"], "shape": list(weight.shape)}
        found[1] = call.emit("conv-weight-gradient", error, x, result=made[1], **attributes)
    if wanted[2]:
        found[2], _ = call.add_up(error, [0, *range(2, error.ndim)], False)
    return [name for name in found if name is not None]


def _windows(call: Call) -> dict[str, Any]:
    refuse(not call["ceil_mode"], "pools that round sizes up")
    kernel = _two(call["kernel_size"])
    return {"kernel": kernel, "stride": _two(call["stride"]) or kernel, "padding": _two(call["padding"])}


def _two(numbers: Sequence[int]) -> list[int]:
    return [*numbers, *numbers] if len(numbers) == 1 else list(numbers)


def max_pool(call: Call) -> Found:
    """Largest numbers and their places."""
    windows: dict[str, Any] = _windows(call) | {"dilation": _two(call["dilation"])}
    where = call.emit("maxpool-where", call["self"], result=call.outputs[1], **windows)
    return [call.emit("maxpool", call["self"], result=call.out, **windows), where]


def max_pool_backward(call: Call) -> str:
    """What goes back through a max-pool."""
    return call.emit("unpool", call["grad_output"], call["indices"], shape=list(call["self"].shape))


def _average(call: Call) -> dict[str, Any]:
    windows = _windows(call)
    refuse(call["count_include_pad"] or not any(windows["padding"]), "average pools that leave out the padding")
    refuse(call["divisor_override"] is None, "average pools with a divisor of their own")
    return windows


def avg_pool(call: Call) -> str:
    """Means of windows."""
    return call.emit("avgpool", call["self"], **_average(call))


def avg_pool_backward(call: Call) -> str:
    """What goes back through an average pool."""
    return call.emit("avgpool-spread", call["grad_output"], shape=list(call["self"].shape), **_average(call))


def reflect(call: Call) -> str:
    """Padding by reflection, as reading by indices."""
    name = call.notes.read(call["self"])
    value, padding = call.value(name), list(call["padding"])
    for pair in range(len(padding) // 2):
        axis, (before, after) = value.ndim - 1 - pair, padding[2 * pair : 2 * pair + 2]
        last = value.shape[axis] - 1
        order = [*range(before, 0, -1), *range(last + 1), *range(last - 1, last - 1 - after, -1)]
        index = torch.tensor(order)
        value = value.index_select(axis, index)
        name = call.emit("take", name, call.notes.constant(index), result=value, axis=axis)
    return name
