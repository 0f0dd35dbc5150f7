"""Losses with everything that the rule stops held at its value: what numerical differentiation has to differentiate.

A first pass records what stopped gradients (``detach``, ``.data``, whatever is computed under ``torch.no_grad``,
numbers read with ``item`` or ``float``); later passes, at other weights, get the recorded values in the same order.
What remains is a function of the weights whose ordinary derivative is the gradient that autograd gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from localssl.testing.bench import Failure

_STOPS = {Tensor.detach, torch.detach, Tensor.data.__get__}  # pyright: ignore
_STOPS_IN_PLACE = {Tensor.detach_, torch.detach_}
_NUMBERS = {Tensor.item, Tensor.__float__, Tensor.tolist, Tensor.numpy}


class Frozen(TorchFunctionMode):
    """Records on its first pass, replays on the others."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[Any] = []
        self.recorded = False
        self.at = 0
        self.off = False  # by no_grad: inside an autograd.Function gradients are off, too, but nothing is stopped

    def run(self, losses: Callable[[], Tensor]) -> Tensor:
        """One pass.

        Raises:
            Failure: it stops other things than the first one.
        """
        self.at, self.off = 0, False
        with self:
            found = losses()
        if self.recorded and self.at != len(self.values):
            raise Failure(f"the losses stop {len(self.values)} gradients at first and {self.at} a moment later")
        self.recorded = True
        return found.detach()

    @override
    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """See the module."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if getattr(func, "__name__", "") == "_set_grad_enabled":
            self.off = not args[0]
        if func in _NUMBERS:
            return self.value(result)
        if not _is_real(result):
            return result
        if func in _STOPS:
            return self.value(result)
        stopped = self.off or torch.is_inference_mode_enabled()
        if func in _STOPS_IN_PLACE or (stopped and ("out" in kwargs or _in_place(func))):
            with torch._C.DisableTorchFunction(), torch.no_grad():  # the tensor itself goes on
                return result.copy_(self.value(result))
        return self.value(result) if stopped else result

    def value(self, now: Any) -> Any:
        """The recorded value in place of the present one."""
        with torch._C.DisableTorchFunction():
            if not self.recorded:
                self.values.append(now.detach().clone() if isinstance(now, Tensor) else now)
                return now
            if self.at >= len(self.values):
                raise Failure(f"the losses stop more than the {len(self.values)} gradients that they stopped at first")
            then = self.values[self.at]
            self.at += 1
            if isinstance(now, Tensor) and (not isinstance(then, Tensor) or then.shape != now.shape):
                raise Failure("the losses stop other tensors at other weights")
            return then.clone() if isinstance(then, Tensor) else then


def _is_real(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _in_place(func: Callable[..., Any]) -> bool:
    name = getattr(func, "__name__", "")
    return (name.endswith("_") and not name.endswith("__")) or name in {
        "__iadd__",
        "__isub__",
        "__imul__",
        "__itruediv__",
    }
