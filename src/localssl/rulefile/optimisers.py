"""How weights follow their updates, as a manifest says it, and what an optimiser keeps of every one of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from localssl.learner import Learner
from localssl.optimizer import FactoredAdamW, ShiftSGD
from localssl.runs.config import RunConfig
from localssl.training.prepared import optimizer_of

_DECOUPLED = ("adam", "adam-factored")
_KEPT = {
    "momentum": "momentum_buffer",
    "first moment": "exp_avg",
    "second moment": "exp_avg_sq",
    "row moment": "row",
    "column moment": "column",
    "u": "u",
    "s": "s",
}


def described(config: RunConfig, learner: Learner) -> dict[str, Any]:
    """How a weight follows its update; moments start from 0, u and s from the first batch."""
    if config.optimizer == "shift-sgd":
        return {
            "op": "shift-sgd",
            "clip": ShiftSGD.CLIP,
            "u": "at the start the power of two nearest the mean of |w|; it stays",
            "s": "at the first update that is not 0 the power of two nearest the mean of |g|",
        }
    decay = {"weight decay": config.weight_decay, "decay": "decoupled" if config.optimizer in _DECOUPLED else "update"}
    if config.optimizer in ("sgd", "plain-sgd"):
        return {"op": "sgd", "momentum": 0.9 if config.optimizer == "sgd" else 0.0, **decay}
    adam = {"op": "adam", "betas": [0.9, 0.999], "epsilon": 1e-8}
    return {**adam, **decay, "factored": _factored(config, learner)}


def moments(config: RunConfig, learner: Learner) -> dict[str, dict[str, tuple[int, ...]]]:
    """What the optimiser keeps of every parameter, with its shape."""
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    factored = _factored(config, learner)
    for name, p in learner.named_parameters():
        shape = tuple(p.shape)
        if not p.requires_grad:
            continue
        if config.optimizer == "shift-sgd":
            found[name] = {"u": (), "s": ()}
        elif config.optimizer in ("sgd", "plain-sgd"):
            found[name] = {"momentum": shape} if config.optimizer == "sgd" else {}
        elif name in factored:
            found[name] = {"first moment": shape, "row moment": shape[:1], "column moment": shape[1:]}
        else:
            found[name] = {"first moment": shape, "second moment": shape}
    return found


def kept_moments(config: RunConfig, learner: Learner, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The same by the names of states, with their present values."""
    found: dict[str, Tensor] = {}
    shapes = moments(config, learner)
    for name, p in learner.named_parameters():
        state = optimizer.state.get(p, {})
        for moment, shape in shapes.get(name, {}).items():
            value = state.get(_KEPT[moment], torch.zeros(shape, dtype=torch.float64))
            found[f"{name} {moment}"] = torch.as_tensor(value, dtype=torch.float64)
    return found


def _factored(config: RunConfig, learner: Learner) -> list[str]:
    apart: set[int] = set()
    optimizer = optimizer_of(config, learner)
    for group in optimizer.param_groups if isinstance(optimizer, FactoredAdamW) else ():
        apart |= {id(p) for p in group["params"]} if group.get("factored_moment") else set()
    return [name for name, p in learner.named_parameters() if id(p) in apart]
