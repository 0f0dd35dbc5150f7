"""The nets that rules were published with, built from the data in ``peers_nets``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from localssl.encoders.layers import Triangle
from localssl.encoders.options import Options
from localssl.encoders.peers_nets import NETS, Stage
from localssl.encoders.stack import Encoder
from localssl.errors import UsageError, unknown


def published(name: str, width: float = 1.0, in_channels: int = 3, **options: Any) -> Encoder:
    """The net of a rule's own publication, see ``peers_nets``; its activations are its own.

    Args:
        name: "scff3", "scff4", "softhebb3" or "stochastic-ff3".
        width: factor on the channel numbers (rounded).
        in_channels: channels of the images.
        options: see ``Options``.

    Raises:
        UsageError: an unknown name, a width that leaves a block without channels, an unknown norm.
    """
    if name not in NETS:
        raise unknown("published net", name, NETS)
    if "pool" in options:
        raise UsageError(f"{name} has pools of its own; leave out pool={options['pool']}")
    net = NETS[name]
    weighted: list[nn.Module] = []
    c_in = in_channels
    for stage in net.stages:
        c = round(width * stage.channels)
        if c < 1:
            raise UsageError(f"width {width:g} leaves {name} without channels; use at least 0.01")
        weighted.append(_stage(stage, c_in, c, net.bias))
        c_in = c
    if net.xavier:
        for module in nn.ModuleList(weighted).modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
    tails = [[nn.ReLU() if s.power is None else Triangle(s.power), _POOLS[s.pool]()] for s in net.stages]
    config = {"name": name, "width": width, "in_channels": in_channels}
    return Options(**options).assemble(weighted, tails, config, [s.kernel // 2 for s in net.stages])


_POOLS: dict[str, Callable[[], nn.Module]] = {
    "max4": partial(nn.MaxPool2d, 4, 2, 1),
    "avg4": partial(nn.AvgPool2d, 4, 2, 1),
    "max2": partial(nn.MaxPool2d, 2),
    "avg2": partial(nn.AvgPool2d, 2),
}


def _stage(stage: Stage, c_in: int, c: int, bias: bool) -> nn.Module:
    if not stage.separable:
        return nn.Conv2d(c_in, c, stage.kernel, bias=bias)
    depthwise = nn.Conv2d(c_in, c_in, stage.kernel, groups=c_in, bias=bias)
    return nn.Sequential(depthwise, nn.Conv2d(c_in, c, 1, bias=bias))
