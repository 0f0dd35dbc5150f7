"""The end-to-end references: one loss on the last layer, then backpropagation written out, sample by sample.

bp-clapp++: the score loss of the last layer (see ``scores``); its reference is a constant.

bp-infonce: u_i = W h_i for both views (a then b), cos_ij = u_i·v_j / (max(|u_i|, eps) max(|v_j|, eps)) with i from view
a and j from view b, and

    L = -1/n Σ_i log softmax_j(cos_ij / τ) at j = i.

With P the row-wise softmax, dL/dcos_ij = (P_ij - [i = j]) / (n τ) and, for a norm above eps,
dcos_ij/du_i = (v̂_j - cos_ij û_i) / |u_i|, a hat for length one; v likewise.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from localssl.oracle.layers import Array, Block, Trace, forward_all, gate, hebbian, read, spread, to_input
from localssl.oracle.result import Reference, Result, Task
from localssl.oracle.scores import ScoreLoss, score_layer


def backpropagate(
    blocks: Sequence[Block], traces: Sequence[Sequence[Trace]], signals: Sequence[Array]
) -> list[dict[str, Array]]:
    """Gradients of all blocks from dL/dz of the last one, per sample: δ = unpooled dL/dz · ρ'(a), dL/dz_in = Wᵀδ."""
    weights = [np.zeros_like(block.weight) for block in blocks]
    biases = [np.zeros(len(block.weight)) for block in blocks]
    for trace, signal in zip(traces, signals, strict=True):
        back = signal
        for layer in reversed(range(len(blocks))):
            delta = gate(trace[layer], back)
            d_weight, d_bias = hebbian(blocks[layer], trace[layer], delta)
            weights[layer] += d_weight
            biases[layer] += d_bias
            back = to_input(blocks[layer], trace[layer], delta)
    return [
        {"weight": w} if block.bias is None else {"weight": w, "bias": b}
        for block, w, b in zip(blocks, weights, biases, strict=True)
    ]


def bp_scores(task: Task, spatial: bool = False, f: str = "hinge", loss_type: int = 2, margin: float = 1.0) -> Result:
    """bp-clapp++: the last layer's score loss, averaged over all positions unless ``spatial``."""
    patch = task.patches[-1] if spatial else None
    traces = [forward_all(task.blocks, sample, task.norm) for sample in task.samples]
    z = [read(t[-1].z, patch) for t in traces]
    c = np.stack(z) if task.references is None else task.references["lateral"][0]
    update = score_layer(
        ScoreLoss(f, loss_type, margin), z, c, task.projections["lateral"][0], [int(i) for i in task.negatives]
    )
    per_sample = [np.zeros_like(v) for v in z]
    for pairs in update.signals:
        for j, signal in pairs:
            per_sample[j] = per_sample[j] + signal
    signals = [spread(s, t[-1].z.shape, patch) for s, t in zip(per_sample, traces, strict=True)]
    grads = backpropagate(task.blocks, traces, signals)
    return Result(np.array([update.loss]), grads, {"lateral": [update.projection]}, {"lateral": [c]})


def bp_infonce(task: Task, temperature: float = 0.1, projection_dim: int | None = None, eps: float = 1e-9) -> Result:
    """bp-infonce: cosine similarities of the projected views, cross-entropy of the rows (view a) on the diagonal."""
    head = task.projections["head"][0]
    if projection_dim not in (None, len(head)):
        raise ValueError(f"projection_dim {projection_dim}, but the head has {len(head)} outputs")
    traces = [forward_all(task.blocks, sample, task.norm) for sample in task.samples]
    h = [read(t[-1].z, None) for t in traces]
    u = [np.array([float(row @ v) for row in head]) for v in h]
    norms = [max(float(np.sqrt(v @ v)), eps) for v in u]
    unit = [v / norm for v, norm in zip(u, norms, strict=True)]
    n = len(h) // 2

    loss = 0.0
    d_u = [np.zeros(len(head)) for _ in u]
    for i in range(n):
        cos = np.array([float(unit[i] @ unit[n + j]) for j in range(n)])
        logits = cos / temperature
        log_total = float(logits.max() + np.log(np.exp(logits - logits.max()).sum()))
        loss += log_total - logits[i]
        for j in range(n):
            d_cos = (np.exp(logits[j] - log_total) - (i == j)) / (n * temperature)
            for one, other in ((i, n + j), (n + j, i)):
                along = cos[j] * unit[one] if norms[one] > eps else 0.0  # a clamped norm is a constant
                d_u[one] += d_cos * (unit[other] - along) / norms[one]

    d_head = np.zeros_like(head)
    signals: list[Array] = []
    for d, v, trace in zip(d_u, h, traces, strict=True):
        d_head += np.outer(d, v)
        signals.append(spread(d @ head, trace[-1].z.shape, None))
    return Result(np.array([loss / n]), backpropagate(task.blocks, traces, signals), {"head": [d_head]})


REFERENCES: dict[str, Reference] = {"bp-clapp++": bp_scores, "bp-infonce": bp_infonce}
