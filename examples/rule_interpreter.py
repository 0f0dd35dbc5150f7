"""Runs a rule.json of `localssl export RUN --rule` with NumPy alone, and compares with the golden vectors in it.

    python rule_interpreter.py rule.json

It knows no rule: the file says what is computed (docs/hardware.md, "A rule as data", lists the operations). A test
bench of your own does what `steps` does, with your device in place of `run`.
"""

import json
import sys

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

TOLERANCE = 1e-9  # of an array's largest number


def array(data):
    """An array of the file: {"type", "shape", "values" in C order} or, where all are the same, "fill"."""
    values = np.array(data["values"] if "values" in data else data["fill"], dtype=data["type"])
    return np.broadcast_to(values, data["shape"]).copy() if "fill" in data else values.reshape(data["shape"])


def windows(x, kernel, stride, padding, dilation, outside=0.0):
    """What every window of x (N, C, *map) sees: (N, C, *positions, *kernel)."""
    x = np.pad(x, [(0, 0), (0, 0), *((p, p) for p in padding)], constant_values=outside)
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation)]
    seen = sliding_window_view(x, reach, tuple(range(2, x.ndim)))
    return seen[(slice(None), slice(None), *(slice(None, None, step) for step in (*stride, *dilation)))]


def conv(x, weight, stride, padding, dilation, groups):
    seen, n, found = windows(x, weight.shape[2:], stride, padding, dilation), x.ndim - 2, []
    for part, w in zip(np.split(seen, groups, 1), np.split(weight, groups)):
        found.append(np.tensordot(part, w, ((1, *range(n + 2, 2 * n + 2)), range(1, n + 2))))
    return np.moveaxis(np.concatenate(found, -1), -1, 1)


def conv_weight_gradient(error, x, shape, stride, padding, dilation, groups):
    seen, axes = windows(x, shape[2:], stride, padding, dilation), (0, *range(2, x.ndim))
    parts = zip(np.split(error, groups, 1), np.split(seen, groups, 1))
    return np.concatenate([np.tensordot(e, part, (axes, axes)) for e, part in parts])


def maxpool(x, kernel, stride, padding, dilation):
    return windows(x, kernel, stride, padding, dilation, -np.inf).max((-2, -1))


def maxpool_where(x, kernel, stride, padding, dilation):
    seen = windows(x, kernel, stride, padding, dilation, -np.inf)
    places = np.unravel_index(seen.reshape(*seen.shape[:-2], -1).argmax(-1), kernel)
    positions = np.meshgrid(*(np.arange(n) for n in seen.shape[2:4]), indexing="ij")
    geometry = zip(positions, stride, padding, dilation, places)
    row, column = (at * s - p + d * place for at, s, p, d, place in geometry)
    return row * x.shape[3] + column


def unpool(values, where, shape):
    out = np.zeros((shape[0] * shape[1], shape[2] * shape[3]))
    np.add.at(out, (np.arange(len(out))[:, None], where.reshape(len(out), -1)), values.reshape(len(out), -1))
    return out.reshape(shape)


def avgpool(x, kernel, stride, padding):
    return windows(x, kernel, stride, padding, (1, 1)).mean((-2, -1))


def avgpool_spread(values, shape, kernel, stride, padding):
    out = np.zeros((*shape[:2], *(n + 2 * p for n, p in zip(shape[2:], padding))))
    seen = sliding_window_view(out, kernel, (2, 3), writeable=True)[:, :, :: stride[0], :: stride[1]]
    for i, j in np.ndindex(*kernel):
        seen[..., i, j] += values / (kernel[0] * kernel[1])
    return out[:, :, padding[0] : padding[0] + shape[2], padding[1] : padding[1] + shape[3]]


def embed(a, shape, axis, start, stop, step):
    out = np.zeros(shape)
    out[(slice(None),) * axis + (slice(start, stop, step),)] = a
    return out


def scatter_add(a, rows, c):
    out = np.array(a)
    np.add.at(out, rows, c)
    return out


