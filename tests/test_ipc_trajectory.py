"""ipc with an optimiser's steps in between, against its oracle's trajectory; other orders of the steps are seen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import localssl
from localssl.credit.feedback_alignment import weighted
from localssl.learner import Learner
from localssl.oracle import trajectory
from localssl.oracle.result import Task

from .test_rules_credit import LABELS, NEGATIVES
from .util import assert_close_report, numpy, small_learner, to_oracle, views

TRAJECTORIES: dict[str, dict[str, Any]] = {
    "clapp": {"steps": 5},
    "lpl": {"objective": "lpl", "steps": 4, "momentum": 0.0},
    "ce": {"objective": "ce", "eta_h": 0.05, "steps": 5},
    "learnt": {"learnt_feedback": True, "steps": 5},
    "learnt ce": {"learnt_feedback": True, "objective": "ce", "steps": 4},
}


def course_of(learner: Learner, options: dict[str, Any], order: str = "together") -> trajectory.Course:
    """The oracle's T steps of h and W from a learner's weights."""
    parts = {key: [numpy(m.weight) for m in modules] for key, modules in learner.projections.items()}
    samples = np.concatenate([numpy(view) for view in views()])
    blocks = to_oracle(learner.encoder)
    task = Task(blocks, parts, samples, NEGATIVES.numpy(), [None] * len(blocks), None, LABELS.numpy())
    return trajectory.ipc(task, 0.05, order=order, **options)


def assert_course(learner: Learner, losses: list[float], course: trajectory.Course) -> None:
    assert_close_report(losses, course.losses, what="losses")
    for number, (module, block) in enumerate(zip(weighted(learner.encoder), course.blocks, strict=True), start=1):
        assert_close_report(numpy(module.weight), block.weight, what=f"block {number} weight")
        assert block.bias is not None
        assert_close_report(numpy(module.bias), block.bias, what=f"block {number} bias")
    for key, matrices in course.parts.items():
        for module, matrix in zip(learner.projections[key], matrices, strict=True):
            assert_close_report(numpy(module.weight), matrix, what=key)


@pytest.mark.parametrize("network", ["vgg", "mlp"])
@pytest.mark.parametrize("case", TRAJECTORIES)
def test_ipc_with_steps_of_the_weights_in_between(case: str, network: str) -> None:
    """Weights and losses after T steps of both are the oracle's; those of another order are others."""
    options = TRAJECTORIES[case]
    learner = small_learner(network, localssl.rules.get("ipc", **options))
    courses = {order: course_of(learner, options, order) for order in trajectory.ORDERS}
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.05)
    losses = []
    for loss in learner.updates(*views(), NEGATIVES, LABELS):
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    assert len(losses) == options["steps"]
    assert_course(learner, losses, courses["together"])
    for order in ("states first", "weights first"):
        with pytest.raises(AssertionError, match="differ by more"):
            assert_course(learner, losses, courses[order])
    held = small_learner(network, localssl.rules.get("ipc", **options))
    losses = [loss.item() for loss in held.updates(*views(), NEGATIVES, LABELS)]  # the old W all along
    with pytest.raises(AssertionError, match="losses: "):
        assert_course(held, losses, courses["together"])
