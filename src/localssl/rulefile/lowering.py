"""From PyTorch's operations to those of a rule manifest, by what they compute.

What is not in the table below cannot be written down, and is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from localssl.rulefile import maps
from localssl.rulefile.calls import Call, Found, Unknown, refuse
from localssl.rulefile.notes import Notes


def lower(notes: Notes, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: list[Tensor]) -> Found:
    """Write one call of PyTorch's down; the names of its results.

    Raises:
        Unknown: the operation, or what it is asked for, is not known here.
    """
    given: dict[str, Any] = {}
    for i, argument in enumerate(func._schema.arguments):
        value = args[i] if i < len(args) else kwargs.get(argument.name, argument.default_value)
        given[argument.name] = value
    name = func.overloadpacket.__name__.removesuffix("_")
    call = Call(notes, given, outputs)
    if name not in _TABLE:
        raise Unknown(f"PyTorch's {name}")
    found = _TABLE[name](call)
    return found if isinstance(found, list) else [found]


def makes_constants(func: Any) -> bool:
    """Whether an operation reads no number of its operands."""
    return func.overloadpacket.__name__ in _CONSTANT


def _binary(op: str, swapped: bool = False) -> Callable[[Call], str]:
    def write(call: Call) -> str:
        a, b = call["self"], call["other"]
        alpha = call.given.get("alpha", 1)
        operands: list[Any] = [call.of(a), call.scaled(b, alpha)]
        return call.emit(op, *(reversed(operands) if swapped else operands))

    return write


def _rsub(call: Call) -> str:
    return call.emit("subtract", call["other"], call.scaled(call["self"], call["alpha"]))


def _unary(op: str, *more: float) -> Callable[[Call], str]:
    return lambda call: call.emit(op, call["self"], *more)


def _alias(call: Call) -> str:
    return call.notes.read(call["self"])


def _reshape(call: Call) -> str:
    return call.shaped(call.notes.read(call["self"]), call.out.shape)


def _transpose(axes: Callable[[Call, int], list[int]]) -> Callable[[Call], str]:
    def write(call: Call) -> str:
        order = axes(call, call["self"].ndim)
        return _alias(call) if order == sorted(order) else call.emit("transpose", call["self"], axes=order)

    return write


def _swapped(call: Call, ndim: int) -> list[int]:
    order = list(range(ndim))
    i, j = call["dim0"] % ndim, call["dim1"] % ndim
    order[i], order[j] = j, i
    return order


def _expand(call: Call) -> str:
    shape = list(call.out.shape)
    return _alias(call) if list(call["self"].shape) == shape else call.emit("broadcast", call["self"], shape=shape)


def _slice(call: Call) -> str:
    x = call["self"]
    axis = call["dim"] % x.ndim
    start, stop, _ = slice(call["start"], call["end"]).indices(x.shape[axis])
    return _cut(call, x, axis, start, stop, call["step"], call.out)


def _cut(call: Call, x: Tensor, axis: int, start: int, stop: int, step: int, result: Tensor) -> str:
    if (start, step) == (0, 1) and stop == x.shape[axis]:
        return call.notes.read(x)
    return call.emit("slice", x, result=result, axis=axis, start=start, stop=stop, step=step)


def _select(call: Call) -> str:
    x = call["self"]
    axis = call["dim"] % x.ndim
    at = call["index"] % x.shape[axis]
    return call.shaped(_cut(call, x, axis, at, at + 1, 1, x.narrow(axis, at, 1)), call.out.shape)


def _split(call: Call) -> Found:
    x, start = call["self"], 0
    axis = call["dim"] % x.ndim
    found: Found = []
    for part in call.outputs:
        found.append(_cut(call, x, axis, start, start + part.shape[axis], 1, part))
        start += part.shape[axis]
    return found


def _slice_backward(call: Call) -> str:
    shape = list(call["input_sizes"])
    axis = call["dim"] % len(shape)
    start, stop, _ = slice(call["start"], call["end"]).indices(shape[axis])
    return call.emit("embed", call["grad_output"], shape=shape, axis=axis, start=start, stop=stop, step=call["step"])


def _select_backward(call: Call) -> str:
    shape = list(call["input_sizes"])
    axis = call["dim"] % len(shape)
    at = call["index"] % shape[axis]
    error = call.shaped(call.notes.read(call["grad_output"]), [*shape[:axis], 1, *shape[axis + 1 :]])
    return call.emit("embed", error, shape=shape, axis=axis, start=at, stop=at + 1, step=1)


def _cat(call: Call) -> str:
    return call.emit("concat", *call["tensors"], axis=call["dim"] % call.out.ndim)


def _stack(call: Call) -> str:
    axis = call["dim"] % call.out.ndim
    parts: list[str] = []
    for tensor in call["tensors"]:
        shape = list(tensor.shape)
        parts.append(call.shaped(call.notes.read(tensor), [*shape[:axis], 1, *shape[axis:]]))
    return call.emit("concat", *parts, axis=axis)


def _copy(call: Call) -> str:
    source, target = call["src"], call["self"]
    cast = _cast(call, source, target.dtype)
    if source.shape == target.shape:
        return cast
    return call.notes.emit("broadcast", (cast,), call.out, shape=list(target.shape))


def _to_copy(call: Call) -> str:
    return _cast(call, call["self"], call["dtype"] or call["self"].dtype)


def _cast(call: Call, x: Tensor, dtype: torch.dtype) -> str:
    kind, before = _kind(dtype), _kind(x.dtype)
    refuse(kind != "float" or dtype == torch.float64 or before != "float", "rounding to fewer bits")
    return call.notes.read(x) if kind == before else call.emit("cast", x, result=x.to(dtype), type=kind)


def _kind(dtype: torch.dtype) -> str:
    return "bool" if dtype == torch.bool else "float" if dtype.is_floating_point else "int"


def _sum(call: Call) -> str:
    return call.add_up(call["self"], call.given.get("dim"), call.given.get("keepdim", False))[0]


def _mean(call: Call) -> str:
    name, count = call.add_up(call["self"], call.given.get("dim"), call.given.get("keepdim", False))
    return call.emit("divide", name, count)


def _std(call: Call) -> str:
    x, axes = call["self"], call["dim"]
    total, count = call.add_up(x, axes, True)
    mean = call.emit("divide", total, count, result=call.value(total) / count)
    centred = call.emit("subtract", x, mean, result=x - call.value(mean))
    square = call.emit("multiply", centred, centred, result=call.value(centred) ** 2)
    together, _ = call.add_up(square, axes, call["keepdim"])
    divisor = count - (1 if call["correction"] is None else call["correction"])
    variance = call.emit("divide", together, divisor, result=call.value(together) / divisor)
    return call.emit("power", variance, 0.5)


def _norm(call: Call) -> str:
    refuse(call["ord"] == 2, "norms other than the length")
    square = call.emit("multiply", call["self"], call["self"], result=call["self"] ** 2)
    together, _ = call.add_up(square, call["dim"], call["keepdim"])
    return call.emit("power", together, 0.5)


def _addmm(one: str, other: str) -> Callable[[Call], str]:
    def write(call: Call) -> str:
        product = call.emit("matmul", call[one], call[other], result=call[one] @ call[other])
        scaled = product
        if call["alpha"] != 1:
            scaled = call.emit("multiply", product, call["alpha"], result=call.value(product) * call["alpha"])
        return call.emit("add", call.scaled(call["self"], call["beta"]), scaled)

    return write


def _matmul(other: str) -> Callable[[Call], str]:
    return lambda call: call.emit("matmul", call["self"], call[other])


def _threshold_backward(call: Call) -> str:
    gate = call.emit("less", call["threshold"], call["self"], result=call["self"] > call["threshold"])
    return call.emit("multiply", call["grad_output"], gate)


def _softplus(call: Call) -> str:
    refuse(call["beta"] == 1, "softplus of another slope")
    return call.emit("softplus", call["self"])


def _softplus_backward(call: Call) -> str:
    refuse(call["beta"] == 1, "softplus of another slope")
    slope = call.emit("sigmoid", call["self"], result=call["self"].sigmoid())
    return call.emit("multiply", call["grad_output"], slope)


def _slope(slope: Callable[[Call, str], str]) -> Callable[[Call], str]:
    return lambda call: call.emit("multiply", call["grad_output"], slope(call, call.notes.read(call["output"])))


def _of_sigmoid(call: Call, y: str) -> str:
    rest = call.emit("subtract", 1, y, result=1 - call.value(y))
    return call.emit("multiply", y, rest, result=call.value(y) * call.value(rest))


def _of_tanh(call: Call, y: str) -> str:
    square = call.emit("multiply", y, y, result=call.value(y) ** 2)
    return call.emit("subtract", 1, square, result=1 - call.value(square))


def _index(call: Call) -> str:
    axis, index = _one_index(call)
    return call.emit("take", call["self"], index, axis=axis)


def _one_index(call: Call) -> tuple[int, Tensor]:
    given = [(axis, index) for axis, index in enumerate(call["indices"]) if index is not None]
    refuse(len(given) == 1 and given[0][1].dtype != torch.bool, "reading by several indices or by a mask")
    return given[0]


def _index_put(call: Call) -> str:
    axis, index = _one_index(call)
    refuse(axis == 0 and bool(call["accumulate"]), "overwriting by an index")
    return call.emit("scatter-add", call["self"], index, call["values"])


def _index_add(call: Call) -> str:
    refuse(call["dim"] == 0, "adding along another axis than the first")
    return call.emit("scatter-add", call["self"], call["index"], call.scaled(call["source"], call["alpha"]))


def _masked_fill(call: Call) -> str:
    return call.emit("where", call["mask"], call["value"], call["self"])


def _where(call: Call) -> str:
    return call.emit("where", call["condition"], call["self"], call["other"])


def _clamp_min(call: Call) -> str:
    return call.emit("maximum", call["self"], call["min"])


def _abs(call: Call) -> str:
    return call.emit("maximum", call["self"], call.scaled(call["self"], -1))


_CONSTANT = {
    *("arange", "zeros", "ones", "full", "empty", "scalar_tensor", "empty_strided", "lift_fresh"),
    *("zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full", "new_empty"),
}
_TABLE: dict[str, Callable[[Call], str | Found]] = {
    "add": _binary("add"),
    "sub": _binary("subtract"),
    "rsub": _rsub,
    "mul": _binary("multiply"),
    "div": _binary("divide"),
    "maximum": _binary("maximum"),
    "lt": _binary("less"),
    "gt": _binary("less", swapped=True),
    "le": _binary("less-equal"),
    "ge": _binary("less-equal", swapped=True),
    "eq": _binary("equal"),
    "neg": _unary("multiply", -1),
    "relu": _unary("maximum", 0),
    "sqrt": _unary("power", 0.5),
    "rsqrt": _unary("power", -0.5),
    "reciprocal": _unary("power", -1),
    "square": _unary("power", 2),
    "pow": lambda call: call.emit("power", call["self"], call["exponent"]),
    **{name: _unary(name) for name in ("exp", "log", "tanh", "sigmoid")},
    "abs": _abs,
    "clamp_min": _clamp_min,
    "softplus": _softplus,
    "softplus_backward": _softplus_backward,
    "sigmoid_backward": _slope(_of_sigmoid),
    "tanh_backward": _slope(_of_tanh),
    "threshold_backward": _threshold_backward,
    "where": _where,
    "masked_fill": _masked_fill,
    **dict.fromkeys(("detach", "clone", "alias", "contiguous", "lift_fresh_copy"), _alias),
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "_reshape_alias"), _reshape),
    "t": _transpose(lambda call, ndim: list(range(ndim))[::-1]),
    "permute": _transpose(lambda call, ndim: [d % ndim for d in call["dims"]]),
    "transpose": _transpose(_swapped),
    "expand": _expand,
    "slice": _slice,
    "select": _select,
    "split": _split,
    "split_with_sizes": _split,
    "slice_backward": _slice_backward,
    "select_backward": _select_backward,
    "cat": _cat,
    "stack": _stack,
    "copy": _copy,
    "_to_copy": _to_copy,
    "sum": _sum,
    "mean": _mean,
    "std": _std,
    "linalg_vector_norm": _norm,
    "mm": _matmul("mat2"),
    "bmm": _matmul("mat2"),
    "mv": _matmul("vec"),
    "dot": _matmul("tensor"),
    "addmm": _addmm("mat1", "mat2"),
    "baddbmm": _addmm("batch1", "batch2"),
    "addmv": _addmm("mat", "vec"),
    "convolution": maps.convolution,
    "convolution_backward": maps.convolution_backward,
    "max_pool2d_with_indices": maps.max_pool,
    "max_pool2d_with_indices_backward": maps.max_pool_backward,
    "avg_pool2d": maps.avg_pool,
    "avg_pool2d_backward": maps.avg_pool_backward,
    "reflection_pad2d": maps.reflect,
    "index": _index,
    "index_put": _index_put,
    "index_add": _index_add,
}
