"""Self-contrastive forward-forward, position by position.

With f_c the block's output (the drive, where it is late) and G_p = q/C Σ_c max(0, f_c)² at position p, q = 4 in the
first block, whose samples are means of two halves and not their sums, and 1 above; n positive samples, then n negative:

    L = 1/(nP) Σ_pos,p log(1 + e^(θ1 - G_p)) + 1/(nP) Σ_neg,p log(1 + e^(G_p - θ2)) + λ/n Σ_pos (Σ_p G_p²)^½
    dL/dG_p = -σ(θ1 - G_p)/(nP) + λ G_p/(n |G|)   for a positive sample,   σ(G_p - θ2)/(nP)   for a negative one
    dG_p/df_c = 2 q max(0, f_c)/C
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from localssl.oracle.late import traces_of
from localssl.oracle.layers import Array, gate, hebbian
from localssl.oracle.result import Reference, Result, Task

PerLayer = float | Sequence[float]


def scff(
    task: Task,
    theta1: PerLayer = (0.0, 5.0, 6.0),
    theta2: PerLayer = (1.0, 9.0, 10.0),
    penalty: PerLayer = (0.0012, 0.0007, 0.0005),
    late: bool = False,
    paired: bool = False,
    activation: str = "relu",
) -> Result:
    """Losses and gradients; ``late``, ``paired`` and ``activation`` are the encoder's."""
    traces = [traces_of(task.blocks, s, task.norm, late, paired, activation) for s in task.samples]
    n = len(traces) // 2
    result = Result(np.zeros(len(task.blocks)), [], {})
    for layer, block in enumerate(task.blocks):
        first, second, weight = (pick(v, layer) for v in (theta1, theta2, penalty))
        q = 4.0 if layer == 0 else 1.0
        d_weight, d_bias = np.zeros_like(block.weight), np.zeros(len(block.weight))
        for i, sample in enumerate(traces):
            f: Array = sample[layer].z
            channels, places = len(f), list(np.ndindex(f.shape[1:]))
            goodness = [sum(max(0.0, float(v)) ** 2 for v in f[(slice(None), *p)]) * q / channels for p in places]
            length = math.sqrt(sum(g * g for g in goodness))
            signal = np.zeros_like(f)
            for p, g in zip(places, goodness, strict=True):
                if i < n:
                    result.losses[layer] += _softplus(first - g) / (n * len(places))
                    slope = -_sigma(first - g) / (n * len(places)) + (weight * g / (n * length) if length else 0.0)
                else:
                    result.losses[layer] += _softplus(g - second) / (n * len(places))
                    slope = _sigma(g - second) / (n * len(places))
                for c in range(channels):
                    signal[(c, *p)] = slope * 2 * q * max(0.0, float(f[(c, *p)])) / channels
            if i < n:
                result.losses[layer] += weight * length / n
            change = hebbian(block, sample[layer], signal if late else gate(sample[layer], signal))
            d_weight, d_bias = d_weight + change[0], d_bias + change[1]
        result.block_grads.append({"weight": d_weight} | ({} if block.bias is None else {"bias": d_bias}))
    return result


def pick(values: PerLayer, layer: int) -> float:
    """The layer's own value; the last of a list that is too short."""
    return values if isinstance(values, int | float) else [*values, *[values[-1]] * (layer + 1)][layer]


def _softplus(x: float) -> float:
    return float(np.logaddexp(0.0, x))


def _sigma(x: float) -> float:
    return float(np.exp(-np.logaddexp(0.0, -x)))


REFERENCES: dict[str, Reference] = {"scff": scff}
