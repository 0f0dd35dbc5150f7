"""Forward-Forward and PhyLL, sample by sample; the first half of the samples are positives, the second negatives.

Forward-Forward: with G = Σ z² over the D numbers of a block's output and N samples,

    L = 1/N [ Σ_pos log(1 + e^(θD - G)) + Σ_neg log(1 + e^(G - θD)) ]    dL/dz = -2z σ(θD - G) / N,  2z σ(G - θD) / N

and, with peer normalisation of weight λ, running means r, m = 0.9 r + 0.1 (mean of the positives' readout) and d units,
λ/d Σ_u (m̄ - m_u)², whose derivative with respect to m_u is 2λ (m_u - m̄) / d: what m̄ adds sums to zero.

PhyLL: with c = z·ξ / max(|z|, ε), pairs i of a positive and the negative below it, and P of them,

    L = 1/P Σ_i log(1 + e^(-θ (c_pos - c_neg)))    γ_i = σ(-θ (c_pos - c_neg)),  dL/dc_pos = -θγ/P,  dL/dc_neg = θγ/P

and dc/dz = (ξ - c z/|z|) / |z| for |z| > ε, else ξ/ε.
"""

from __future__ import annotations

import math

import numpy as np

from localssl.oracle.layers import Array, Trace, forward_all, gate, hebbian, read, spread
from localssl.oracle.result import Reference, Result, Task


def forward_forward(
    task: Task, threshold: float = 1.0, peer: float = 0.0, views: int = 2, blurs: int = 8, classes: int = 10
) -> Result:
    """ff and ff-supervised; what made the samples has no part in it. "peer" among the projections holds every r."""
    traces = [forward_all(task.blocks, sample, task.norm) for sample in task.samples]
    count = len(traces)
    losses = np.zeros(len(task.blocks))
    signals: list[list[Array]] = [[] for _ in task.blocks]
    for layer in range(len(task.blocks)):
        for i, trace in enumerate(traces):
            z = trace[layer].z
            excess = sum(float(v) * float(v) for v in z.flat) - threshold * z.size
            sign = -1.0 if i < count // 2 else 1.0
            losses[layer] += _log1pexp(sign * excess) / count
            signals[layer].append(sign * 2 * z * _sigmoid(sign * excess) / count)
        if peer:
            _add_peers(task, traces, layer, peer, losses, signals[layer])
    return Result(losses, _block_grads(task, traces, signals), {"peer": []} if peer else {})


def _add_peers(
    task: Task, traces: list[list[Trace]], layer: int, peer: float, losses: Array, signals: list[Array]
) -> None:
    positives = len(traces) // 2
    patch = task.patches[layer]
    read_out = [read(trace[layer].z, patch) for trace in traces[:positives]]
    before = task.projections["peer"][layer]
    d = len(before)
    m = [0.9 * float(before[u]) + 0.1 * sum(float(z[u]) for z in read_out) / positives for u in range(d)]
    mean = sum(m) / d
    losses[layer] += peer * sum((mean - value) ** 2 for value in m) / d
    along = np.array([2 * peer * (value - mean) / d * 0.1 / positives for value in m])
    for i in range(positives):
        signals[i] = signals[i] + spread(along, traces[i][layer].z.shape, patch)


def phyll(
    task: Task,
    theta: float = 4.0,
    views: int = 2,
    blurs: int = 8,
    labelled: bool = False,
    classes: int = 10,
    eps: float = 1e-6,
) -> Result:
    """phyll; "direction" among the projections holds every ξ. What the samples show was decided before."""
    traces = [forward_all(task.blocks, sample, task.norm) for sample in task.samples]
    pairs = len(traces) // 2
    losses = np.zeros(len(task.blocks))
    signals: list[list[Array]] = []
    for layer in range(len(task.blocks)):
        xi, patch = task.projections["direction"][layer], task.patches[layer]
        xi = xi / math.sqrt(sum(float(x) ** 2 for x in xi))  # it has length one to the digits of its own dtype only
        cosines: list[float] = []
        slopes: list[Array] = []
        for trace in traces:
            z = read(trace[layer].z, patch)
            length = math.sqrt(sum(float(v) * float(v) for v in z))
            cosine = sum(float(v) * float(x) for v, x in zip(z, xi, strict=True)) / max(length, eps)
            cosines.append(cosine)
            slopes.append((xi - cosine * z / length) / length if length > eps else xi / eps)
        own = [np.zeros_like(trace[layer].z) for trace in traces]
        for i in range(pairs):
            excess = theta * (cosines[pairs + i] - cosines[i])
            losses[layer] += _log1pexp(excess) / pairs
            modulator = theta * _sigmoid(excess) / pairs
            for j, sign in ((i, -1.0), (pairs + i, 1.0)):
                own[j] = spread(sign * modulator * slopes[j], own[j].shape, patch)
        signals.append(own)
    return Result(losses, _block_grads(task, traces, signals), {"direction": []})


def _block_grads(task: Task, traces: list[list[Trace]], signals: list[list[Array]]) -> list[dict[str, Array]]:
    """Post times pre, summed over the samples, for the signals on every block's output."""
    grads: list[dict[str, Array]] = []
    for layer, block in enumerate(task.blocks):
        weight, bias = np.zeros_like(block.weight), np.zeros(len(block.weight))
        for trace, signal in zip(traces, signals[layer], strict=True):
            d_weight, d_bias = hebbian(block, trace[layer], gate(trace[layer], signal))
            weight += d_weight
            bias += d_bias
        grads.append({"weight": weight} if block.bias is None else {"weight": weight, "bias": bias})
    return grads


def _log1pexp(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def _sigmoid(x: float) -> float:
    return math.exp(min(x, 0.0)) / (1 + math.exp(-abs(x)))


REFERENCES: dict[str, Reference] = {"ff": forward_forward, "ff-supervised": forward_forward, "phyll": phyll}
