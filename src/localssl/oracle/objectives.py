"""Losses of the last layer's readout, with what they send to it and to their own parts, sample by sample.

clapp: the score loss (see ``scores``) with the sample's own readout as the reference.

lpl: with m the batch means, v the variances and C the covariances of one view (divisor n − 1),

    d pull / dz_a = 2 (z_a − z_b) / (n d)                      and minus that for z_b
    d push / dz_bi = −1/2 · 1/d · 2 (z_bi − m_i) / ((n − 1)(v_i + 1e-4))
    d decorrelation / dz_bi = 1/2 · 1/(d² − d) · 4 Σ_{k≠i} C_ik (z_bk − m_k) / (n − 1)

with 1/2 from the average over views; the means are constants (their derivatives would sum to 0 anyway).

ce: −1/2n Σ_i log softmax(H z_i) at the image's label: (P_ic − [c = label]) / 2n on the logits, and from there down by
Hᵀ, or by the transpose of backward weights where there are some, whose update is H's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from localssl.oracle.layers import Array
from localssl.oracle.result import Task
from localssl.oracle.scores import ScoreLoss, score_layer


@dataclass(frozen=True)
class Top:
    """A loss at the last layer: its value, dL/dz of every sample, and the gradients of its own parts."""

    loss: float
    signals: list[Array]
    parts: dict[str, list[Array]]


def clapp(task: Task, z: list[Array], loss: ScoreLoss | None = None, c: Array | None = None) -> Top:
    """The score loss of the last layer, B^L = projections["lateral"][0]; ``c`` holds the references."""
    held = np.stack(z) if c is None else c
    b = task.projections["lateral"][0]
    update = score_layer(loss or ScoreLoss(), z, held, b, [int(i) for i in task.negatives])
    signals = [np.zeros_like(v) for v in z]
    for pairs in update.signals:
        for j, signal in pairs:
            signals[j] = signals[j] + signal
    return Top(update.loss, signals, {"lateral": [update.projection]})


def lpl(task: Task, z: list[Array]) -> Top:
    """pull + push + 10 decorrelation of the two views' readouts."""
    n, d = len(z) // 2, len(z[0])
    pairs = max(d * d - d, 1)
    signals = [np.zeros(d) for _ in z]
    pull = push = decorrelation = 0.0
    for b in range(n):
        for i in range(d):
            gap = float(z[b][i] - z[n + b][i])
            pull += gap * gap / (n * d)
            signals[b][i] += 2 * gap / (n * d)
            signals[n + b][i] -= 2 * gap / (n * d)
    for view in (range(n), range(n, 2 * n)):
        mean = [sum(float(z[b][i]) for b in view) / n for i in range(d)]
        covariance = np.zeros((d, d))
        for i in range(d):
            for k in range(d):
                covariance[i, k] = sum(float((z[b][i] - mean[i]) * (z[b][k] - mean[k])) for b in view) / (n - 1)
        for i in range(d):
            push -= math.log(covariance[i, i] + 1e-4) / d / 2
            decorrelation += sum(covariance[i, k] ** 2 for k in range(d) if k != i) / pairs / 2
            for b in view:
                signals[b][i] -= float(z[b][i] - mean[i]) / (d * (n - 1) * (covariance[i, i] + 1e-4))
                pushed = sum(covariance[i, k] * float(z[b][k] - mean[k]) for k in range(d) if k != i)
                signals[b][i] += 10 * 2 * pushed / (pairs * (n - 1))
    return Top(pull + push + 10 * decorrelation, signals, {})


def cross_entropy(task: Task, z: list[Array]) -> Top:
    """Cross-entropy of the linear head projections["head"][0], (classes, d)."""
    if task.labels is None:
        raise ValueError("cross-entropy needs labels")
    head = task.projections["head"][0]
    feedback = task.projections.get("backward_head")
    way = head if feedback is None else feedback[0]
    loss, change = 0.0, np.zeros_like(head)
    signals: list[Array] = []
    for i, v in enumerate(z):
        label = int(task.labels[i % (len(z) // 2)])
        logits = np.array([float(row @ v) for row in head])
        total = float(logits.max() + np.log(np.exp(logits - logits.max()).sum()))
        loss += (total - float(logits[label])) / len(z)
        error = np.exp(logits - total) / len(z)
        error[label] -= 1 / len(z)
        for c, e in enumerate(error):
            change[c] += e * v
        signals.append(np.array([float(column @ error) for column in way.T]))
    parts = {"head": [change]} | ({} if feedback is None else {"backward_head": [change.copy()]})
    return Top(loss, signals, parts)


OBJECTIVES = {"clapp": clapp, "lpl": lpl, "ce": cross_entropy}
