"""The optimum of Definition 3.4 by its formulas, sample by sample.

With v_j = 2 · 2n · (e_j − t_j), averaged over each patch of the readout, the distance 2n Σ_j |e_j − t_j|² changes with
g_i = B c_i by

    type 2:  1/2n [ −γ⁺ v_pos + f''(s_pos)(v_pos·g) z_pos + γ⁻ v_neg + f''(−s_neg)(v_neg·g) z_neg ]
    type 1:  1/2n [ γ (v_neg − v_pos) + f''(s_pos − s_neg)((v_pos − v_neg)·g)(z_pos − z_neg) ]

and with B by the sum over i of that times c_iᵀ; f'' = −dγ/ds, 0 for the hinge and for a linear f.
"""

from __future__ import annotations

import numpy as np

from localssl.oracle.layers import Array, forward_all, gate, read, spread, to_input
from localssl.oracle.result import Reference, Result, Task, partner
from localssl.oracle.scores import ScoreLoss, local_scores, score_layer


def optimum(task: Task, f: str = "hinge", loss_type: int = 2, margin: float = 1.0) -> Result:
    """Losses and block gradients are those of direct feedback; the gradients of B are the distance's."""
    loss = ScoreLoss(f, loss_type, margin)
    result = local_scores(task, ("feedback",), False, f, loss_type, margin)
    traces = [forward_all(task.blocks, sample, task.norm) for sample in task.samples]
    samples, last = len(traces), len(task.blocks) - 1
    negatives = [int(i) for i in task.negatives]
    read_out = [[read(t[layer].z, task.patches[layer]) for t in traces] for layer in range(last + 1)]
    errors: list[list[Array]] = []
    for layer in range(last + 1):
        c = result.references["feedback"][layer]
        update = score_layer(loss, read_out[layer], c, task.projections["feedback"][layer], negatives)
        own = [np.zeros_like(z) for z in read_out[layer]]
        for pairs in update.signals:
            for j, signal in pairs:
                own[j] = own[j] + signal
        errors.append([spread(s, t[layer].z.shape, task.patches[layer]) for s, t in zip(own, traces, strict=True)])
    targets = list(errors[last])
    for layer in range(last - 1, -1, -1):
        targets = [
            to_input(task.blocks[layer + 1], t[layer + 1], gate(t[layer + 1], target))
            for t, target in zip(traces, targets, strict=True)
        ]
        away = [
            read(2 * samples * (e - target), task.patches[layer])
            for e, target in zip(errors[layer], targets, strict=True)
        ]
        b, c = task.projections["feedback"][layer], result.references["feedback"][layer]
        result.projection_grads["feedback"][layer] = _toward(loss, b, c, read_out[layer], away, negatives)
    return result


def _toward(loss: ScoreLoss, b: Array, c: Array, z: list[Array], away: list[Array], negatives: list[int]) -> Array:
    samples = len(z)
    total: Array = np.zeros(b.shape)
    for i in range(samples):
        pos, neg = partner(i, samples), partner(negatives[i], samples)
        g = np.array([float(row @ c[i]) for row in b])
        s_pos, s_neg = float(z[pos] @ g), float(z[neg] @ g)
        _, gamma_pos, gamma_neg = loss.sample(s_pos, s_neg)
        change: Array = gamma_neg * away[neg] - gamma_pos * away[pos]
        if loss.loss_type == 1:
            bend = _curvature(loss, s_pos - s_neg)
            change = change + bend * float((away[pos] - away[neg]) @ g) * (z[pos] - z[neg])
        else:
            change = change + _curvature(loss, s_pos) * float(away[pos] @ g) * z[pos]
            change = change + _curvature(loss, -s_neg) * float(away[neg] @ g) * z[neg]
        for j in range(len(total)):
            total[j] += change[j] * c[i] / samples
    return total


def _curvature(loss: ScoreLoss, x: float) -> float:
    """f''(x)."""
    if loss.f != "softplus":
        return 0.0
    gamma = loss.modulator(x)
    return gamma * (1 - gamma)


REFERENCES: dict[str, Reference] = {"optimum": optimum}
