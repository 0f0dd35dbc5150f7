"""Encoders: stacks of blocks. Every block is one unit of local learning; its output is the activity z^l."""

from __future__ import annotations

from localssl.encoders.nets import cnn1d, conv_block, mlp, vgg5, vgg6, vgg11
from localssl.encoders.options import Options
from localssl.encoders.peers import published
from localssl.encoders.registry import build, from_config, names
from localssl.encoders.stack import Encoder, run_block

__all__ = [
    "Encoder",
    "Options",
    "build",
    "cnn1d",
    "conv_block",
    "from_config",
    "mlp",
    "names",
    "published",
    "run_block",
    "vgg5",
    "vgg6",
    "vgg11",
]
