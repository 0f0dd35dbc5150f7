"""Incremental predictive coding with an optimiser in between: T steps of h and W, W by plain gradient descent.

With F(h, W) as in ``predictive_coding`` and N samples, at every step t

    h_(t+1) = h_t - η_h v_t,  v_t = m v_(t-1) + dF/dh (h_t, W_t)        W_(t+1) = W_t - η dF/dW (h_t, W_t) / N

both at the same point. The two other orders are those that it must not be mistaken for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from localssl.oracle.layers import Array, Block, Trace, forward, gate, hebbian, read, spread, to_input
from localssl.oracle.objectives import OBJECTIVES, Top
from localssl.oracle.result import Task

ORDERS = ("together", "states first", "weights first")


@dataclasses.dataclass
class Course:
    """What T steps leave.

    Attributes:
        losses: at the states and weights in front of every step.
        blocks: with the weights after the last one.
        parts: the rule's own matrices after it, by key; "backward", the feedback, where it is learnt.
    """

    losses: list[float]
    blocks: list[Block]
    parts: dict[str, list[Array]]


def ipc(
    task: Task,
    rate: float,
    steps: int = 9,
    objective: str = "clapp",
    eta_h: float = 0.1,
    momentum: float = 0.5,
    learnt_feedback: bool = False,
    order: str = "together",
) -> Course:
    """One batch."""
    if order not in ORDERS:
        raise ValueError(f"no such order: {order!r}")
    parts = {key: [np.array(m, dtype=np.float64) for m in ms] for key, ms in task.projections.items()}
    course = Course([], list(task.blocks), parts)
    states: list[list[Array]] = []
    for sample in task.samples:
        own = [sample]
        for block in task.blocks[:-1]:
            own.append(forward(block, own[-1]).z)
        states.append(own[1:])
    paces = [[np.zeros_like(h) for h in own] for own in states]
    for _ in range(steps):
        look = _look(task, course, objective, states)
        course.losses.append(look.top.loss)
        if order == "weights first":
            _step_weights(course, look, rate, learnt_feedback)
            look = _look(task, course, objective, states)
        before = [list(own) for own in states]
        for i, own in enumerate(states):
            for layer in range(len(own)):
                trace, error = look.traces[i][layer + 1], look.errors[i][layer + 1]
                down = to_input(_feedback(course, layer + 1, learnt_feedback), trace, gate(trace, error))
                paces[i][layer] = momentum * paces[i][layer] + look.errors[i][layer] - down
                own[layer] = before[i][layer] - eta_h * paces[i][layer]
        if order == "states first":
            look = _look(task, course, objective, states)
        if order != "weights first":
            _step_weights(course, look, rate, learnt_feedback)
    return course


@dataclasses.dataclass
class _Look:
    """The errors ε of every sample and block at some states and weights, and what they were made of."""

    traces: list[list[Trace]]
    errors: list[list[Array]]
    top: Top


def _look(task: Task, course: Course, objective: str, states: Sequence[Sequence[Array]]) -> _Look:
    traces = [
        [forward(block, h) for block, h in zip(course.blocks, [sample, *own], strict=True)]
        for sample, own in zip(task.samples, states, strict=True)
    ]
    at = dataclasses.replace(task, blocks=course.blocks, projections=course.parts)
    top = OBJECTIVES[objective](at, [read(trace[-1].z, None) for trace in traces])
    errors: list[list[Array]] = []
    for own, trace, signal in zip(states, traces, top.signals, strict=True):
        hidden = [h - t.z for h, t in zip(own, trace, strict=False)]
        errors.append([*hidden, -len(states) * spread(signal, trace[-1].z.shape, None)])
    return _Look(traces, errors, top)


def _feedback(course: Course, layer: int, learnt: bool) -> Block:
    block = course.blocks[layer]
    return dataclasses.replace(block, weight=course.parts["backward"][layer]) if learnt else block


def _step_weights(course: Course, look: _Look, rate: float, learnt_feedback: bool) -> None:
    """W - η dF/dW / N: up the product of error and presynaptic activity."""
    samples = len(look.traces)
    for layer, block in enumerate(course.blocks):
        weight, bias = np.zeros_like(block.weight), np.zeros(len(block.weight))
        for trace, error in zip(look.traces, look.errors, strict=True):
            change = hebbian(block, trace[layer], gate(trace[layer], error[layer]))
            weight, bias = weight + change[0] / samples, bias + change[1] / samples
        new = None if block.bias is None else block.bias + rate * bias
        course.blocks[layer] = dataclasses.replace(block, weight=block.weight + rate * weight, bias=new)
        if learnt_feedback:
            course.parts["backward"][layer] = course.parts["backward"][layer] + rate * weight
    for key, gradients in look.top.parts.items():
        course.parts[key] = [m - rate * g for m, g in zip(course.parts[key], gradients, strict=True)]
