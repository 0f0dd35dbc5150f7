"""B sharded over processes: each holds some of its rows and their optimiser's state; checkpoints have it whole."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from localssl.blocks import black_boxes
from localssl.errors import UsageError
from localssl.learner import Learner
from localssl.parallel import Processes
from localssl.projections import Dense, Sharded
from localssl.rules.base import ScoreRule

OPTIMIZERS = ("adam", "adam-factored", "adam-l2", "sgd", "plain-sgd")  # shift-sgd looks at the whole of B


def shard(learner: Learner, processes: Processes, optimizer: str, across: str = "all") -> None:
    """Keep of every dense B of the rule's references the rows of this process alone.

    Args:
        learner: with the same weights in every process.
        processes: that share its batches.
        optimizer: the name of what will train it.
        across: whose samples are compared, "all" or each "process" its own.

    Raises:
        UsageError: there is no such B, or the others would be asked for it at other times than this process.
    """
    why = refusal(learner, optimizer) if across == "all" else "every process compares its own samples (--across)"
    if why:
        raise UsageError(f"--shard-b: {why}; leave it out")
    assert isinstance(learner.rule, ScoreRule)
    made: dict[nn.Module, Sharded] = {}  # layers may have a B in common
    for key in learner.rule.references:
        modules = learner.parts[key]
        assert isinstance(modules, nn.ModuleList)
        for layer, module in enumerate(modules):
            if type(module) is Dense and module not in made:
                made[module] = Sharded(module, processes)
            modules[layer] = made.get(module, module)


def refusal(learner: Learner, optimizer: str) -> str | None:
    """Why the B of this learner cannot be sharded, in one line; None where it can."""
    rule = learner.rule
    if reason := learner.not_spread():
        return f"rule {rule.name!r} does not compare samples across processes ({reason})"
    methods = ("losses", "layer_loss", "scores")
    if not isinstance(rule, ScoreRule) or any(getattr(type(rule), m) is not getattr(ScoreRule, m) for m in methods):
        return f"rule {rule.name!r} has no B of a score z.Bc, or losses of its own"
    if not any(type(module) is Dense for key in rule.references for module in learner.parts[key]):
        return f"no B of projection {rule.projection!r} is a dense matrix"
    if boxes := black_boxes(learner.encoder.blocks):
        return f"black box {boxes[0][1].name!r} may fail in one process alone, which would then save without the others"
    if optimizer not in OPTIMIZERS:
        return f"optimizer {optimizer!r} looks at the whole of B"
    return None


def described(learner: Learner) -> str:
    """What is sharded, in a line for the user."""
    found = shards(learner)
    processes = next(iter(found.values())).processes
    here = sum(module.weight.numel() for module in set(found.values()))
    all_of_it = sum(module.weight.shape[1] * module.d_z for module in set(found.values()))
    others = sum(p.numel() for p in learner.projections.parameters()) - here
    rest = f"; {others:,} others of the rule whole in each" if others else ""
    return f"B sharded over {processes.size} processes: {here:,} of {all_of_it:,} numbers in this one{rest}"


def shards(learner: Learner) -> dict[str, Sharded]:
    """What of every sharded B is here, by its name in the learner."""
    named = learner.named_modules(remove_duplicate=False)
    return {name: module for name, module in named if isinstance(module, Sharded)}


def elsewhere(learner: Learner) -> int:
    """Bytes of B that the other processes hold."""
    found = set(shards(learner).values())
    weights = ((module.d_z - len(module.weight), module.weight) for module in found)
    return sum(rows * weight.shape[1] * weight.element_size() for rows, weight in weights)


def whole(learner: Learner, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Weights and optimiser's state, "learner" and "optimizer", as one process has them.

    Where B is sharded all processes must call this; its rows are whole in the first only, and in main memory.
    """

    def collect(module: Sharded, rows: Tensor) -> Tensor:
        return module.processes.collect(rows, module.d_z)

    state = {"learner": learner.state_dict(), "optimizer": optimizer.state_dict()}
    return _changed(learner, optimizer, state, lambda module: len(module.weight), collect)


def part(
    learner: Learner, optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Weights and optimiser's state of a checkpoint; of a sharded B the rows that are here."""

    def cut(module: Sharded, rows: Tensor) -> Tensor:
        return rows[module.rows].clone()  # a view would keep the whole

    found = _changed(learner, optimizer, state, lambda module: module.d_z, cut)
    return found["learner"], found["optimizer"]


def _changed(
    learner: Learner,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    length: Callable[[Sharded], int],
    change: Callable[[Sharded, Tensor], Tensor],
) -> dict[str, Any]:
    """``state`` with everything changed that has one entry a row of a sharded B, ``length`` of them."""
    found = shards(learner)
    if not found:
        return state
    weights, moments = copy.copy(state["learner"]), state["optimizer"]  # with what PyTorch keeps beside the weights
    for name, module in found.items():
        key = f"{name}.weight"
        if key in weights and len(weights[key]) == length(module):
            weights[key] = change(module, weights[key])
    owners = {module.weight: module for module in found.values()}
    of_all = dict(moments["state"])
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, p in enumerate(parameters):
        if p in owners and index in of_all:
            module = owners[p]
            of_all[index] = {
                key: change(module, value) if _by_row(key, value, length(module)) else value
                for key, value in of_all[index].items()
            }
    return {"learner": weights, "optimizer": {**moments, "state": of_all}}


def _by_row(key: str, value: object, rows: int) -> bool:
    return isinstance(value, Tensor) and (value.ndim == 2 or key == "row") and len(value) == rows
