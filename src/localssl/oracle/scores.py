"""The CLAPP family by its three factors, sample by sample (paper equations of type 1 and type 2, 3 and 6).

Sample i has the reference c_i (its own view), the positive z_pos (the other view of its image) and the negative z_neg.
With the dendritic prediction g_i = B c_i the scores are s_pos = z_pos·g_i and s_neg = z_neg·g_i, and

    type 2:  L = 1/2n Σ_i f(s_pos) + f(-s_neg)      γ⁺ = -f'(s_pos),         γ⁻ = -f'(-s_neg)
    type 1:  L = 1/2n Σ_i f(s_pos - s_neg)          γ⁺ = γ⁻ = -f'(s_pos - s_neg)

so that sample i asks for the changes (minus the gradient, times 2n)

    ΔB  = γ⁺ z_pos c_iᵀ - γ⁻ z_neg c_iᵀ
    ΔW  = γ⁺ H_pos(g_i) - γ⁻ H_neg(g_i),    H(g)_jk = Σ over positions of g_j ρ'(a_j) z_in,k

where g is first spread over its patch (1/p²) and unpooled to the winners of the max-pool. c_i is a constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from localssl.oracle.layers import Array, Block, Trace, forward_all, gate, hebbian, read, spread
from localssl.oracle.result import Reference, Result, Task, partner


@dataclass(frozen=True)
class ScoreLoss:
    """f and the type: hinge max(0, m - x), softplus log(1 + exp(m - x)), linear -x."""

    f: str = "hinge"
    loss_type: int = 2
    margin: float = 1.0

    def value(self, x: float) -> float:
        """f(x)."""
        if self.f == "hinge":
            return max(0.0, self.margin - x)
        if self.f == "softplus":
            return float(np.logaddexp(0.0, self.margin - x))
        if self.f == "linear":
            return -x
        raise ValueError(f"no such f: {self.f!r}")

    def modulator(self, x: float) -> float:
        """-f'(x), never negative; 0 at the hinge's kink."""
        if self.f == "hinge":
            return 1.0 if x < self.margin else 0.0
        if self.f == "softplus":
            return float(np.exp(-np.logaddexp(0.0, x - self.margin)))  # σ(m - x) without overflow
        if self.f == "linear":
            return 1.0
        raise ValueError(f"no such f: {self.f!r}")

    def sample(self, s_pos: float, s_neg: float) -> tuple[float, float, float]:
        """One sample's loss, γ⁺ and γ⁻."""
        if self.loss_type == 1:
            gamma = self.modulator(s_pos - s_neg)
            return self.value(s_pos - s_neg), gamma, gamma
        if self.loss_type == 2:
            return self.value(s_pos) + self.value(-s_neg), self.modulator(s_pos), self.modulator(-s_neg)
        raise ValueError(f"no such loss type: {self.loss_type!r}")


@dataclass
class LayerUpdate:
    """One score loss at one layer: its value, dL/dB, and what it sends to each sample's activity.

    Attributes:
        loss: mean over the 2n samples.
        projection: dL/dB, (d_z, d_c).
        signals: per sample i, the pairs (j, dL/dz_j as far as it comes through i), on the read-out vector.
    """

    loss: float
    projection: Array
    signals: list[list[tuple[int, Array]]]


def score_layer(
    loss: ScoreLoss, z: Sequence[Array], c: Array, projection: Array, negatives: Sequence[int]
) -> LayerUpdate:
    """Scores, modulators and the first two factors of every sample, for read-out activities z and references c."""
    samples = len(z)
    total = 0.0
    change = np.zeros_like(projection)
    signals: list[list[tuple[int, Array]]] = []
    for i in range(samples):
        pos = partner(i, samples)
        neg = partner(int(negatives[i]), samples)  # the negative is one of the positives
        g = np.array([float(row @ c[i]) for row in projection])
        value, gamma_pos, gamma_neg = loss.sample(float(z[pos] @ g), float(z[neg] @ g))
        total += value
        for j in range(len(g)):
            change[j] += (gamma_pos * z[pos][j] - gamma_neg * z[neg][j]) * c[i]
        signals.append([(pos, -gamma_pos * g / samples), (neg, gamma_neg * g / samples)])
    return LayerUpdate(total / samples, -change / samples, signals)


def three_factor(
    block: Block, traces: Sequence[Trace], patch: int | None, updates: Sequence[LayerUpdate]
) -> dict[str, Array]:
    """dL/dW and dL/dbias of one block: the Hebbian term of every (sample, positive) and (sample, negative) pair."""
    weight = np.zeros_like(block.weight)
    bias = np.zeros(len(block.weight))
    for update in updates:
        for pairs in update.signals:
            for j, signal in pairs:
                if not np.any(signal):
                    continue
                delta = gate(traces[j], spread(signal, traces[j].z.shape, patch))
                d_weight, d_bias = hebbian(block, traces[j], delta)
                weight += d_weight
                bias += d_bias
    return {"weight": weight} if block.bias is None else {"weight": weight, "bias": bias}


def local_scores(
    task: Task, keys: tuple[str, ...], pooled: bool, f: str = "hinge", loss_type: int = 2, margin: float = 1.0
) -> Result:
    """Every layer its own loss: the sum, over ``keys``, of one score loss each.

    The reference of layer l is its own activity under "lateral", the last layer's under "feedback".
    ``pooled`` averages over all positions whatever the patches.
    """
    loss = ScoreLoss(f, loss_type, margin)
    patches: list[int | None] = [None] * len(task.blocks) if pooled else task.patches
    traces = [forward_all(task.blocks, sample, task.norm) for sample in task.samples]
    last = len(task.blocks) - 1
    read_out = [[read(t[layer].z, patches[layer]) for t in traces] for layer in range(last + 1)]
    result = Result(np.zeros(last + 1), [], {key: [] for key in keys}, {key: [] for key in keys})
    for layer, block in enumerate(task.blocks):
        updates: list[LayerUpdate] = []
        for key in keys:
            source = {"lateral": layer, "feedback": last}[key]
            c = np.stack(read_out[source]) if task.references is None else task.references[key][layer]
            update = score_layer(
                loss, read_out[layer], c, task.projections[key][layer], [int(i) for i in task.negatives]
            )
            updates.append(update)
            result.losses[layer] += update.loss
            result.projection_grads[key].append(update.projection)
            result.references[key].append(c)
        result.block_grads.append(three_factor(block, [t[layer] for t in traces], patches[layer], updates))
    return result


REFERENCES: dict[str, Reference] = {
    "clapp": partial(local_scores, keys=("lateral",), pooled=True),
    "clapp++": partial(local_scores, keys=("lateral",), pooled=False),
    "clapp++dfb": partial(local_scores, keys=("feedback",), pooled=False),
    "clapp++both": partial(local_scores, keys=("lateral", "feedback"), pooled=False),
}
