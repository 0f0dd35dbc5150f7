"""Encoders: stacks of blocks. Every block is one unit of local learning; its output is the activity z^l."""

from __future__ import annotations

from localssl.encoders.nets import (
    VGG5_CHANNELS,
    VGG5_POOLS,
    VGG6_CHANNELS,
    VGG6_POOLS,
    cnn1d,
    conv_block,
    mlp,
    vgg5,
    vgg6,
)
from localssl.encoders.options import Options
from localssl.encoders.others import is_other_peoples, other_peoples
from localssl.encoders.peers import published
from localssl.encoders.registry import build, check_name, from_config, granted, names, of_ones_own, sketched
from localssl.encoders.stack import Encoder, run_block

__all__ = [
    "VGG5_CHANNELS",
    "VGG5_POOLS",
    "VGG6_CHANNELS",
    "VGG6_POOLS",
    "Encoder",
    "Options",
    "build",
    "check_name",
    "cnn1d",
    "conv_block",
    "from_config",
    "granted",
    "is_other_peoples",
    "mlp",
    "names",
    "of_ones_own",
    "other_peoples",
    "published",
    "run_block",
    "sketched",
    "vgg5",
    "vgg6",
]
