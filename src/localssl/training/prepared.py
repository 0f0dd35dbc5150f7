"""A learner on its device, with its optimiser: what every process of a training run begins with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment

from localssl import engine
from localssl.learner import Learner
from localssl.optimizer import FactoredAdamW, ShiftSGD
from localssl.parallel import Processes
from localssl.projections import Dense, Sharded
from localssl.runs import checkpoint
from localssl.runs.config import RunConfig
from localssl.runs.run import build
from localssl.system import devices
from localssl.training import sharding


@dataclass(frozen=True)
class Prepared:
    """What trains.

    Args:
        config: of the run.
        fabric: knows device and precision.
        learner: with the weights of the run's seed.
        optimizer: whose state is kept in checkpoints.
    """

    config: RunConfig
    fabric: Fabric
    learner: Learner
    optimizer: torch.optim.Optimizer

    @property
    def device(self) -> torch.device:
        """Where the numbers are computed."""
        return self.fabric.device

    @property
    def factored(self) -> bool:
        """Whether the optimiser takes the gradient of a dense projection as factors."""
        return isinstance(self.optimizer, FactoredAdamW)

    def set_rate(self, step: int, last_step: int) -> None:
        """Set the learning rate of a step, counted from 0."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate(self.config, step, last_step)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of both; where B is sharded, all processes call this, and the first has it whole."""
        return sharding.whole(self.learner, self.optimizer)

    def load(self, state: dict[str, Any], source: str) -> None:
        """Take over what a checkpoint keeps, of a sharded B the part that is here; ``source`` names it in errors."""
        learner, optimizer = sharding.part(self.learner, self.optimizer, state)
        checkpoint.load_weights(self.learner, learner, source)
        self.optimizer.load_state_dict(optimizer)


def prepare(config: RunConfig, device: str, process: int = 0, shared: Processes | None = None) -> Prepared:
    """Build everything anew; of several CUDA devices a process takes the one of its number.

    Args:
        config, device: of the run.
        process: number of this process on its machine.
        shared: processes over which B is sharded.

    Raises:
        UsageError: B cannot be sharded.
    """
    chosen = devices.choose(device)
    index = [process % torch.cuda.device_count()] if chosen.type == "cuda" else 1
    alone = LightningEnvironment()  # whatever the SLURM job around it is
    fabric = Fabric(accelerator=device, devices=index, precision=config.precision, plugins=alone)  # pyright: ignore[reportArgumentType]
    learner = build(config)
    if shared is not None:  # before a device or an optimiser sees the whole of B
        sharding.shard(learner, shared, config.optimizer, config.across)
    optimizer = optimizer_of(config, learner)
    fabric.setup(learner, optimizer)  # moves both; one process needs no wrapper
    return Prepared(config, fabric, learner, optimizer)


def rate(config: RunConfig, step: int, last_step: int) -> float:
    """Learning rate of a step, counted from 0."""
    if config.schedule == "cosine":
        return config.lr * 0.5 * (1 + math.cos(math.pi * step / last_step))
    return config.lr


def optimizer_of(config: RunConfig, learner: Learner) -> torch.optim.Optimizer:
    """The optimiser that a configuration asks for, of all of a learner's parameters."""
    if config.bits is not None:
        return engine.Writes(engine.places(learner.encoder, learner.parts), config.lr, config.optimizer == "shift-sgd")
    if config.optimizer == "shift-sgd":
        return ShiftSGD(learner.parameters(), config.lr)
    if config.optimizer in ("sgd", "plain-sgd"):
        momentum = 0.9 if config.optimizer == "sgd" else 0.0
        return torch.optim.SGD(learner.parameters(), lr=config.lr, momentum=momentum, weight_decay=config.weight_decay)
    if config.optimizer == "adam-l2":  # PyTorch's Adam: the decay is part of the gradient
        return torch.optim.Adam(learner.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True)
    groups = parameter_groups(learner, config.optimizer == "adam-factored")
    # AdamW is Adam where the decay is 0.
    return FactoredAdamW(groups, lr=config.lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=config.weight_decay)


def parameter_groups(learner: Learner, factored_moment: bool) -> list[dict[str, Any]]:
    """The learner's parameters for ``FactoredAdamW``; dense projections apart where their second moment is factored."""
    modules = [*learner.projections.modules()]
    dense = [module.weight for module in modules if type(module) is Dense or type(module) is Sharded]
    if not factored_moment or not dense:
        return [{"params": list(learner.parameters())}]
    apart = {id(p) for p in dense}
    others = [p for p in learner.parameters() if id(p) not in apart]
    return [{"params": others}, {"params": dense, "factored_moment": True}]
