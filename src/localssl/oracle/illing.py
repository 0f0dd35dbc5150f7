"""CLAPP of Illing et al. (2021) by its three factors, one pair of patches at a time.

A grid of patches (image, y, x); context c at (y, x), target z at (y + k + 1, x), u = c·W z. A positive pair with weight
w adds w max(0, 1 - u) to the loss, a negative one w max(0, 1 + u), and with γ = w for a positive pair of u < 1, -w for
a negative one of u > -1, else 0, it asks for the changes (minus the gradient)

    ΔW = γ c zᵀ        Δz = γ Wᵀ c        Δc = γ W z

The first loss changes z (c constant), the second c (z constant), the symmetric one both. Weights: 1 over the number of
pairs of its term (with a coin: of the images that got the term), over the number of k.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from localssl.oracle.layers import Array, forward_all, read
from localssl.oracle.result import Reference, Result, Task
from localssl.oracle.scores import LayerUpdate, three_factor

Draw = tuple[NDArray[np.int64], NDArray[np.int64] | None]


@dataclass
class _Side:
    """One loss at one layer and k: readouts of all patches as contexts and as targets, live or held; W."""

    context: Sequence[Array]
    target: Sequence[Array]
    matrix: Array
    moves: str  # "target", "context" or "both"


def clapp_illing(
    task: Task,
    variant: str = "clapp",
    coin: bool = True,
    rows: int = 3,
    columns: int = 3,
    draws: Sequence[Draw] | None = None,
    patch: int | None = None,
    stride: int | None = None,
) -> Result:
    """clapp-illing on patches that ``samples`` brings, by image, row and column.

    ``draws``: what was drawn, in order of layer, k and loss: negatives (images, rows, columns, m) as indices into the
    flattened targets, and the coins (images,) or None. None: the task's negatives say the image, and there is no coin.
    """
    if draws is None and coin and variant == "clapp":
        raise ValueError("with a coin the oracle must be told how it fell")
    images = len(task.samples) // (rows * columns)
    steps = range(1, min(5, rows - 2) + 1)
    losses = {"clapp": ("predict", "retrodict"), "clapp-s": ("predict",)}[variant]
    queue: Iterator[Draw] | None = None if draws is None else iter(draws)
    traces = [forward_all(task.blocks, sample, task.norm) for sample in task.samples]
    result = Result(np.zeros(len(task.blocks)), [], {f"{key}_{k}": [] for k in steps for key in losses}, {"held": []})
    for layer, block in enumerate(task.blocks):
        own = [t[layer] for t in traces]
        live = [read(t.z, None) for t in own]
        held = live if task.references is None else list(task.references["held"][layer])
        result.references["held"].append(np.stack(live))
        signals = [np.zeros(len(live[0])) for _ in live]
        for k in steps:
            for key in losses:
                matrix = task.projections[f"{key}_{k}"][layer]
                if variant == "clapp-s":
                    side = _Side(live, live, matrix, "both")
                elif key == "predict":
                    side = _Side(held, live, matrix, "target")
                else:
                    side = _Side(live, held, matrix, "context")
                drawn = _same_place(task, images, rows - k - 1, columns) if queue is None else next(queue)
                loss, change = _pairs(side, signals, (images, rows, columns), k, drawn, 1 / len(steps))
                result.losses[layer] += loss
                result.projection_grads[f"{key}_{k}"].append(change)
        update = LayerUpdate(float(result.losses[layer]), np.zeros((0, 0)), [[(j, s)] for j, s in enumerate(signals)])
        result.block_grads.append(three_factor(block, own, None, [update]))
    return result


def _same_place(task: Task, images: int, rows: int, columns: int) -> Draw:
    """The task's image at the positive's position, for every context."""
    found = np.zeros((images, rows, columns, 1), dtype=np.int64)
    for i in range(images):
        for y in range(rows):
            for x in range(columns):
                found[i, y, x, 0] = (int(task.negatives[i]) * rows + y) * columns + x
    return found, None


def _pairs(
    side: _Side, signals: list[Array], grid: tuple[int, int, int], k: int, drawn: Draw, share: float
) -> tuple[float, Array]:
    """Loss of one side and dL/dW; its dL/dz and dL/dc are added to ``signals``."""
    images, rows, columns = grid
    usable = rows - k - 1
    negatives, coins = drawn
    heads = images if coins is None else max(1, int(sum(coins)))
    tails = images if coins is None else max(1, images - int(sum(coins)))
    total, change = 0.0, np.zeros_like(side.matrix)

    def pair(at_c: int, at_z: int, sign: int, weight: float) -> None:
        nonlocal total
        c, z = side.context[at_c], side.target[at_z]
        predicted = np.array([float(row @ z) for row in side.matrix])
        u = float(c @ predicted)
        total += weight * max(0.0, 1 - sign * u)
        if sign * u >= 1:
            return
        gamma = sign * weight
        for j in range(len(c)):
            change[j] -= gamma * c[j] * z
        if side.moves in ("target", "both"):
            signals[at_z] -= gamma * (c @ side.matrix)
        if side.moves in ("context", "both"):
            signals[at_c] -= gamma * predicted

    for i in range(images):
        for y in range(usable):
            for x in range(columns):
                at_c = (i * rows + y) * columns + x
                if coins is None or coins[i] == 1:
                    pair(at_c, (i * rows + y + k + 1) * columns + x, 1, share / (heads * usable * columns))
                if coins is None or coins[i] == 0:
                    for drawn_one in negatives[i, y, x]:
                        image, place = divmod(int(drawn_one), usable * columns)
                        at_z = (image * rows + k + 1) * columns + place
                        weight = share / (tails * usable * columns * len(negatives[i, y, x]))
                        pair(at_c, at_z, -1, weight)
    return total, change


REFERENCES: dict[str, Reference] = {"clapp-illing": clapp_illing}
