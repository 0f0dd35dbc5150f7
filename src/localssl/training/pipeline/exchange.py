"""What one process knows of a layer and another has to know: weights and the optimiser's state, as safetensors."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from safetensors.torch import load, save
from torch import Tensor

from localssl.training.prepared import Prepared


def names(prepared: Prepared, layer: int) -> list[str]:
    """Keys of the learner's ``state_dict`` that belong to a layer: its block's and its projections'."""
    learner = prepared.learner
    own = (f"encoder.blocks.{layer}.", *(f"projections.{key}.{layer}." for key in learner.parts))
    return [name for name in learner.state_dict() if name.startswith(own)]


def packed(prepared: Prepared, layer: int, states: bool) -> bytes:
    """A layer's weights, and where asked for the optimiser's state of them."""
    weights, parameters = prepared.learner.state_dict(), dict(prepared.learner.named_parameters())
    found: dict[str, Tensor] = {}
    for name in names(prepared, layer):
        found[f"weights/{name}"] = weights[name]
        state = prepared.optimizer.state.get(parameters[name], {}) if states and name in parameters else {}
        found |= {f"{key}/{name}": value for key, value in state.items() if isinstance(value, Tensor)}
    return save({key: value.detach().cpu().contiguous() for key, value in found.items()})


@torch.no_grad()
def unpack(prepared: Prepared, data: bytes) -> None:
    """Take over what ``packed`` found in another process of the same run."""
    weights, parameters = prepared.learner.state_dict(), dict(prepared.learner.named_parameters())
    for key, value in load(data).items():
        kind, _, name = key.partition("/")
        if kind == "weights":
            weights[name].copy_(value)
            continue
        p = parameters[name]
        alike = value.shape == p.shape
        prepared.optimizer.state[p][kind] = torch.empty_like(p).copy_(value) if alike else value.to(p.device)


def forget(prepared: Prepared, layers: Iterable[int]) -> None:
    """Free the optimiser's state of layers that another process trains."""
    parameters = dict(prepared.learner.named_parameters())
    for layer in layers:
        for name in names(prepared, layer):
            if name in parameters:
                prepared.optimizer.state.pop(parameters[name], None)
