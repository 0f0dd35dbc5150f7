"""Encoders by name: those of this library, of torchvision and timm, and a user's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from typing import Any

import torch
from torch import nn

from localssl import own
from localssl.encoders import networks
from localssl.encoders.nets import cnn1d, mlp, vgg5, vgg6, vgg11
from localssl.encoders.options import Options
from localssl.encoders.others import is_other_peoples, other_peoples, scaled_other
from localssl.encoders.peers import published
from localssl.encoders.peers_nets import NETS
from localssl.encoders.stack import Encoder
from localssl.errors import UsageError, unknown

_BUILDERS: dict[str, Callable[..., Encoder]] = {
    "vgg6": vgg6,
    "vgg5": vgg5,
    "vgg11": vgg11,
    "mlp": mlp,
    "cnn1d": cnn1d,
    **{name: partial(published, name) for name in NETS},
}


def names() -> tuple[str, ...]:
    """Names that ``--encoder`` accepts, besides torchvision:NAME, timm:NAME and PATH.py:NAME."""
    return tuple(_BUILDERS)


def check_name(name: str) -> None:
    """Refuse what is no encoder's name.

    Raises:
        UsageError: the nearest names are given.
    """
    if name not in _BUILDERS and not own.is_path(name) and not is_other_peoples(name):
        raise unknown("encoder", name, (*_BUILDERS, *(f"{s}:NAME" for s in networks.SOURCES), "PATH.py:NAME"))


def of_ones_own(name: str, input_shape: Sequence[int], **options: Any) -> Encoder:
    """The encoder that a function in a user's file returns, called with the shape of one image (C, H, W) and options.

    Args:
        name: PATH.py:NAME; the function returns an ``Encoder``, or a list of blocks for ``Encoder.from_blocks``.
        input_shape: of what enters the first block.
        options: keywords of the function.

    Raises:
        UsageError: no such file or function, options that it does not take, an error in it, or no encoder from it.
    """
    make = own.load(name, "encoder", callable)
    if not callable(make):
        raise UsageError(
            f"{name} is a {type(make).__name__}; an encoder of your own is a function of the input's shape"
        )
    made = own.called(name, "encoder", make, tuple(input_shape), **options)
    if not isinstance(made, Encoder):
        if not isinstance(made, list | tuple | nn.ModuleList):
            whole = isinstance(made, nn.Module)
            how = "; localssl.encoders.networks.blocks_of(model, 3) cuts a whole network into them" if whole else ""
            raise UsageError(f"{name} returned a {type(made).__name__}; return an Encoder, or a list of blocks{how}")
        made = Encoder.from_blocks(list(made))  # pyright: ignore[reportUnknownArgumentType]
    made.config = {"name": own.full_name(name), "input_shape": list(input_shape), **options}
    return made


def from_config(config: dict[str, Any]) -> Encoder:
    """Rebuild a named encoder from its ``config``.

    Raises:
        UsageError: unknown name, or options that the encoder does not have.
    """
    options = dict(config)
    name = str(options.pop("name", ""))
    check_name(name)
    if own.is_path(name):
        return of_ones_own(name, **options)
    try:
        return (partial(other_peoples, name) if is_other_peoples(name) else _BUILDERS[name])(**options)
    except TypeError as error:
        raise UsageError(f"encoder {name!r} does not take these options: {error}") from error


def granted(name: str, wished: Mapping[str, Any]) -> dict[str, Any]:
    """Of the options that a rule asks for those that go to the encoder: all, or those that one of the user's own takes.

    Raises:
        UsageError: no such encoder in the user's file, or no such file.
    """
    if not own.is_path(name):
        return dict(wished)
    make = own.load(name, "encoder", callable)
    return {option: value for option, value in wished.items() if own.takes(make, option)}


def build(
    name: str,
    input_shape: Sequence[int],
    width: float = 1.0,
    options: Mapping[str, Any] | None = None,
    wished: Mapping[str, Any] | None = None,
) -> Encoder:
    """A named encoder that fits images of ``input_shape`` (C, H, W), its widths scaled by ``width``.

    Args:
        name: one of ``names()``, or PATH.py:NAME.
        input_shape: of what enters the first block.
        width: an encoder of the user's own gets it as an option, where it is not 1.
        options: of the encoder.
        wished: options that the rule asks for, see ``granted``.

    Raises:
        UsageError: unknown name, a width that leaves nothing, or options that the encoder does not have.
    """
    check_name(name)
    if is_other_peoples(name):
        return scaled_other(name, input_shape, width, options or {}, wished or {})
    if own.is_path(name):
        scaled = {} if width == 1 else {"width": width}
        return of_ones_own(name, input_shape, **{**granted(name, wished or {}), **scaled, **(options or {})})
    options = {**(wished or {}), **(options or {})}
    given: dict[str, Any] = {"width": width, "in_channels": input_shape[0]}
    if name == "mlp":
        units = round(512 * width)
        if units < 1:
            raise UsageError(f"width {width:g} leaves mlp without units; use at least 0.002")
        given = {"in_features": math.prod(input_shape), "widths": (units,) * 6}
    known = [] if name == "cnn1d" else [f.name for f in fields(Options)]
    for option in options:
        if option not in known and option in (wished or {}):
            raise UsageError(f"the rule asks for an encoder with {option}, {name} has none; use vgg6 or mlp")
        if option not in known:
            raise (
                unknown(f"option of encoder {name!r}", option, known)
                if known
                else UsageError(f"encoder {name!r} has no options, {option!r} is none; leave it out")
            )
    return _BUILDERS[name](**given, **options)


@contextmanager
def sketched(name: str) -> Generator[None]:
    """Within, encoders of that name are made without memory, or, if not this library's, without leaving a trace."""
    if name not in _BUILDERS:  # their code may compute with the weights that it makes
        with torch.random.fork_rng():  # pyright: ignore[reportUnknownMemberType]
            yield
    else:
        with torch.device("meta"):
            yield
