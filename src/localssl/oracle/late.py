"""One sample through blocks whose activation and pooling stand at the head of the next block: outputs are drives."""

from __future__ import annotations

import dataclasses

import numpy as np

from localssl.oracle.layers import Array, Block, ConvBlock, Trace, forward, forward_all, normalised


def traces_of(
    blocks: list[Block], sample: Array, norm: str | None, late: bool, paired: bool, activation: str
) -> list[Trace]:
    """One trace per block, its ``z`` what the rule sees: with ``late`` the drive a, else as ``forward_all``.

    ``paired``: the first block has no norm. ``activation`` ("relu" or "triangle", a minus its mean over the channels at
    that position, negative ones 0) is the late one; other blocks have ReLU.
    """
    if not late:
        return forward_all(blocks, sample, norm)
    traces: list[Trace] = []
    x = sample
    for number, block in enumerate(blocks):
        bare = dataclasses.replace(block, pool=False) if isinstance(block, ConvBlock) else block
        trace = forward(bare, x if paired and number == 0 else normalised(x, norm))
        traces.append(dataclasses.replace(trace, z=trace.a))
        x = activated(trace.a, activation)
        if isinstance(block, ConvBlock) and block.pool:
            x = pooled(x)
    return traces


def activated(a: Array, activation: str) -> Array:
    """The late activation of a drive, at every position."""
    out = np.zeros_like(a)
    for at in np.ndindex(a.shape[1:]):
        column = [float(v) for v in a[(slice(None), *at)]]
        mean = {"relu": 0.0, "triangle": sum(column) / len(column)}[activation]
        for c, value in enumerate(column):
            out[(c, *at)] = max(0.0, value - mean)
    return out


def pooled(z: Array) -> Array:
    """The maximum over 2x2 windows."""
    out = np.zeros((z.shape[0], z.shape[1] // 2, z.shape[2] // 2))
    for c, y, x in np.ndindex(out.shape):
        out[c, y, x] = max(float(z[c, 2 * y + dy, 2 * x + dx]) for dy in (0, 1) for dx in (0, 1))
    return out
