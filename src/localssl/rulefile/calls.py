"""One call of PyTorch's, as those see it who write it down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from localssl.rulefile.notes import Notes
from localssl.rulefile.ops import Operand

Found = list[str]


class Unknown(Exception):
    """What there is no operation for."""


def refuse(fine: bool, what: str) -> None:
    """Refuse what an operation is asked for, unless it is fine."""
    if not fine:
        raise Unknown(what)


class Call:
    """One call of an operation of PyTorch.

    Args:
        notes: where it is written down.
        given: its arguments by name, defaults filled in.
        outputs: what it returned.
    """

    def __init__(self, notes: Notes, given: dict[str, Any], outputs: list[Tensor]) -> None:
        self.notes, self.given, self.outputs = notes, given, outputs

    def __getitem__(self, name: str) -> Any:
        return self.given[name]

    @property
    def out(self) -> Tensor:
        """Its first result."""
        return self.outputs[0]

    def of(self, value: Any) -> Operand:
        """An argument as an operand."""
        return self.notes.read(value) if isinstance(value, Tensor) else value

    def emit(self, op: str, *operands: Any, result: Tensor | None = None, **attributes: Any) -> str:
        """Write an operation down; ``result``: what it came to, where that is not what the call returned."""
        plain = tuple(self.of(o) for o in operands)
        return self.notes.emit(op, plain, self.out if result is None else result, **attributes)

    def value(self, name: str) -> Tensor:
        """What a name stands for."""
        return self.notes.values[name]

    def shaped(self, name: str, shape: Sequence[int]) -> str:
        """A value in another shape; a reshaped one from what it was before."""
        if self.value(name).shape == tuple(shape):
            return name
        result = self.value(name).reshape(tuple(shape))
        return self.notes.emit("reshape", (name,), result, shape=list(shape))

    def scaled(self, operand: Any, factor: float) -> Operand:
        """An operand times a number."""
        if factor == 1:
            return self.of(operand)
        if not isinstance(operand, Tensor):
            return operand * factor
        return self.emit("multiply", operand, factor, result=operand * factor)

    def add_up(self, x: Tensor | str, axes: Sequence[int] | None, keep: bool) -> tuple[str, int]:
        """Σ over some axes, and over how many numbers."""
        name = x if isinstance(x, str) else self.notes.read(x)
        value = self.value(name)
        axes = sorted(a % max(value.ndim, 1) for a in (axes or range(value.ndim)))
        count = int(torch.Size([value.shape[a] for a in axes]).numel()) if value.ndim else 1
        result = value.sum(axes, keepdim=keep) if value.ndim else value
        return self.notes.emit("sum", (name,), result, axes=axes, keep=keep), count
