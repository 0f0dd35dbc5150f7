"""What one update costs: multiply-accumulates and bytes of the matrix products and convolutions that it rests on.

Counted from the operations of one real update, forward and backward: every product that a gradient depends on, but for
those of the first pass of the images through the blocks, which is needed without learning, too. What is computed
element by element (activations, scores z.g, sums) is not counted. Bytes: operands read and results written by those
products, each number four bytes.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from typing_extensions import override

from localssl.certificate.cuts import layer_of
from localssl.certificate.worlds import memory
from localssl.learner import Learner

BYTES = 4
_ONLY_SHAPES = ("_like", "new_", "empty", "zeros", "ones", "full")  # operations that read no number of their operands


@dataclass(frozen=True)
class Cost:
    """Of one update, over the number of samples.

    Args:
        operations: multiply-accumulates.
        bytes: read and written.
    """

    operations: float
    bytes: float


class _Counter(TorchDispatchMode):
    """Which products every tensor rests on, as the bits of a number."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[tuple[int, int]] = []
        self.rests: dict[int, int] = {}
        self.kept: list[torch.UntypedStorage] = []
        self.free = False

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        operands = [a for a in tree_flatten((args, kwargs or {}))[0] if isinstance(a, Tensor)]
        outputs = [o if isinstance(o, Tensor) else None for o in tree_flatten(result)[0]]
        name = func.overloadpacket.__name__
        below = 0
        if not any(name.startswith(n) or name.endswith(n) for n in _ONLY_SHAPES):
            for operand in operands:
                below |= self.rests.get(memory(operand), 0)
        for place, output in enumerate(outputs):
            if output is not None:
                self.kept.append(output.untyped_storage())
                key = memory(output)
                self.rests[key] = self.rests.get(key, 0) | below | self._product(name, args, output, place)
        return result

    def _product(self, name: str, args: tuple[Any, ...], output: Tensor, place: int) -> int:
        """The bit of a product, 0 where the operation is none."""
        found = None if self.free else product(name, args, output, place)
        if found is None:
            return 0
        macs, tensors = found
        self.products.append((macs, BYTES * sum(t.numel() for t in tensors)))
        return 1 << (len(self.products) - 1)

    @contextmanager
    def first_pass_free(self, learner: Learner) -> Generator[None]:
        """Within, what a block does when it is first run is not counted."""
        seen: set[nn.Module] = set()

        def before(block: nn.Module, args: Any) -> None:
            self.free = block not in seen

        def after(block: nn.Module, args: Any, output: Any) -> None:
            seen.add(block)
            self.free = False

        handles: list[Any] = []
        for block in learner.encoder.blocks:
            handles += [block.register_forward_pre_hook(before), block.register_forward_hook(after)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def cost(self, updates: list[Tensor], samples: int) -> Cost:
        """Of these updates together."""
        mask = 0
        for update in updates:
            mask |= self.rests.get(memory(update), 0)
        found = [cost for i, cost in enumerate(self.products) if mask >> i & 1]
        return Cost(sum(macs for macs, _ in found) / samples, sum(size for _, size in found) / samples)


def product(name: str, args: tuple[Any, ...], output: Tensor, place: int) -> tuple[int, list[Tensor]] | None:
    """Multiply-accumulates of one output of an operation and the tensors that are read and written for it, or None."""
    name = name.removesuffix("_")
    if name in ("mm", "bmm", "mv", "dot", "vdot", "addmm", "baddbmm", "addmv"):
        one, other = args[1:3] if name in ("addmm", "baddbmm", "addmv") else args[:2]
        return output.numel() * one.shape[-1], [one, other, output]
    if name == "convolution":
        x, weight = args[:2]
        return output.numel() * math.prod(weight.shape[1:]), [x, weight, output]
    if name == "convolution_backward" and place < 2:
        error, x, weight = args[:3]
        # transposed convolutions apart, every number of the error meets one kernel of the weight
        return error.numel() * math.prod(weight.shape[1:]), [error, weight if place == 0 else x, output]
    return None


def costs(learner: Learner, a: Tensor, b: Tensor, labels: Tensor, samples: int) -> tuple[Cost, list[Cost]]:
    """Of one update of a learner (its gradients are overwritten): of all layers together, and of every layer.

    A product that several layers rest on (the error on its way down) is in the cost of each, and once in the total.
    """
    learner.zero_grad(set_to_none=True)
    counter = _Counter()
    with counter.first_pass_free(learner), counter:
        learner.accumulate_grads(a, b, None, labels)
    updates = {name: p.grad for name, p in learner.named_parameters() if p.grad is not None}
    layers = [
        counter.cost([g for name, g in updates.items() if layer_of(name, learner) == layer], samples)
        for layer in range(1, len(learner.encoder.blocks) + 1)
    ]
    return counter.cost(list(updates.values()), samples), layers
