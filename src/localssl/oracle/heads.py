"""End-to-end references with a head on the last readout h, averaged over all positions, sample by sample.

bp: logits a = H h, P = softmax(a), y the image's label for both of its views:

    L = -1/2n Σ_i log P_i,y      dL/da_i = (P_i - onehot y) / 2n

bp-simclr: u = H₁ h, p = H₂ max(0, u), p̂ = p / max(|p|, eps), s_ij = p̂_i·p̂_j / τ, P_i the softmax over j ≠ i, i' the
other view of i:

    L = -1/2n Σ_i log P_i,i'     dL/ds_ij = (P_ij - [j = i']) / 2n

and s_ij reaches both p_i and p_j, each by d p̂/dp = (1 - p̂ p̂ᵀ) / |p|.
"""

from __future__ import annotations

import math

import numpy as np

from localssl.oracle.end_to_end import backpropagate
from localssl.oracle.layers import Array, forward_all, read, spread
from localssl.oracle.result import Reference, Result, Task, partner


def _softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    parts = [math.exp(value - top) for value in logits]
    total = sum(parts)
    return [part / total for part in parts]


def bp(task: Task, classes: int | None = None) -> Result:
    """bp: cross-entropy of a linear head."""
    head = task.projections["head"][0]
    if classes not in (None, len(head)):
        raise ValueError(f"{classes} classes, but the head has {len(head)} outputs")
    if task.labels is None:
        raise ValueError("bp needs labels")
    traces = [forward_all(task.blocks, sample, task.norm) for sample in task.samples]
    samples, n = len(traces), len(task.labels)
    loss = 0.0
    d_head = np.zeros_like(head)
    signals: list[Array] = []
    for i, trace in enumerate(traces):
        h, label = read(trace[-1].z, None), int(task.labels[i % n])
        p = _softmax([float(row @ h) for row in head])
        loss -= math.log(p[label]) / samples
        back = np.zeros(len(h))
        for k, share in enumerate(p):
            error = (share - (k == label)) / samples
            d_head[k] += error * h
            back += error * head[k]
        signals.append(spread(back, trace[-1].z.shape, None))
    return Result(np.array([loss]), backpropagate(task.blocks, traces, signals), {"head": [d_head]})


def bp_simclr(
    task: Task,
    temperature: float = 0.5,
    hidden: int | None = None,
    projection_dim: int | None = None,
    eps: float = 1e-9,
) -> Result:
    """bp-simclr: NT-Xent of a head with one hidden layer."""
    first, second = task.projections["hidden"][0], task.projections["head"][0]
    if hidden not in (None, len(first)) or projection_dim not in (None, len(second)):
        raise ValueError(f"a head of {hidden} and {projection_dim}, but it has {len(first)} and {len(second)} outputs")
    traces = [forward_all(task.blocks, sample, task.norm) for sample in task.samples]
    h = [read(t[-1].z, None) for t in traces]
    u = [np.array([float(row @ v) for row in first]) for v in h]
    p = [np.array([float(row @ np.where(v > 0, v, 0.0)) for row in second]) for v in u]
    norms = [max(math.sqrt(float(v @ v)), eps) for v in p]
    unit = [v / norm for v, norm in zip(p, norms, strict=True)]
    samples = len(h)

    loss = 0.0
    d_unit = [np.zeros(len(second)) for _ in p]
    for i in range(samples):
        others = [j for j in range(samples) if j != i]
        shares = _softmax([float(unit[i] @ unit[j]) / temperature for j in others])
        for j, share in zip(others, shares, strict=True):
            if j == partner(i, samples):
                loss -= math.log(share) / samples
            d_score = (share - (j == partner(i, samples))) / (samples * temperature)
            d_unit[i] += d_score * unit[j]
            d_unit[j] += d_score * unit[i]

    d_first, d_second = np.zeros_like(first), np.zeros_like(second)
    signals: list[Array] = []
    for i, trace in enumerate(traces):
        along = float(d_unit[i] @ unit[i]) * unit[i] if norms[i] > eps else 0.0  # a clamped norm is a constant
        d_p = (d_unit[i] - along) / norms[i]
        d_second += np.outer(d_p, np.where(u[i] > 0, u[i], 0.0))
        d_u = np.where(u[i] > 0, d_p @ second, 0.0)
        d_first += np.outer(d_u, h[i])
        signals.append(spread(d_u @ first, trace[-1].z.shape, None))
    grads = backpropagate(task.blocks, traces, signals)
    return Result(np.array([loss]), grads, {"hidden": [d_first], "head": [d_second]})


REFERENCES: dict[str, Reference] = {"bp": bp, "bp-simclr": bp_simclr}
