"""The last layer's score loss, its errors handed down by other weights than the forward ones, sample by sample.

dfa:   δ^l = F^l dL/dz^L on the readout of block l, spread over its positions; the last block at dL/dz^L.
fa:    backpropagation with W_fb where it has Wᵀ.
sign-symmetric: as fa, with sign(W)·|W_fb|, or sign(W) times the mean of |W_fb|.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import numpy as np

from localssl.oracle.layers import Array, Block, Trace, forward_all, gate, hebbian, read, spread, to_input
from localssl.oracle.objectives import clapp
from localssl.oracle.result import Reference, Result, Task
from localssl.oracle.scores import ScoreLoss


def _start(task: Task, loss: ScoreLoss, patch: int | None) -> tuple[list[list[Trace]], Result, list[Array]]:
    """Forward passes, a result without block gradients, and dL/dz of every sample's last readout."""
    traces = [forward_all(task.blocks, sample, task.norm) for sample in task.samples]
    z = [read(t[-1].z, patch) for t in traces]
    c = np.stack(z) if task.references is None else task.references["lateral"][0]
    top = clapp(task, z, loss, c)
    return traces, Result(np.array([top.loss]), [], dict(top.parts), {"lateral": [c]}), top.signals


def dfa(
    task: Task,
    per_position: bool = False,
    spatial: bool = False,
    f: str = "hinge",
    loss_type: int = 2,
    margin: float = 1.0,
) -> Result:
    """Direct feedback alignment through projections["direct"]."""
    last = len(task.blocks) - 1
    patches: list[int | None] = [1 if per_position else None] * last + [task.patches[-1] if spatial else None]
    traces, result, tops = _start(task, ScoreLoss(f, loss_type, margin), patches[-1])
    for layer, block in enumerate(task.blocks):
        grads = _zeros(block)
        for trace, top in zip(traces, tops, strict=True):
            error = top
            if layer < last:
                error = np.array([float(row @ top) for row in task.projections["direct"][layer]])
            t = trace[layer]
            _add(grads, block, t, gate(t, spread(error, t.z.shape, patches[layer])))
        result.block_grads.append(grads)
    return result


def fa(
    task: Task,
    signs: bool,
    magnitudes: str = "fixed",
    spatial: bool = False,
    f: str = "hinge",
    loss_type: int = 2,
    margin: float = 1.0,
) -> Result:
    """Feedback alignment through projections["backward"], one a block."""
    if task.norm is not None:
        raise ValueError("no derivative of a norm is written here")
    patch = task.patches[-1] if spatial else None
    traces, result, tops = _start(task, ScoreLoss(f, loss_type, margin), patch)
    result.block_grads.extend(_zeros(block) for block in task.blocks)
    back: list[Block] = []
    for block, weight in zip(task.blocks, task.projections["backward"], strict=True):
        other = np.array(weight, dtype=np.float64)
        if signs:
            size = np.full(other.shape, np.abs(other).sum() / other.size) if magnitudes == "uniform" else np.abs(other)
            other = np.where(block.weight > 0, size, np.where(block.weight < 0, -size, 0.0))
        back.append(dataclasses.replace(block, weight=other))
    for trace, top in zip(traces, tops, strict=True):
        error = spread(top, trace[-1].z.shape, patch)
        for layer in reversed(range(len(task.blocks))):
            delta = gate(trace[layer], error)
            _add(result.block_grads[layer], task.blocks[layer], trace[layer], delta)
            error = to_input(back[layer], trace[layer], delta)
    return result


def _zeros(block: Block) -> dict[str, Array]:
    grads = {"weight": np.zeros_like(block.weight)}
    return grads if block.bias is None else grads | {"bias": np.zeros(len(block.weight))}


def _add(grads: dict[str, Array], block: Block, trace: Trace, delta: Array) -> None:
    weight, bias = hebbian(block, trace, delta)
    grads["weight"] += weight
    if "bias" in grads:
        grads["bias"] += bias


REFERENCES: dict[str, Reference] = {
    "dfa": dfa,
    "fa": partial(fa, signs=False, magnitudes="fixed"),
    "sign-symmetric": partial(fa, signs=True),
}
