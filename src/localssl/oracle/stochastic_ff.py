"""Stochastic Forward-Forward with its second moments written out.

For samples y_s of k channels, C = Σ_s y_s y_sᵀ/(S - 1), t = tr C, q = |C|_F² + 1e-6 and ED = t²/q,

    dED/dy_s = 2/(S - 1) (2 t/q · y_s - 2 t²/q² · C y_s)

y = P z at every position, P fixed. L = 1/2n Σ_b ED(copies and positions of b) - ½ ED(images and positions of the mean
over copies); the mean hands 1/copies of its signal to every copy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from localssl.oracle.layers import Array, LinearBlock, Trace, batch_normalised, forward, gate, hebbian
from localssl.oracle.result import Reference, Result, Task


def stochastic_ff(
    task: Task,
    copies: int = 4,
    dropout: float = 0.2,
    channels: int | Sequence[int] = (30, 20, 10),
    paired: bool = False,
) -> Result:
    """Losses and gradients; samples are copy by copy, (copies * n, ...). Dropout and channels have had their effect.

    ``paired`` is the encoder's: the first block has no norm, as images are normalised before they are made noisy.
    """
    traces: list[list[Trace]] = [[] for _ in task.samples]
    entering = list(task.samples)
    if isinstance(task.blocks[0], LinearBlock):
        entering = [x.reshape(-1) for x in entering]
    for number, block in enumerate(task.blocks):
        given = entering if paired and number == 0 else batch_normalised(entering, task.norm)
        for trace, x in zip(traces, given, strict=True):
            trace.append(forward(block, x))
        entering = [trace[-1].z for trace in traces]
    n = len(traces) // copies
    result = Result(np.zeros(len(task.blocks)), [], {})
    for layer, block in enumerate(task.blocks):
        fixed = task.projections["channels"][layer]
        places = list(np.ndindex(traces[0][layer].z.shape[1:]))
        y = {  # (copy, image, position)
            (i // n, i % n, p): np.array([float(row @ sample[layer].z[(slice(None), *p)]) for row in fixed])
            for i, sample in enumerate(traces)
            for p in places
        }
        signals = {key: np.zeros(len(fixed)) for key in y}
        for b in range(n):
            own = [key for key in y if key[1] == b]
            value, slopes = _dimension([y[key] for key in own])
            result.losses[layer] += 0.5 * value / n
            for key, slope in zip(own, slopes, strict=True):
                signals[key] = signals[key] + 0.5 * slope / n
        spots = [(b, p) for b in range(n) for p in places]
        means = [sum((y[(k, *spot)] for k in range(copies)), np.zeros(len(fixed))) / copies for spot in spots]
        value, slopes = _dimension(means)
        result.losses[layer] -= 0.5 * value
        for spot, slope in zip(spots, slopes, strict=True):
            for k in range(copies):
                signals[(k, *spot)] = signals[(k, *spot)] - 0.5 * slope / copies
        d_weight, d_bias = np.zeros_like(block.weight), np.zeros(len(block.weight))
        for i, sample in enumerate(traces):
            at_z = np.zeros_like(sample[layer].z)
            for p in places:
                for row, value in zip(fixed, signals[(i // n, i % n, p)], strict=True):
                    at_z[(slice(None), *p)] += value * row
            change = hebbian(block, sample[layer], gate(sample[layer], at_z))
            d_weight, d_bias = d_weight + change[0], d_bias + change[1]
        result.block_grads.append({"weight": d_weight} | ({} if block.bias is None else {"bias": d_bias}))
    return result


def _dimension(samples: list[Array]) -> tuple[float, list[Array]]:
    """ED and its derivative by every sample."""
    k, over = len(samples[0]), len(samples) - 1
    c = np.zeros((k, k))
    for y in samples:
        for i in range(k):
            c[i] += y[i] * y / over
    t = sum(float(c[i, i]) for i in range(k))
    q = sum(float(v) ** 2 for v in c.flat) + 1e-6
    return t * t / q, [2 / over * (2 * t / q * y - 2 * t * t / q**2 * (c @ y)) for y in samples]


REFERENCES: dict[str, Reference] = {"stochastic-ff": stochastic_ff}
