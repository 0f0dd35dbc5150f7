"""Which blocks go to which process, and what cannot be divided."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

from localssl.blocks import black_boxes
from localssl.engine.choice import refused_rule
from localssl.engine.three_factor import above, shared
from localssl.errors import UsageError
from localssl.inputs import Inputs
from localssl.learner import Learner
from localssl.rules.base import ScoreRule
from localssl.runs.config import RunConfig, TrainConfig

# Times on a CPU as numbers of multiply-adds, estimated from benchmarks/results/parts.json and step.json.
VIEWS = 5_000  # a number of a view: making it
ELEMENTWISE = 90  # a unit before the pool: ReLU, pool, gate, spreading
OPTIMISER = 70  # a trained weight


def divide(learner: Learner, options: TrainConfig, config: RunConfig) -> list[range]:
    """The blocks (from 0) of every process, in order.

    Raises:
        UsageError: a rule or a staleness that cannot be run like this, more processes than blocks, a wrong split.
    """
    rule, blocks = learner.rule, len(learner.encoder.blocks)
    processes = options.pipeline or 1
    asked = f"--pipeline {processes}" if processes > 1 else f"--staleness {config.staleness}"
    why = None if rule.credit == "local" else f"its credit assignment is {rule.credit}, not local"
    if why := why or refused_rule(rule):
        raise UsageError(f"{asked}: rule {rule.name!r} cannot learn block by block ({why}); clapp++ can, for instance")
    assert isinstance(rule, ScoreRule)
    if boxes := black_boxes(learner.encoder.blocks):
        raise UsageError(
            f"{asked}: where black box {boxes[0][1].name!r} fails, blocks that learn apart cannot go back to before "
            f"the step; leave it out"
        )
    if type(learner.inputs) is not Inputs or above(rule, blocks) - {blocks - 1}:
        raise UsageError(f"{asked}: rule {rule.name!r} takes more than two views, or references between blocks")
    if shared(rule, learner.parts, blocks) or _shared_weights(learner.encoder.blocks):
        raise UsageError(f"{asked}: blocks of {rule.name!r} have weights in common, which no two processes can change")
    _check_staleness(learner, rule, config.staleness)
    if processes > blocks:
        raise UsageError(f"{asked}: the encoder has {blocks} blocks; use at most one process a block")
    if options.split is None:
        return groups(costs(learner, config.batch_size // (options.devices * options.nodes)), processes)
    if len(options.split) != processes or sum(options.split) != blocks or min(options.split) < 1:
        given = " ".join(map(str, options.split))
        raise UsageError(f"--split {given}: give {processes} numbers of 1 or more that sum to the {blocks} blocks")
    return [range(a, b) for a, b in pairwise((0, *accumulate(options.split)))]


def _check_staleness(learner: Learner, rule: ScoreRule, staleness: int) -> None:
    if staleness == 0:
        return
    if not above(rule, len(learner.encoder.blocks)):
        raise UsageError(
            f"--staleness {staleness}: no block of {rule.name!r} waits for one above; leave it out, "
            f"--pipeline alone is as fast"
        )
    if learner.engine != "hebbian":
        raise UsageError(
            f"--staleness {staleness}: engine {learner.engine!r} cannot learn from what ran with older "
            f"weights; use --engine hebbian"
        )


def _shared_weights(blocks: nn.ModuleList) -> bool:
    owned = [{id(p) for p in block.parameters()} for block in blocks]
    return sum(map(len, owned)) != len(set().union(*owned))


def groups(costs: Sequence[float], processes: int) -> list[range]:
    """Consecutive blocks such that the dearest group is as cheap as can be."""
    found = {end: (sum(costs[:end]), [range(end)]) for end in range(1, len(costs) + 1)}  # blocks before ``end``, in one
    for count in range(2, processes + 1):
        found = {
            end: min(
                (
                    (max(found[cut][0], sum(costs[cut:end])), [*found[cut][1], range(cut, end)])
                    for cut in found
                    if cut < end
                ),
                key=lambda divided: divided[0],
            )
            for end in range(count, len(costs) + 1)
        }
    return found[len(costs)][1]


def words(layers: range) -> str:
    """Some blocks, as they are called: "blocks 1 to 3"."""
    return f"block {layers.stop}" if len(layers) == 1 else f"blocks {layers.start + 1} to {layers.stop}"


@torch.no_grad()
def costs(learner: Learner, batch_size: int) -> list[float]:
    """Estimated work of every block in a step, in multiply-adds; that of the first has the views with it."""
    counted = [[0, 0] for _ in learner.encoder.blocks]  # multiply-adds and units of a sample, per block
    hooks = [
        module.register_forward_hook(_counter(counted[layer]))
        for layer, block in enumerate(learner.encoder.blocks)
        for module in block.modules()
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear)
    ]
    learner.encoder.output_shapes(learner.input_shape)
    for hook in hooks:
        hook.remove()
    samples = 2 * batch_size
    found: list[float] = []
    for layer, (macs, units) in enumerate(counted):
        parts = [modules[layer] for modules in learner.parts.values()]
        read = sum(t.numel() for part in parts for t in part.state_dict().values())
        trained = [
            p.numel() for m in (*parts, learner.encoder.blocks[layer]) for p in m.parameters() if p.requires_grad
        ]
        found.append(samples * (2 * macs + 2 * read + ELEMENTWISE * units) + OPTIMISER * sum(trained))
    found[0] += samples * VIEWS * torch.Size(learner.input_shape).numel()
    return found


def _counter(into: list[int]) -> Callable[[nn.Module, object, Tensor], None]:
    def count(module: nn.Module, _: object, output: Tensor) -> None:
        weight = module.weight
        assert isinstance(weight, Tensor)
        into[0] += output[0].numel() * weight[0].numel()
        into[1] += output[0].numel()

    return count