OPS = {
    **{"conv": conv, "conv-weight-gradient": conv_weight_gradient, "matmul": np.matmul, "maxpool": maxpool},
    **{"maxpool-where": maxpool_where, "unpool": unpool, "avgpool": avgpool, "avgpool-spread": avgpool_spread},
    **{"add": np.add, "subtract": np.subtract, "multiply": np.multiply, "divide": np.divide, "maximum": np.maximum},
    **{"less": np.less, "less-equal": np.less_equal, "equal": np.equal, "where": np.where, "power": np.power},
    **{"exp": np.exp, "log": np.log, "tanh": np.tanh, "embed": embed, "scatter-add": scatter_add},
    "sigmoid": lambda a: np.exp(-np.logaddexp(0, -a)),
    "softplus": lambda a: np.logaddexp(0, a),
    "cast": lambda a, type: a.astype(type),
    "sum": lambda a, axes, keep: a.sum(tuple(axes), keepdims=keep),
    "reshape": lambda a, shape: a.reshape(shape),
    "transpose": lambda a, axes: a.transpose(axes),
    "broadcast": lambda a, shape: np.broadcast_to(a, shape),
    "slice": lambda a, axis, start, stop, step: a[(slice(None),) * axis + (slice(start, stop, step),)],
    "concat": lambda *parts, axis: np.concatenate(parts, axis),
    "take": lambda a, index, axis: np.take(a, index, axis),
}


def run(program, values):
    """The updates of one step and the new values of buffers, by state; values: inputs and states by name."""
    values = values | {name: array(data) for name, data in program["constants"].items()}
    for stage in program["stages"]:
        for op in stage["ops"]:
            operands = [values[o] if isinstance(o, str) else o for o in op["in"]]
            values[op["out"]] = OPS[op["op"]](*operands, **op.get("with", {}))
    return ({state: values[name] for state, name in program[kind].items()} for kind in ("updates", "buffers"))


def apply(optimiser, state, name, g, rate, t):
    """Step t (from 1) of one parameter, its moments among the states."""
    o, p = optimiser, state[name]
    if o["decay"] == "decoupled":
        p = p * (1 - rate * o["weight decay"])
    else:
        g = g + o["weight decay"] * p
    if o["op"] == "sgd":
        m = state[f"{name} momentum"] = o["momentum"] * state[f"{name} momentum"] + g
        state[name] = p - rate * m
        return
    b1, b2 = o["betas"]
    m = state[f"{name} first moment"] = b1 * state[f"{name} first moment"] + (1 - b1) * g
    if name in o["factored"]:
        for axis, key in ((1, f"{name} row moment"), (0, f"{name} column moment")):
            state[key] = b2 * state[key] + (1 - b2) * (g * g).mean(axis)
        row, column = state[f"{name} row moment"], state[f"{name} column moment"]
        v = np.outer(row, column) / row.mean()
    else:
        v = state[f"{name} second moment"] = b2 * state[f"{name} second moment"] + (1 - b2) * g * g
    state[name] = p - rate * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + o["epsilon"])


def steps(rule, vectors):
    """Yields what it came to, by name, and what the file says, step by step; the state runs on from the first."""
    state = {name: array(data) for name, data in vectors["state"].items()}
    for t, step in enumerate(vectors["steps"], start=1):
        inputs = {name: array(data) for name, data in step["inputs"].items()}
        updates, buffers = run(vectors["programs"][step["program"]], state | inputs)
        for name, g in updates.items():
            apply(rule["optimiser"], state, name, g, step["learning rate"], t)
        state |= buffers
        yield updates, {name: array(data) for name, data in step["updates"].items()}
        yield state, {name: array(data) for name, data in step["state"].items()}


def deviation(found, golden):
    """The largest difference of all arrays, each over its largest number."""
    assert found.keys() == golden.keys(), sorted(found.keys() ^ golden.keys())
    worst = [np.abs(found[n] - g).max() / (np.abs(g).max() or 1.0) for n, g in golden.items()]
    return float(np.max(worst))


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        rule = json.load(file)
    for vectors in (v for v in rule["vectors"] if v["arithmetic"] == "float64"):
        worst = max(deviation(*pair) for pair in steps(rule, vectors))
        print(f"{rule['rule']['name']}: {len(vectors['steps'])} steps, at most {worst:.1e} from the golden vectors")
        if not worst <= TOLERANCE:
            sys.exit(1)
