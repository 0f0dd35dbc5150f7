"""A real update, watched at the level of PyTorch's own operations while it runs, and written down.

The recorder sees what the dispatcher sees: forward passes, the three-factor engine, autograd's backward passes. Nothing
is derived a second time.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes  # pyright: ignore[reportPrivateUsage]
from torch.utils._pytree import tree_flatten
from typing_extensions import override

from localssl.errors import UsageError
from localssl.rulefile.calls import Unknown
from localssl.rulefile.lowering import lower, makes_constants
from localssl.rulefile.notes import Notes


class Recorder(TorchDispatchMode):
    """Within, operations are written down in ``notes``; numbers of states in ``may_leave`` may leave PyTorch."""

    def __init__(self, notes: Notes, may_leave: Collection[str] = ()) -> None:
        super().__init__()
        self.notes, self.may_leave = notes, may_leave

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with _disable_current_modes():
            operands = [o for o in tree_flatten((args, kwargs))[0] if isinstance(o, Tensor)]
            read = [self.notes.read(o) for o in operands]  # before one is overwritten
            fixed = all(name in self.notes.constants for name in read)
        result = func(*args, **kwargs)
        outputs = [o for o in tree_flatten(result)[0] if isinstance(o, Tensor)]
        with _disable_current_modes():
            for output, name in zip(outputs, self._names(func, args, kwargs, outputs, fixed), strict=True):
                self.notes.call(output, name, func._schema.is_mutable)
            if not outputs and not fixed and not set(read) <= set(self.may_leave) and func._schema.returns:
                raise UsageError("a rule manifest cannot follow numbers that leave PyTorch, as this rule's do")
        return result

    def _names(self, func: Any, args: Any, kwargs: Any, outputs: list[Tensor], fixed: bool) -> list[str]:
        if torch.Tag.nondeterministic_seeded in func.tags:
            return [self.notes.draw(output) for output in outputs]
        if fixed or makes_constants(func):
            return [self.notes.constant(output) for output in outputs]
        try:
            return lower(self.notes, func, args, kwargs, outputs)
        except Unknown as error:
            return [self.notes.unreadable(output, str(error)) for output in outputs]
