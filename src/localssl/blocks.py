"""Blocks that nobody can differentiate: any function on arrays, a device included, between trainable layers."""

from __future__ import annotations

import threading
import time
import traceback
import weakref
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from localssl.errors import RunError, UsageError, one_line

Function = Callable[[NDArray[Any]], Any]


class BlackBoxError(RunError):
    """A black box gave no answer that can be used. The weights are as they were before the step."""


class BlackBox(nn.Module):
    """A function of arrays as a module without weights and without a derivative.

    It stands at the head of a block, before the block's weights, whose local loss then needs no derivative of it; or it
    is a block of its own. Rules whose errors pass through blocks refuse it.

    Args:
        function: takes a NumPy array (N, ...), C-ordered, of the training's float type, its own to write to; returns
            anything that NumPy reads as numbers (N, *out_shape). It is called with any number N of samples, also in
            evaluation, once with two samples of zeros when a learner is built, and at the same input may answer
            otherwise every time. What it draws from NumPy's global generator is resumed bit for bit with the run.
        out_shape: shape of one sample's output.
        timeout: seconds that a call may take; None: any time. With one, the function is called in a thread of its own;
            code that holds Python's lock (a long loop in C that never lets go) cannot be interrupted, only refused
            once it has come back.
        name: in errors; default: the function's own.

    Raises:
        UsageError: no function, a shape that is none, a timeout that is not positive.
        BlackBoxError: in a call: another shape, no numbers, NaN or infinity, an error of the function, no answer in
            time.

    >>> import numpy as np
    >>> BlackBox(np.sign, (3,))(torch.tensor([[0.5, -2.0, 0.0]]))
    tensor([[ 1., -1.,  0.]])
    """

    def __init__(
        self, function: Function, out_shape: Sequence[int], timeout: float | None = None, name: str | None = None
    ):
        super().__init__()
        if not callable(function):
            raise UsageError(f"BlackBox takes a function of arrays, got a {type(function).__name__}")
        self.function = function
        try:
            self.out_shape = tuple(int(size) for size in out_shape)
        except TypeError as error:
            raise UsageError(f"BlackBox: out_shape is {out_shape!r}; give one sample's shape, e.g. (64,)") from error
        if not self.out_shape or min(self.out_shape) < 1:
            raise UsageError(f"BlackBox: out_shape {self.out_shape} holds no number; give one sample's shape")
        if timeout is not None and not timeout > 0:
            raise UsageError(f"BlackBox: timeout {timeout} is not positive; give seconds, or None for any time")
        self.timeout = timeout
        self.name = name or getattr(function, "__name__", type(function).__name__)
        self._enter()

    def _enter(self) -> None:
        self._key = next(_keys)
        _boxes[self._key] = self

    def __deepcopy__(self, memo: dict[int, Any]) -> BlackBox:
        """Another module around the same function: a device has no copy."""
        copied = BlackBox(self.function, self.out_shape, self.timeout, self.name)
        memo[id(self)] = copied
        return copied.train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        """(N, *out_shape), of the type and on the device of ``x`` (N, ...), outside of its graph."""
        return _call(x.detach(), self._key)

    def answer(self, x: Tensor) -> Tensor:
        """As ``forward``, with the errors of the class."""
        wide = x if x.dtype in (torch.float32, torch.float64) else x.float()  # NumPy knows no bfloat16
        given = np.array(wide.cpu().numpy(), order="C")  # a copy: the function may write to it
        try:
            answered = self._in_time(given)
        except BlackBoxError:
            raise
        except (Exception, SystemExit) as error:  # a driver's sys.exit would end the run without a checkpoint
            raise BlackBoxError(f"black box {self.name!r} raised {_described(error)}") from error
        try:
            found = np.asarray(answered)
            found = found if found.dtype == given.dtype else found.astype(given.dtype, casting="same_kind")
        except (TypeError, ValueError) as error:
            kind = type(answered).__name__
            raise BlackBoxError(f"black box {self.name!r} returned no array of real numbers, but {kind}") from error
        wanted = (len(given), *self.out_shape)
        if found.shape != wanted:
            raise BlackBoxError(f"black box {self.name!r} returned an array {found.shape}, expected {wanted}")
        if not np.isfinite(found).all():
            raise BlackBoxError(f"black box {self.name!r} returned NaN or infinity")
        return torch.from_numpy(np.array(found)).to(x.device, x.dtype)

    def _in_time(self, given: NDArray[Any]) -> Any:
        if self.timeout is None:
            return self.function(given)
        result: list[Any] = []
        failed: list[BaseException] = []

        ended: list[float] = []

        def work() -> None:
            try:
                result.append(self.function(given))
            except BaseException as error:
                failed.append(error)
            ended.append(time.monotonic())

        thread = threading.Thread(target=work, name=self.name, daemon=True)  # it must not keep the program alive
        began = time.monotonic()
        thread.start()
        thread.join(self.timeout)
        # Code that holds Python's lock holds this thread, too: it has answered by now, and too late.
        if thread.is_alive() or ended[0] - began > self.timeout:
            raise BlackBoxError(f"black box {self.name!r} gave no answer within {self.timeout:g} s")
        if failed:
            raise failed[0]
        return result[0]

    def extra_repr(self) -> str:
        """For print."""
        return f"{self.name!r}, out_shape={self.out_shape}"

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._enter()  # its number is another's here


_keys = count()
_boxes: weakref.WeakValueDictionary[int, BlackBox] = weakref.WeakValueDictionary()


@torch.library.custom_op("localssl::black_box", mutates_args=())
def _call(x: Tensor, key: int) -> Tensor:
    """One operation of PyTorch's own, so that whoever follows operations (the certificate) can carry it out again."""
    return _boxes[key].answer(x)


@_call.register_fake
def _shape_only(x: Tensor, key: int) -> Tensor:
    return x.new_empty((len(x), *_boxes[key].out_shape))


def black_boxes(blocks: Sequence[nn.Module] | nn.ModuleList) -> list[tuple[int, BlackBox]]:
    """The black boxes of a stack, each with the number of its block, from 1."""
    return [(i, m) for i, block in enumerate(blocks, start=1) for m in block.modules() if isinstance(m, BlackBox)]


def _described(error: BaseException) -> str:
    """An error in one line, with the place where it arose."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename != __file__] or list(frames)
    place = f" ({own[-1].filename}:{own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {one_line(error) or 'no message'}{place}"
