"""Runs a rule.json of `localssl export RUN --rule` with NumPy alone, and compares with the golden vectors in it.

`python rule_interpreter.py rule.json`, status 1 where they are not reproduced. It knows no rule: the file says what is
computed. A test bench does what `steps` does, with a device in place of `run`.
"""

import json
import sys

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view


def array(data):
    """An array of the file: {"type", "shape", "values" in C order} or, where all are the same, "fill"."""
    values = np.array(data["values"] if "values" in data else data["fill"], dtype=data["type"])
    return np.broadcast_to(values, data["shape"]).copy() if "fill" in data else values.reshape(data["shape"])


def windows(x, kernel, stride, padding, dilation=(1, 1), outside=0):
    """What every window of x (N, C, *map) sees: (N, C, *positions, *kernel)."""
    x = np.pad(x, [(0, 0), (0, 0), *((p, p) for p in padding)], constant_values=outside)
    seen = sliding_window_view(x, tuple(np.multiply(dilation, np.subtract(kernel, 1)) + 1), tuple(range(2, x.ndim)))
    return seen[(slice(None), slice(None), *(slice(None, None, step) for step in (*stride, *dilation)))]


def conv(x, weight, stride, padding, dilation, groups):
    n, seen = x.ndim - 2, np.split(windows(x, weight.shape[2:], stride, padding, dilation), groups, 1)
    axes = (1, *range(n + 2, 2 * n + 2)), range(1, n + 2)
    parts = [np.tensordot(seen[i], w, axes) for i, w in enumerate(np.split(weight, groups))]
    return np.moveaxis(np.concatenate(parts, -1), -1, 1)


def conv_weight_gradient(error, x, shape, stride, padding, dilation, groups):
    axes, seen = (0, *range(2, x.ndim)), np.split(windows(x, shape[2:], stride, padding, dilation), groups, 1)
    return np.concatenate([np.tensordot(e, w, (axes, axes)) for e, w in zip(np.split(error, groups, 1), seen)])


def maxpool_where(x, kernel, stride, padding, dilation):
    seen = windows(x, kernel, stride, padding, dilation, LEAST)
    row, column = np.divmod(seen.reshape(*seen.shape[:-2], -1).argmax(-1), kernel[1])
    rows, columns = np.ogrid[: seen.shape[2], : seen.shape[3]]
    row = row * dilation[0] + rows * stride[0] - padding[0]
    return row * x.shape[3] + column * dilation[1] + columns * stride[1] - padding[1]


def scatter_add(a, rows, c):
    out = np.array(a)
    np.add.at(out, rows, c)
    return out


def sumpool_spread(values, shape, kernel, stride, padding):
    out = np.zeros(np.add(shape, [0, 0, *np.multiply(2, padding)]), values.dtype)
    seen = sliding_window_view(out, kernel, (2, 3), writeable=True)[:, :, :: stride[0], :: stride[1]]
    for i, j in np.ndindex(*kernel):
        seen[..., i, j] += values
    return out[:, :, padding[0] :, padding[1] :][:, :, : shape[2], : shape[3]]


def shift(a, by):
    return np.left_shift(a, np.maximum(by, 0)) >> np.maximum(np.negative(by), 0)


