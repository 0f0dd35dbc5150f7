"""Networks of torchvision and timm as encoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from localssl.encoders import networks
from localssl.encoders.layers import NORMS
from localssl.encoders.stack import Encoder
from localssl.errors import UsageError, unknown


def other_peoples(
    name: str,
    blocks: int | Sequence[str] = 4,
    in_channels: int = 3,
    inner_norm: str = "batch",
    norm: str | None = None,
) -> Encoder:
    """A network of torchvision or timm in blocks.

    Args:
        name: "torchvision:resnet18", "timm:resnet18".
        blocks, in_channels, inner_norm: see ``networks.blocks_of``.
        norm: "length" or "standardise", in front of every block; None: nothing.

    Raises:
        UsageError: see ``networks.blocks_of``.
    """
    if norm is not None and norm not in NORMS:
        raise unknown("norm", str(norm), NORMS)
    if isinstance(blocks, bool) or not isinstance(blocks, int | list | tuple):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(
            f"blocks is {blocks!r}; give their number, or a list of the modules that they end with, on the command "
            f"""line 'blocks=["layer2","layer4"]'"""
        )
    source, _, own_name = name.partition(":")
    model = networks.network(source, own_name)
    parts = networks.blocks_of(model, blocks, in_channels, inner_norm, own_name)
    given = {"blocks": blocks if isinstance(blocks, int) else list(blocks), "in_channels": in_channels}
    options = {"inner_norm": inner_norm, "norm": norm}
    config = {"name": name, **given, **{k: v for k, v in options.items() if v not in ("batch", None)}}
    return Encoder(parts if norm is None else [nn.Sequential(NORMS[norm](), part) for part in parts], config)


def is_other_peoples(name: str) -> bool:
    """Whether a name is that of a network of torchvision or timm."""
    return name.partition(":")[0] in networks.SOURCES


def scaled_other(
    name: str, input_shape: Sequence[int], width: float, options: Mapping[str, Any], wished: Mapping[str, Any]
) -> Encoder:
    """Somebody's network as the command line asks for it."""
    if width != 1:
        raise UsageError(f"--width {width:g}: {name} has widths of its own; leave it out, or choose a narrower network")
    if left := sorted(wished.keys() - {"norm"}):
        raise UsageError(f"the rule asks for an encoder with {', '.join(left)} of its own, {name} has others; use vgg6")
    known = ("blocks", "inner_norm", "norm")
    for option in options:
        if option not in known:
            raise unknown(f"option of encoder {name!r}", option, known)
    given: dict[str, Any] = {"in_channels": input_shape[0], **wished, **options}
    return other_peoples(name, **given)
