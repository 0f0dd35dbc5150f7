"""One real run, and beside it the same run in other worlds, in each of which one thing has another value.

Every aten operation, forward and backward, is carried out once as it is and once more in every world where one of its
operands differs. A world is forgotten for a tensor as soon as the values are the same again to the last bit, so that
only numerical dependence is left: reading a shape, a product with zero or x - x count for nothing.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _disable_current_modes,  # pyright: ignore[reportPrivateUsage]
)
from torch.utils._pytree import tree_flatten, tree_unflatten
from typing_extensions import override

PURGE = 50  # new tensors between two looks for those that are gone


def memory(tensor: Tensor) -> int:
    """What tensors share that are views of each other."""
    return tensor.untyped_storage()._cdata


def same(one: Tensor, other: Tensor) -> bool:
    """Equal to the last bit, NaN to NaN."""
    if torch.equal(one, other):
        return True
    if not one.is_floating_point() or not math.isnan(float(one.sum())):  # a sum costs less than looking for NaN
        return False
    return torch.equal(one.nan_to_num(0.12345), other.nan_to_num(0.12345))


def backward_runs() -> bool:
    """Whether autograd's engine is at work: this operation belongs to a backward pass."""
    return torch._C._current_graph_task_id() != -1


class Worlds(TorchDispatchMode):
    """Follow the values of tensors through other worlds while this one runs.

    Attributes:
        escaped: by world, the first operation that could not be followed: its result differed and left torch as a
            Python number or NumPy array, or was of another shape.
        met: by world, the memories that were operands of a forward operation together with something that differed.
        used: by memory that is watched, the operations it was an operand of in the world it differs in, while
            ``watching``: (operation, whether in a backward pass).
    """

    def __init__(self) -> None:
        super().__init__()
        self._values: dict[Hashable, dict[int, torch.UntypedStorage]] = {}
        self._kept: dict[int, StorageWeakRef] = {}  # while there is one, no other memory gets its number
        self._since = 0
        self.escaped: dict[Hashable, str] = {}
        self.met: dict[Hashable, set[int]] = {}
        self.used: dict[int, set[tuple[str, bool]]] = {}
        self.watching = True

    def see(self, world: Hashable, tensor: Tensor) -> Tensor | None:
        """The tensor's value in a world, None where it is that of this one."""
        found = self._values.get(world, {}).get(memory(tensor))
        if found is None:
            return None
        value = _at(tensor, found)
        return None if same(value, tensor.detach()) else value

    def put(self, world: Hashable, tensor: Tensor, value: Tensor) -> None:
        """Give a tensor, and what shares its memory, another value in a world."""
        values, key = self._values.setdefault(world, {}), self._keep(tensor)
        if key not in values:
            values[key] = tensor.untyped_storage().clone()
        _at(tensor, values[key]).copy_(value)

    def hold(self, tensor: Tensor, worlds: Iterable[Hashable]) -> None:
        """Let a tensor have this world's value in the others, too."""
        for world in worlds:
            self._values.get(world, {}).pop(memory(tensor), None)

    def lose(self, tensor: Tensor, where: str) -> None:
        """A tensor's numbers leave torch: the worlds in which they differ cannot be followed any more."""
        for world in [w for w, values in self._values.items() if memory(tensor) in values]:
            if self.see(world, tensor) is not None:
                self.escaped.setdefault(world, where)

    def after(self, outputs: list[Tensor]) -> None:
        """Called with what an operation has made, for subclasses."""

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operands, structure = tree_flatten((args, kwargs or {}))
        tensors = [a for a in operands if isinstance(a, Tensor)]
        memories = {memory(t) for t in tensors}
        differing = [world for world, values in self._values.items() if not memories.isdisjoint(values)]
        seeded = torch.Tag.nondeterministic_seeded in func.tags
        before = torch.get_rng_state() if seeded else None
        for tensor in _written(func, args, kwargs or {}):
            for world in differing:
                self.put(world, tensor, self._value(world, tensor))
        result = func(*args, **(kwargs or {}))
        outputs, _ = tree_flatten(result)
        made = [o for o in outputs if isinstance(o, Tensor) and memory(o) not in memories]
        for tensor in made:
            self._keep(tensor)
        if _is_view(func, outputs, made):
            return result
        after = torch.get_rng_state() if seeded else None
        for world in differing:
            if before is not None:
                torch.set_rng_state(before)
            self._follow(world, func, operands, structure, outputs, memories)
        if after is not None:
            torch.set_rng_state(after)
        self.after(made)
        return result

    def _follow(
        self, world: Hashable, func: Any, operands: list[Any], structure: Any, outputs: list[Any], memories: set[int]
    ) -> None:
        """The same operation in another world."""
        there = [self._value(world, a) if isinstance(a, Tensor) else a for a in operands]
        args, kwargs = tree_unflatten(there, structure)
        found, _ = tree_flatten(func(*args, **kwargs))
        if not backward_runs():
            self.met.setdefault(world, set()).update(memories)
        changed = False
        for here, other in zip(outputs, found, strict=True):
            if not isinstance(here, Tensor):
                if here != other:
                    self.escaped.setdefault(world, str(func))
            elif here.shape != other.shape:
                self.escaped.setdefault(world, str(func))
            elif memory(here) not in memories:
                if not same(here.detach(), other.detach()):
                    self._adopt(world, here.detach(), other)
                    changed = True
            else:
                changed = True
        if changed and self.watching:
            for key in memories & self.used.keys() & self._values[world].keys():
                self.used[key].add((str(func.overloadpacket), backward_runs()))

    def _adopt(self, world: Hashable, here: Tensor, other: Tensor) -> None:
        """As ``put`` for what has just been made: its memory is taken as it is, where it is laid out alike."""
        one, two = here.untyped_storage(), other.untyped_storage()
        alike = (here.stride(), here.storage_offset()) == (other.stride(), other.storage_offset())
        if alike and one.nbytes() == two.nbytes() and memory(here) not in self._values[world]:
            self._values[world][self._keep(here)] = two
        else:
            self.put(world, here, other)

    def _value(self, world: Hashable, tensor: Tensor) -> Tensor:
        found = self._values[world].get(memory(tensor))
        return tensor.detach() if found is None else _at(tensor, found)

    def _keep(self, tensor: Tensor) -> int:
        key = memory(tensor)
        if key not in self._kept:
            self._kept[key] = StorageWeakRef(tensor.untyped_storage())
            self._since += 1
        if self._since > PURGE:
            self._purge()
        return key

    def _purge(self) -> None:
        """Forget memory that is no tensor's any more."""
        self._since = 0
        gone = [key for key, reference in self._kept.items() if reference.expired()]
        for values in (*self._values.values(), self._kept):
            for key in gone:
                values.pop(key, None)  # pyright: ignore[reportArgumentType, reportCallIssue]


class Leaks(TorchFunctionMode):
    """Tells worlds of the numbers that leave torch without an operation of its own."""

    def __init__(self, worlds: Worlds) -> None:
        super().__init__()
        self.worlds = worlds

    @override
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See the class."""
        if func in _NUMBERS:
            with _disable_current_modes():
                self.worlds.lose(args[0], func.__name__)
        return func(*args, **(kwargs or {}))


_NUMBERS = (Tensor.numpy, Tensor.tolist, Tensor.__array__)


def _at(tensor: Tensor, storage: torch.UntypedStorage) -> Tensor:
    """The view of a storage that the tensor is of its own."""
    with torch.no_grad():
        empty = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        return empty.set_(storage, tensor.storage_offset(), tensor.size(), tensor.stride())  # pyright: ignore


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The operands that an operation writes into."""
    found: list[Any] = []
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found += tree_flatten(args[i] if i < len(args) else kwargs.get(argument.name))[0]
    return [t for t in found if isinstance(t, Tensor)]


def _is_view(func: Any, outputs: list[Any], made: Collection[Tensor]) -> bool:
    """Whether an operation only looks at its operands in another way: their memory says all."""
    return not made and not func._schema.is_mutable and all(isinstance(o, Tensor) for o in outputs)