LEAST = -(2.0**62)  # less than any number here, and a whole one, too
MINE = conv, conv_weight_gradient, maxpool_where, sumpool_spread, scatter_add, shift
PLAIN = "add subtract multiply divide power maximum minimum less equal where exp log tanh matmul transpose take"
OPS = {name: getattr(np, name) for name in PLAIN.split()} | {
    **{operation.__name__.replace("_", "-"): operation for operation in MINE},
    **{"less-equal": np.less_equal, "floor-divide": np.floor_divide, "broadcast": np.broadcast_to},
    **{"below": np.searchsorted, "root": lambda a: (r := np.sqrt(a).astype(int)) - (r * r > a) + ((r + 1) ** 2 <= a)},
    "round": lambda a, by, bits: np.clip(shift(shift(a, 1 - by) + 1, -1), 1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1),
    "outside": lambda a, by, bits: shift(2 * abs(a), np.maximum(-by, 0)) >= (2**bits - 1) * 2 ** np.maximum(by, 0),
    **{"sigmoid": lambda a: np.exp(-np.logaddexp(0, -a)), "softplus": lambda a: np.logaddexp(0, a)},
    "maxpool": lambda x, **how: windows(x, **how, outside=LEAST).max((-2, -1)),
    "avgpool": lambda x, **how: windows(x, **how).mean((-2, -1)),
    "sumpool": lambda x, **how: windows(x, **how).sum((-2, -1)),
    "avgpool-spread": lambda x, **how: sumpool_spread(x / np.prod(how["kernel"]), **how),
    "unpool": lambda a, where, shape: scatter_add(
        np.zeros((*shape[:2], np.prod(shape[2:])), a.dtype), (*np.ogrid[: shape[0], : shape[1], :1, :1][:2], where), a
    ).reshape(shape),
    "cast": lambda a, type: a.astype(type),
    "sum": lambda a, axes, keep: a.sum(tuple(axes), keepdims=keep),
    "reshape": lambda a, shape: a.reshape(shape),
    "slice": lambda a, axis, start, stop, step: a.swapaxes(0, axis)[start:stop:step].swapaxes(0, axis),
    "embed": lambda a, shape, axis, start, stop, step: scatter_add(
        np.zeros(shape, a.dtype).swapaxes(0, axis), slice(start, stop, step), a.swapaxes(0, axis)
    ).swapaxes(0, axis),
    "concat": lambda *parts, axis: np.concatenate(parts, axis),
}


def run(program, values):
    """The updates of one step and the new values of buffers, by state; values: inputs and states by name."""
    values = values | {name: array(data) for name, data in program["constants"].items()}
    with np.errstate(all="ignore"):  # of 0 / 0, which `where` leaves out
        for op in (op for stage in program["stages"] for op in stage["ops"]):
            operands = [values[o] if isinstance(o, str) else o for o in op["in"]]
            values[op["out"]] = OPS[op["op"]](*operands, **op.get("with", {}))
    return ({state: values[name] for state, name in program[kind].items()} for kind in ("updates", "buffers"))


def apply(o, state, name, g, rate, t):
    """Step t (from 1) of one parameter by optimiser o; its moments are states, too."""

    def mean(moment, beta, value, share):
        key = f"{name} {moment}"
        state[key] = beta * state[key] + share * value
        return state[key]

    p = state[name] * (1 - rate * o["weight decay"] * (o["decay"] == "decoupled"))
    g = g + p * o["weight decay"] * (o["decay"] == "update")
    if o["op"] == "sgd":
        return p - rate * (mean("momentum", o["momentum"], g, 1) if o["momentum"] else g)
    b1, b2 = o["betas"]
    m = mean("first moment", b1, g, 1 - b1)
    if name in o["factored"]:
        row, column = (mean(f"{k} moment", b2, (g * g).mean(a), 1 - b2) for a, k in ((1, "row"), (0, "column")))
        v = np.outer(row, column) / row.mean()
    else:
        v = mean("second moment", b2, g * g, 1 - b2)
    return p - rate * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + o["epsilon"])


def steps(rule, vectors):
    """Yields what it came to, by name, and what the file says, step by step; the state runs on from the first."""
    state = {name: array(data) for name, data in vectors["state"].items()}
    for t, step in enumerate(vectors["steps"], start=1):
        known = state | {name: array(data) for name, data in step["inputs"].items()}
        updates, buffers = run(vectors["programs"][step["program"]], known)
        for name in (updates.keys() & state.keys()) - buffers.keys():  # of others the program itself says what follows
            state[name] = apply(rule["optimiser"], state, name, updates[name], step["learning rate"], t)
        state |= buffers
        yield updates, {name: array(data) for name, data in step["updates"].items()}
        yield state, {name: array(data) for name, data in step["state"].items()}


def deviation(found, golden):
    """The largest difference of all arrays, each over its largest number."""
    assert found.keys() == golden.keys(), sorted(found.keys() ^ golden.keys())
    return float(max(np.abs(found[n] - g).max() / (np.abs(g).max() or 1.0) for n, g in golden.items()))


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        rule = json.load(file)
    worst = {v["arithmetic"]: max(deviation(*pair) for pair in steps(rule, v)) for v in rule["vectors"]}
    print(f"{rule['rule']['name']}: {len(rule['vectors'][0]['steps'])} steps, at most {worst} from the golden vectors")
    fine = all(distance <= {"float64": 1e-9, "integer": 0}[kind] for kind, distance in worst.items())
    sys.exit(None if fine else "not reproduced")
