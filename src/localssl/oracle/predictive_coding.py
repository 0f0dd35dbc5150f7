"""Predictive coding with its inference written out: loops over steps, samples and blocks.

With μ^l = block_l(h^(l−1)), ε^l = h^l − μ^l for l < L and ε^L = −N dloss/dμ^L, a step of inference is

    v^l ← m v^l + ε^l − (∂μ^(l+1)/∂h^l)ᵀ ε^(l+1),    h^l ← h^l − η_h v^l

and dF/dW^l / N = −1/N Σ_samples ε^l ∂μ^l/∂W^l. Through learnt feedback the transposed derivative has W_fb for W, and
W_fb gets the update of W.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import numpy as np

from localssl.oracle.layers import Array, Block, Trace, forward, gate, hebbian, read, spread, to_input
from localssl.oracle.objectives import OBJECTIVES, Top
from localssl.oracle.result import Reference, Result, Task


def pc(
    task: Task,
    incremental: bool,
    steps: int | None = None,
    objective: str = "clapp",
    eta_h: float = 0.1,
    momentum: float = 0.5,
    learnt_feedback: bool = False,
    classes: int | None = None,
) -> Result:
    """The losses of the forward pass; the update at the last states, or the sum of those at all (incremental)."""
    if task.norm is not None:
        raise ValueError("no derivative of a norm is written here")
    steps = steps or (9 if incremental else 8)
    count, last = len(task.samples), len(task.blocks) - 1
    back: list[Block] = list(task.blocks)
    if learnt_feedback:
        matrices = [np.array(w, dtype=np.float64) for w in task.projections["backward"]]
        back = [dataclasses.replace(b, weight=w) for b, w in zip(task.blocks, matrices, strict=True)]
    states: list[list[Array]] = []  # per sample, h^1 .. h^(L-1)
    for sample in task.samples:
        own: list[Array] = []
        for block in task.blocks[:-1]:
            own.append(forward(block, own[-1] if own else sample).z)
        states.append(own)
    velocities = [[np.zeros_like(h) for h in own] for own in states]
    grads = [
        {k: np.zeros_like(v) for k, v in (("weight", b.weight), ("bias", b.bias)) if v is not None} for b in task.blocks
    ]
    parts: dict[str, list[Array]] = {}
    first: float | None = None
    for t in range(steps + (0 if incremental else 1)):
        traces = [
            [forward(block, h) for block, h in zip(task.blocks, [sample, *own], strict=True)]
            for sample, own in zip(task.samples, states, strict=True)
        ]
        top: Top = OBJECTIVES[objective](task, [read(trace[-1].z, None) for trace in traces])
        first = top.loss if first is None else first
        errors = [
            [
                *(h - trace[layer].z for layer, h in enumerate(own)),
                -count * spread(signal, trace[-1].z.shape, None),
            ]
            for own, trace, signal in zip(states, traces, top.signals, strict=True)
        ]
        if incremental or t == steps:
            _learn(task.blocks, traces, errors, grads)
            for key, changes in top.parts.items():
                parts[key] = [a + b for a, b in zip(parts[key], changes, strict=True)] if key in parts else changes
        for i in range(count):
            for layer in range(last):
                above = traces[i][layer + 1]
                down = to_input(back[layer + 1], above, gate(above, errors[i][layer + 1]))
                velocities[i][layer] = momentum * velocities[i][layer] + errors[i][layer] - down
                states[i][layer] = states[i][layer] - eta_h * velocities[i][layer]
    assert first is not None
    if learnt_feedback:
        parts["backward"] = [g["weight"].copy() for g in grads]
    return Result(np.array([first]), grads, parts)


def _learn(
    blocks: list[Block], traces: list[list[Trace]], errors: list[list[Array]], grads: list[dict[str, Array]]
) -> None:
    """Add dF/dW / N of every block."""
    for trace, error in zip(traces, errors, strict=True):
        for layer, block in enumerate(blocks):
            weight, bias = hebbian(block, trace[layer], gate(trace[layer], -error[layer] / len(traces)))
            grads[layer]["weight"] += weight
            if "bias" in grads[layer]:
                grads[layer]["bias"] += bias


REFERENCES: dict[str, Reference] = {"pc": partial(pc, incremental=False), "ipc": partial(pc, incremental=True)}
