"""Self-contrastive forward-forward on pairs of images, each pair in its two halves, layer by layer as published.

1. Every image is standardised by itself. Pairs: n positive ones, (x_i, x_i), then n negative ones, (x_i, x_j) with
   j = i + s mod n. In the layers above a pair is what came of it, one map.
2. Both halves are padded.
3. All numbers of the pair, padding included where it reflects, are standardised again; above, those of the map.
4. One kernel for both halves, a = W * left + W * right + 2b; above a = W * x + b.
5. G_p = 1/C Σ_c max(0, f_c)² at position p of the block's output f (the drive a, where it is late), and

    L = 1/(nP) Σ_pos,p log(1 + e^(θ1 - G_p)) + 1/(nP) Σ_neg,p log(1 + e^(G_p - θ2)) + λ/n Σ_pos (Σ_p G_p²)^½
    dL/dG_p = -σ(θ1 - G_p)/(nP) + λ G_p/(n |G|)   for a positive pair,   σ(G_p - θ2)/(nP)   for a negative one
    dG_p/df_c = 2 max(0, f_c)/C,     dL/dW = Σ_p dL/da_p (left + right)_p,     dL/db = 2 Σ_p dL/da_p

Passed on: pool(activation(a)), or the block's output.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from localssl.oracle.late import activated, pooled
from localssl.oracle.layers import Array, Block, ConvBlock, LinearBlock, Trace, after, gate, normalised
from localssl.oracle.result import Reference, Result, Task

PerLayer = float | Sequence[float]


def scff(
    task: Task,
    theta1: PerLayer = (0.0, 5.0, 6.0),
    theta2: PerLayer = (1.0, 9.0, 10.0),
    penalty: PerLayer = (0.0012, 0.0007, 0.0005),
    halves: str = "same",
    shift: int = 1,
    late: bool = False,
    paired: bool = False,
    activation: str = "relu",
    pad: str = "zeros",
    again: bool = True,
    halved: bool = False,
) -> Result:
    """Losses and gradients of two views, stacked; ``late``, ``paired`` and ``activation`` are the encoder's.

    Args:
        task: its samples are the images of view a, then of view b.
        theta1: θ1 of the positive pairs, here and below one number or one a layer.
        theta2: θ2 of the negative pairs.
        penalty: λ.
        halves: "same", both halves from view a; "views", the right one from view b.
        shift: s.
        late: whether a block's output is its drive.
        paired: whether every image is put through the norm by itself (step 1).
        activation: "relu" or "triangle", the late one.
        pad: "zeros", behind the standardisation; "reflect", in front of it (blocks of convolutions).
        again: step 3 for the pairs. The library leaves it out where nothing is padded by reflection (rule option pad).
        halved: what the first block passes on is half of the above, as where the mean of the halves stands for them:
            to a norm above it is the same.
    """
    if task.norm is not None and not paired:
        raise ValueError("a norm over the mean of a pair is not the norm of a pair: paired encoders only")
    n = len(task.samples) // 2
    images = [normalised(v, task.norm) for v in task.samples]
    left, right = images[:n], images[:n] if halves == "same" else images[n:]
    streams = [[left[i], right[i]] for i in range(n)] + [[left[i], right[(i + shift) % n]] for i in range(n)]
    result = Result(np.zeros(len(task.blocks)), [], {})
    for layer, block in enumerate(task.blocks):
        thresholds = pick(theta1, layer), pick(theta2, layer), pick(penalty, layer)
        d_weight, d_bias = np.zeros_like(block.weight), np.zeros(len(block.weight))
        passed: list[list[Array]] = []
        for i, stream in enumerate(streams):
            seen = _entering(block, stream, task.norm if layer or again else None, pad)
            a = _drive(block, seen)
            trace = Trace(stream[0], a, a, None) if late else after(block, stream[0], a)
            loss, signal = _goodness(trace.z, i < n, n, *thresholds)
            result.losses[layer] += loss
            weight, bias = _change(block, seen, signal if late else gate(trace, signal))
            d_weight, d_bias = d_weight + weight, d_bias + bias
            out = activated(a, activation) if late else trace.z
            if late and isinstance(block, ConvBlock) and block.pool:
                out = pooled(out)
            passed.append([out / 2 if halved and layer == 0 else out])
        streams = passed
        result.block_grads.append({"weight": d_weight} | ({} if block.bias is None else {"bias": d_bias}))
    return result


def _entering(block: Block, stream: list[Array], norm: str | None, pad: str) -> list[Array]:
    """Steps 2 and 3: the halves of a pair, or one map, padded and put through the norm as one."""
    if isinstance(block, LinearBlock):
        parts = [v.reshape(-1) for v in stream]
        return _as_one(parts, norm)
    edge = block.weight.shape[-1] // 2
    around = ((0, 0), (edge, edge), (edge, edge))
    if pad == "reflect" and norm in (None, "standardise"):
        return _as_one([np.pad(v, around, mode="reflect") for v in stream], norm)
    mode = {"zeros": "constant", "reflect": "reflect"}[pad]
    return [np.pad(v, around, mode=mode) for v in _as_one(stream, norm)]  # type: ignore[call-overload]


def _as_one(parts: list[Array], norm: str | None) -> list[Array]:
    """The norm over all numbers of all parts: two halves are concatenated on their channels."""
    whole = normalised(np.concatenate(parts), norm)
    return list(np.split(whole, len(parts)))


def _drive(block: Block, seen: list[Array]) -> Array:
    """Step 4: the sum over the halves of what one kernel makes of each."""
    total = np.zeros(0)
    for half in seen:
        if isinstance(block, LinearBlock):
            a = np.array([float(row @ half) for row in block.weight])
        else:
            a = np.zeros((len(block.weight), *_places(block, half)))
            for at in np.ndindex(a.shape[1:]):
                for c, kernel in enumerate(block.weight):
                    a[(c, *at)] = float((kernel * _patch(block, half, at)).sum())
        if block.bias is not None:
            a = a + block.bias.reshape(-1, *[1] * (a.ndim - 1))
        total = a if total.size == 0 else total + a
    return total


def _change(block: Block, seen: list[Array], delta: Array) -> tuple[Array, Array]:
    """Post times pre over positions and halves, and the bias's share, once a half."""
    weight, bias = np.zeros_like(block.weight), np.zeros(len(block.weight))
    for half in seen:
        for at in np.ndindex(delta.shape[1:]):
            pre = half if isinstance(block, LinearBlock) else _patch(block, half, at)
            for c in range(len(delta)):
                weight[c] += float(delta[(c, *at)]) * pre
                bias[c] += float(delta[(c, *at)])
    return weight, bias


