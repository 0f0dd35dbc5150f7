"""One sample at a time through one block, forward and back, with loops over output positions.

A block computes a = W * z_in + bias (convolution, or product for a linear block), then z = ρ(a) with ρ the ReLU, then
optionally the maximum over 2x2 windows. ρ'(0) is 0; of equal maxima the first in reading order wins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ConvBlock:
    """[k x k convolution, stride 1, zero padding k//2; ReLU; 2x2 max-pool if ``pool``].

    Attributes:
        weight: (C_out, C_in, k, k), k odd.
        bias: (C_out,), or None.
        pool: whether a 2x2 max-pool (stride 2; an odd last row or column is dropped) follows the ReLU.
    """

    weight: Array
    bias: Array | None = None
    pool: bool = False


@dataclass(frozen=True)
class LinearBlock:
    """[linear, ReLU]; an input of any shape is flattened, channels first.

    Attributes:
        weight: (d_out, d_in).
        bias: (d_out,), or None.
    """

    weight: Array
    bias: Array | None = None


Block = ConvBlock | LinearBlock


@dataclass(frozen=True)
class Trace:
    """What one block did with one sample.

    Attributes:
        z_in: the presynaptic activity, as it came in.
        a: the pre-activation, (C_out, H, W) or (d_out,).
        z: the block's output, after its max-pool.
        winner: for a pooling block, (C_out, H//2, W//2): row-major position in the map of every maximum.
    """

    z_in: Array
    a: Array
    z: Array
    winner: NDArray[np.int64] | None


def forward(block: Block, z_in: Array) -> Trace:
    """Run one block on one sample: (C_in, H, W), or any shape for a linear block."""
    if isinstance(block, LinearBlock):
        x = z_in.reshape(-1)
        a = np.array([float(row @ x) for row in block.weight])
        if block.bias is not None:
            a = a + block.bias
        return after(block, z_in, a)
    c_out, _, k, _ = block.weight.shape
    _, height, width = z_in.shape
    padded = _pad(z_in, k)
    rows = block.weight.reshape(c_out, -1)
    a = np.zeros((c_out, height, width))
    for y in range(height):
        for x in range(width):
            a[:, y, x] = rows @ padded[:, y : y + k, x : x + k].reshape(-1)
            if block.bias is not None:
                a[:, y, x] += block.bias
    return after(block, z_in, a)


def after(block: Block, z_in: Array, a: Array) -> Trace:
    """What follows the pre-activation: ReLU, and the maximum over 2x2 windows where the block pools."""
    z = np.where(a > 0, a, 0.0)
    if isinstance(block, LinearBlock) or not block.pool:
        return Trace(z_in, a, z, None)
    _, height, width = a.shape
    pooled = np.zeros((len(a), height // 2, width // 2))
    winner = np.zeros(pooled.shape, dtype=np.int64)
    for c in range(len(a)):
        for y in range(height // 2):
            for x in range(width // 2):
                window = [(2 * y + dy) * width + 2 * x + dx for dy in (0, 1) for dx in (0, 1)]
                best = max(window, key=lambda at: z[c].flat[at])
                winner[c, y, x] = best
                pooled[c, y, x] = z[c].flat[best]
    return Trace(z_in, a, pooled, winner)


def normalised(z: Array, norm: str | None) -> Array:
    """A block's input as its norm leaves it: "length", z / (rms + 1e-8); "standardise", (z - mean) / (std + 1e-10)."""
    if norm == "length":
        return z / (math.sqrt(sum(float(v) ** 2 for v in z.flat) / z.size) + 1e-8)
    if norm == "standardise":
        mean = sum(float(v) for v in z.flat) / z.size
        return (z - mean) / (math.sqrt(sum((float(v) - mean) ** 2 for v in z.flat) / (z.size - 1)) + 1e-10)
    if norm is None:
        return z
    raise ValueError(f"no such norm: {norm!r}")


def batch_normalised(zs: list[Array], norm: str | None) -> list[Array]:
    """All samples as a block's norm leaves them; "batch": (z - mean)/sqrt(var + 1e-5), over a channel."""
    if norm != "batch":
        return [normalised(z, norm) for z in zs]
    out = [np.zeros_like(z) for z in zs]
    for c in range(len(zs[0])):
        numbers = [float(v) for z in zs for v in z[c].flat]
        mean = sum(numbers) / len(numbers)
        var = sum((v - mean) ** 2 for v in numbers) / len(numbers)
        for z, to in zip(zs, out, strict=True):
            to[c] = (z[c] - mean) / math.sqrt(var + 1e-5)
    return out


def forward_all(blocks: list[Block], sample: Array, norm: str | None = None) -> list[Trace]:
    """One sample through all blocks: one trace per block; ``norm`` is that of every block's input."""
    traces: list[Trace] = []
    z = sample
    for block in blocks:
        traces.append(forward(block, normalised(z, norm)))
        z = traces[-1].z
    return traces


def gate(trace: Trace, signal: Array) -> Array:
    """A signal on the output z becomes one on the pre-activation a: unpooled to the winners, times ρ'(a)."""
    if trace.winner is None:
        at_a = signal
    else:
        at_a = np.zeros_like(trace.a)
        for c in range(len(at_a)):
            for at, value in zip(trace.winner[c].flat, signal[c].flat, strict=True):
                at_a[c].flat[at] += value
    return np.where(trace.a > 0, at_a, 0.0)


def hebbian(block: Block, trace: Trace, delta: Array) -> tuple[Array, Array]:
    """Post times pre: Σ over positions of delta_j z_in,i, and the bias's share (its presynaptic activity is 1)."""
    if isinstance(block, LinearBlock):
        x = trace.z_in.reshape(-1)
        change = np.zeros_like(block.weight)
        for j, post in enumerate(delta):
            change[j] = post * x
        return change, delta.copy()
    c_out, _, k, _ = block.weight.shape
    padded = _pad(trace.z_in, k)
    change = np.zeros((c_out, padded.shape[0] * k * k))
    bias = np.zeros(c_out)
    for y in range(delta.shape[1]):
        for x in range(delta.shape[2]):
            post = delta[:, y, x]
            if np.any(post):
                change += np.outer(post, padded[:, y : y + k, x : x + k].reshape(-1))
                bias += post
    return change.reshape(block.weight.shape), bias


def to_input(block: Block, trace: Trace, delta: Array) -> Array:
    """Backpropagation's next step: dL/dz_in from dL/da, each position handing W^T delta to the inputs it saw."""
    if isinstance(block, LinearBlock):
        back = np.zeros(block.weight.shape[1])
        for j, post in enumerate(delta):
            back += post * block.weight[j]
        return back.reshape(trace.z_in.shape)
    c_out, c_in, k, _ = block.weight.shape
    rows = block.weight.reshape(c_out, -1)
    padded = _pad(np.zeros_like(trace.z_in), k)
    for y in range(delta.shape[1]):
        for x in range(delta.shape[2]):
            padded[:, y : y + k, x : x + k] += (delta[:, y, x] @ rows).reshape(c_in, k, k)
    edge = k // 2
    _, height, width = trace.z_in.shape
    return padded[:, edge : edge + height, edge : edge + width]


def read(z: Array, patch: int | None) -> Array:
    """What of z enters the score: the mean of every patch x patch square, flattened channels first.

    None takes one mean over all positions, a vector is taken whole, and a patch larger than the map is clipped to it.
    """
    if z.ndim == 1:
        return z
    height, width = _patch_size(z.shape, patch)
    means = np.zeros((z.shape[0], z.shape[1] // height, z.shape[2] // width))
    for y in range(means.shape[1]):
        for x in range(means.shape[2]):
            square = z[:, y * height : (y + 1) * height, x * width : (x + 1) * width]
            for c in range(len(z)):
                means[c, y, x] = square[c].sum() / (height * width)
    return means.reshape(-1)


def spread(signal: Array, shape: tuple[int, ...], patch: int | None) -> Array:
    """A signal on the read-out vector becomes one on z: every position of a patch gets 1/patch² of it."""
    if len(shape) == 1:
        return signal
    height, width = _patch_size(shape, patch)
    per_patch = signal.reshape(shape[0], shape[1] // height, shape[2] // width)
    out = np.zeros(shape)
    for y in range(shape[1]):
        for x in range(shape[2]):
            out[:, y, x] = per_patch[:, y // height, x // width] / (height * width)
    return out


def _patch_size(shape: tuple[int, ...], patch: int | None) -> tuple[int, int]:
    if patch is None:
        return shape[1], shape[2]
    height, width = min(patch, shape[1]), min(patch, shape[2])
    if shape[1] % height or shape[2] % width:
        raise ValueError(f"patches of {patch} do not divide a map of {shape[1]} x {shape[2]}")
    return height, width


def _pad(z: Array, k: int) -> Array:
    edge = k // 2
    return np.pad(z, ((0, 0), (edge, edge), (edge, edge)))
