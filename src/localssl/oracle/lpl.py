"""LPL by its per-sample rule (Halvagal & Zenke 2023, erratum), with loops over samples and units.

Per view, with m_i and C_ik the batch's means and covariances (n - 1), a constant mean, and d units:

    L = α/(n d) Σ_bi (z_bi - z'_bi)² + ½ Σ_views [ -β/d Σ_i log(C_ii + ε) + λ/(d² - d) Σ_{i≠k} C_ik² ]

    dL/dz_bi = 2α/(n d) (z_bi - z'_bi) + ½ · 2/(n - 1) [ -β/d (z_bi - m_i)/(C_ii + ε)
                                                         + 2λ/(d² - d) Σ_{k≠i} C_ik (z_bk - m_k) ]
"""

from __future__ import annotations

import math

import numpy as np

from localssl.oracle.end_to_end import backpropagate
from localssl.oracle.layers import Array, forward_all, read, spread
from localssl.oracle.result import Reference, Result, Task
from localssl.oracle.scores import LayerUpdate, three_factor


def layer(z: list[Array], pull: float, push: float, decorrelation: float, eps: float) -> tuple[float, list[Array]]:
    """Loss of one layer and dL/dz per sample, for readouts z: n of view a, then n of view b."""
    n, d = len(z) // 2, len(z[0])
    signals = [np.zeros(d) for _ in z]
    loss = 0.0
    for b in range(n):
        for i in range(d):
            apart = float(z[b][i] - z[n + b][i])
            loss += pull * apart**2 / (n * d)
            signals[b][i] += 2 * pull * apart / (n * d)
            signals[n + b][i] -= 2 * pull * apart / (n * d)
    pairs = d * d - d
    for view in (range(n), range(n, 2 * n)):
        mean = [sum(float(z[b][i]) for b in view) / n for i in range(d)]
        c = [
            [sum(float((z[b][i] - mean[i]) * (z[b][k] - mean[k])) for b in view) / (n - 1) for k in range(d)]
            for i in range(d)
        ]
        for i in range(d):
            loss -= 0.5 * push / d * math.log(c[i][i] + eps)
            loss += sum(0.5 * decorrelation / pairs * c[i][k] ** 2 for k in range(d) if k != i)
        for b in view:
            for i in range(d):
                change = -push / d * float(z[b][i] - mean[i]) / (c[i][i] + eps)
                for k in range(d):
                    if k != i:
                        change += 2 * decorrelation / pairs * c[i][k] * float(z[b][k] - mean[k])
                signals[b][i] += change / (n - 1)
    return loss, signals


def lpl(task: Task, pull: float = 1.0, push: float = 1.0, decorrelation: float = 10.0, eps: float = 1e-4) -> Result:
    """lpl: the loss at every block, whose update is post times pre."""
    traces = [forward_all(task.blocks, sample, task.norm) for sample in task.samples]
    result = Result(np.zeros(len(task.blocks)), [], {})
    for number, block in enumerate(task.blocks):
        own = [t[number] for t in traces]
        loss, signals = layer([read(t.z, None) for t in own], pull, push, decorrelation, eps)
        update = LayerUpdate(loss, np.zeros((0, 0)), [[(j, signal)] for j, signal in enumerate(signals)])
        result.losses[number] = loss
        result.block_grads.append(three_factor(block, own, None, [update]))
    return result


def bp_lpl(task: Task, pull: float = 1.0, push: float = 1.0, decorrelation: float = 10.0, eps: float = 1e-4) -> Result:
    """bp-lpl: the loss at the last block, backpropagated."""
    traces = [forward_all(task.blocks, sample, task.norm) for sample in task.samples]
    loss, signals = layer([read(t[-1].z, None) for t in traces], pull, push, decorrelation, eps)
    at_map = [spread(s, t[-1].z.shape, None) for s, t in zip(signals, traces, strict=True)]
    return Result(np.array([loss]), backpropagate(task.blocks, traces, at_map), {})


REFERENCES: dict[str, Reference] = {"lpl": lpl, "bp-lpl": bp_lpl}