def _places(block: ConvBlock, padded: Array) -> tuple[int, int]:
    k = block.weight.shape[-1]
    return padded.shape[1] - k + 1, padded.shape[2] - k + 1


def _patch(block: ConvBlock, padded: Array, at: tuple[int, ...]) -> Array:
    k = block.weight.shape[-1]
    return padded[:, at[0] : at[0] + k, at[1] : at[1] + k]


def _goodness(f: Array, positive: bool, n: int, up: float, down: float, weight: float) -> tuple[float, Array]:
    """A pair's share of the loss and dL/df."""
    channels, places = len(f), list(np.ndindex(f.shape[1:]))
    goodness = [sum(max(0.0, float(v)) ** 2 for v in f[(slice(None), *p)]) / channels for p in places]
    length = math.sqrt(sum(g * g for g in goodness))
    loss, signal = (weight * length / n if positive else 0.0), np.zeros_like(f)
    for p, g in zip(places, goodness, strict=True):
        if positive:
            loss += _softplus(up - g) / (n * len(places))
            slope = -_sigma(up - g) / (n * len(places)) + (weight * g / (n * length) if length else 0.0)
        else:
            loss += _softplus(g - down) / (n * len(places))
            slope = _sigma(g - down) / (n * len(places))
        for c in range(channels):
            signal[(c, *p)] = slope * 2 * max(0.0, float(f[(c, *p)])) / channels
    return loss, signal


def pick(values: PerLayer, layer: int) -> float:
    """The layer's own value; the last of a list that is too short."""
    return values if isinstance(values, int | float) else [*values, *[values[-1]] * (layer + 1)][layer]


def _softplus(x: float) -> float:
    return float(np.logaddexp(0.0, x))


def _sigma(x: float) -> float:
    return float(np.exp(-np.logaddexp(0.0, -x)))


REFERENCES: dict[str, Reference] = {"scff": scff}
