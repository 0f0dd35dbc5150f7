"""The blocks that the engine can run: a convolution or linear layer, ReLU, perhaps a pool, and what has no weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from localssl.blocks import BlackBox
from localssl.encoders import Encoder
from localssl.encoders.layers import LengthNorm, Standardise
from localssl.grids import Grid

HEADS = (nn.Flatten, nn.Identity, nn.ReflectionPad2d, LengthNorm, Standardise, BlackBox, Grid)  # nothing to learn
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
Pool = nn.MaxPool1d | nn.AvgPool1d | nn.MaxPool2d | nn.AvgPool2d
POOLS: dict[type[nn.Module], tuple[type[nn.Module], ...]] = {  # what may follow a layer and its ReLU
    nn.Conv1d: (nn.MaxPool1d, nn.AvgPool1d),
    nn.Conv2d: (nn.MaxPool2d, nn.AvgPool2d),
    nn.Linear: (),
}


@dataclass(frozen=True)
class Block:
    """The parts of a block, by what the three factors need of them."""

    head: tuple[nn.Module, ...]
    layer: nn.Conv1d | nn.Conv2d | nn.Linear
    pool: Pool | None
    grid: Grid | None = None  # to which its output is rounded, for learning in integers


def leaves(module: nn.Module) -> Iterator[nn.Module]:
    """The modules that a stack of ``nn.Sequential`` runs, in order."""
    if type(module) is nn.Sequential:
        for part in module:
            yield from leaves(part)
    else:
        yield module


def parts(block: nn.Module) -> Block | str:
    """The block's parts, or why the engine cannot run it."""
    if any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in block.modules()):
        return "it has hooks"
    rest = list(leaves(block))
    head: list[nn.Module] = []
    while rest and type(rest[0]) in HEADS:
        head.append(rest.pop(0))
    if not rest:
        return "it has no weights"
    layer = rest.pop(0)
    if type(layer) not in (*CONVOLUTIONS, nn.Linear):
        return f"it begins with {type(layer).__name__}, not with a convolution or a linear layer"
    assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear)
    if not isinstance(layer, nn.Linear) and (layer.padding_mode != "zeros" or isinstance(layer.padding, str)):
        return "its convolution pads by other than a number of zeros"
    if not rest or type(rest.pop(0)) is not nn.ReLU:
        return "no ReLU follows its weights"
    grid = rest.pop() if rest and type(rest[-1]) is Grid else None
    pool = rest.pop(0) if rest else None
    if rest or type(pool) not in (*POOLS[type(layer)], type(None)):
        found = ", ".join(type(module).__name__ for module in (pool, *rest))
        may = " or ".join(["nothing", *(f"one {kind.__name__}" for kind in POOLS[type(layer)])])
        return f"after the {type(layer).__name__} and its ReLU comes {found}; the engine knows {may} there"
    assert isinstance(pool, Pool | None)
    assert isinstance(grid, Grid | None)
    return Block(tuple(head), layer, pool, grid)


def units_per_output(block: Block) -> int:
    """How many times as many units the drive has as the block's output, by the stride of its pool."""
    if block.pool is None:
        return 1
    stride, axes = block.pool.stride, 2 if isinstance(block.layer, nn.Conv2d) else 1
    return stride**axes if isinstance(stride, int) else math.prod(stride)


def plan(encoder: Encoder) -> list[Block] | str:
    """Every block's parts, or one line that says which block the engine cannot run, and why."""
    found: list[Block] = []
    seen: set[int] = set()
    for number, block in enumerate(encoder.blocks, start=1):
        own = parts(block)
        if isinstance(own, str):
            return f"block {number}: {own}"
        if seen & {id(p) for p in block.parameters()}:
            return f"block {number} shares weights with one before"
        seen |= {id(p) for p in block.parameters()}
        found.append(own)
    return found
