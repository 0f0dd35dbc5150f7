"""What a recording knows: every array's name, numbers, and whether it depends on anything; the operations so far."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from localssl.certificate.worlds import memory
from localssl.rulefile.ops import Op, Operand


class Notes:
    """Names of arrays and the operations between them, in static single assignment form.

    Args:
        named: inputs and states by name; they are known before the first operation.

    Attributes:
        named: names of inputs and states.
        ops: what was written down, in order.
        values: by name, what an array was.
        constants: names of arrays that depend on no input.
        drawn: names of arrays that were drawn at random, inputs too.
        lost: names of arrays that nobody can compute from what was written down, and why.
    """

    def __init__(self, named: dict[str, Tensor]) -> None:
        self.named = tuple(named)
        self.ops: list[Op] = []
        self.values: dict[str, Tensor] = {}
        self.constants: set[str] = set()
        self.drawn: list[str] = []
        self.lost: dict[str, str] = {}
        self._memory: dict[int, dict[tuple[object, ...], str]] = {}  # by memory, names by how one looks at it
        self._kept: list[torch.UntypedStorage] = []  # so that no memory is used twice
        for name, tensor in named.items():
            self.call(tensor, self._new(tensor, name))

    def read(self, tensor: Tensor) -> str:
        """The name of a tensor's present numbers; of one never seen before, that of a constant."""
        views = self._memory.get(memory(tensor))
        if views is None:
            return self.constant(tensor)
        if (found := views.get(_look(tensor))) is not None:
            return found
        return self.unreadable(tensor, "an array that was overwritten in part, or is laid out in another way")

    def constant(self, tensor: Tensor) -> str:
        """Name numbers that depend on no input."""
        name = self._new(tensor)
        self.constants.add(name)
        self.call(tensor, name)
        return name

    def draw(self, tensor: Tensor) -> str:
        """Name numbers that were drawn at random."""
        name = self._new(tensor)
        self.drawn.append(name)
        self.call(tensor, name)
        return name

    def unreadable(self, tensor: Tensor, why: str) -> str:
        """Name numbers that nobody can compute; whoever needs them is told why."""
        name = self._new(tensor)
        self.lost[name] = why
        return name

    def emit(self, op: str, operands: tuple[Operand, ...], result: Tensor, **attributes: Any) -> str:
        """Write an operation down, with what it came to; returns the name of the result."""
        name = self._new(result)
        if all(o in self.constants for o in operands if isinstance(o, str)):
            self.constants.add(name)
        self.ops.append(Op(name, op, operands, attributes))
        return name

    def call(self, tensor: Tensor, name: str, overwritten: bool = False) -> None:
        """What a tensor's memory, looked at like this, is called from now on.

        ``overwritten``: other looks at it are forgotten, and this one too where it shows a part only.
        """
        self._kept.append(tensor.untyped_storage())
        views = self._memory.setdefault(memory(tensor), {})
        if overwritten:
            views.clear()
            if tensor.numel() * tensor.element_size() != tensor.untyped_storage().nbytes():
                return
        views[_look(tensor)] = name

    def _new(self, tensor: Tensor, name: str | None = None) -> str:
        name = name or f"v{len(self.values)}"
        self.values[name] = tensor.detach().clone()
        return name


def _look(tensor: Tensor) -> tuple[object, ...]:
    shape = [(size, stride) for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size != 1]
    return tensor.dtype, tensor.shape, tuple(shape), tensor.storage_offset()
