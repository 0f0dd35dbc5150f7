"""SoftHebb, one position at a time.

u_k = w_k·x, p = softmax(t u), y_k = p_k for the largest u and -p_k for the others; D_k = Σ y_k (x - u_k w_k) over
samples and positions; ΔW_k = rate · | |w_k| - 1 |^½ · D_k / max|D|. The gradient handed back is -ΔW. The loss shown is
the mean entropy of softmax(t f), f the block's output.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from localssl.oracle.late import traces_of
from localssl.oracle.layers import Array, ConvBlock
from localssl.oracle.result import Reference, Result, Task
from localssl.oracle.scff import pick

PerLayer = float | Sequence[float]


def softhebb(
    task: Task,
    t: PerLayer = (1.0, 0.65, 0.25),
    rates: PerLayer = (8.0, 0.5, 1.0),
    late: bool = False,
    activation: str = "relu",
) -> Result:
    """Entropies and -ΔW; a bias stays."""
    traces = [traces_of(task.blocks, s, task.norm, late, False, activation) for s in task.samples]
    result = Result(np.zeros(len(task.blocks)), [], {})
    for layer, block in enumerate(task.blocks):
        heat, rows = pick(t, layer), block.weight.reshape(len(block.weight), -1)
        total = np.zeros_like(rows)
        places = 0
        for sample in traces:
            trace = sample[layer]
            for x in _patches(trace.z_in, block.weight.shape[-1] if isinstance(block, ConvBlock) else 0):
                u = [float(row @ x) for row in rows]
                p = _softmax([heat * v for v in u])
                winner = max(range(len(u)), key=lambda k, u=u: u[k])
                for k, row in enumerate(rows):
                    y = p[k] if k == winner else -p[k]
                    total[k] += y * (x - u[k] * row)
            for at in np.ndindex(trace.z.shape[1:]):
                p = _softmax([heat * float(v) for v in trace.z[(slice(None), *at)]])
                result.losses[layer] -= sum(v * math.log(v) for v in p if v > 0)
                places += 1
        result.losses[layer] /= places
        largest = max(abs(float(v)) for v in total.flat)
        change = np.zeros_like(rows)
        for k, row in enumerate(rows):
            length = math.sqrt(sum(float(v) ** 2 for v in row))
            change[k] = -pick(rates, layer) * math.sqrt(abs(length - 1)) * total[k] / largest
        grads = {"weight": change.reshape(block.weight.shape)}
        result.block_grads.append(grads | ({} if block.bias is None else {"bias": np.zeros(len(rows))}))
    return result


def _patches(z_in: Array, k: int) -> list[Array]:
    """What every position sees: k x k squares with zeros around the map, or the whole vector."""
    if k == 0:
        return [z_in.reshape(-1)]
    edge = k // 2
    padded = np.pad(z_in, ((0, 0), (edge, edge), (edge, edge)))
    return [padded[:, y : y + k, x : x + k].reshape(-1) for y, x in np.ndindex(z_in.shape[1:])]


def _softmax(values: list[float]) -> list[float]:
    powers = [math.exp(v - max(values)) for v in values]
    return [v / sum(powers) for v in powers]


REFERENCES: dict[str, Reference] = {"softhebb": softhebb}
