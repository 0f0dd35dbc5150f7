"""Golden vectors of one update in integers of b bits, and the same update by int64 adds, shifts and comparisons.

``record`` lets localssl make an update of ``clapp++`` and writes down, block by block, the integers that went in and
came out, with the power of two of each. ``update`` knows those integers alone, and NumPy: it is what a chip would do.

Run: python examples/integer_update.py [--bits 8] [--seed 0] [--out vectors.json]
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch

import localssl
from localssl.system.files import write_text

N, PATCHES = 4, (2, 2, 2, 1, 1)  # images, two views each; side of the patch of every block's readout


def record(bits=8, seed=0):
    """The integers of every block: a list of dictionaries. ``powers``: the number is the integer times 2 to that."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    encoder = localssl.encoders.vgg5(width=0.25, bits=bits).double()
    learner = localssl.Learner(encoder, localssl.rules.get("clapp++"), (1, 16, 16), PATCHES)
    a, b = torch.randn(2, N, 1, 16, 16, generator=generator, dtype=torch.float64)
    learner.accumulate_grads(a, b)  # the first batch chooses the grids
    learner.zero_grad()
    learner.eval()  # they stay
    learner.accumulate_grads(a, b)
    images = torch.cat((a, b))
    entry = encoder.blocks[0][0]
    with torch.no_grad():
        arrays = [entry(images), *encoder(images)]
    grids = [entry, *(block[-1] for block in encoder.blocks)]
    found = []
    for i, block in enumerate(encoder.blocks):
        own, layer = learner.parts["integer"][i], block[1 if i == 0 else 0]
        B = learner.projections["lateral"][i].weight
        steps = {"x": grids[i].step, "z": grids[i + 1].step, "readout": own.of("readout").step}
        steps |= {"W": own.store("layer").grid.step, "B": own.store("lateral").grid.step}
        steps |= {"g": own.of("g_lateral").step, "signal": own.of("signal").step}
        # a grid that has met zeros alone has no step yet
        powers = {name: round(math.log2(float(step))) if step > 0 else 0 for name, step in steps.items()}
        area = PATCHES[i] ** 2
        powers["dW"] = powers["signal"] + powers["x"] - round(math.log2(area))
        powers["dbias"] = powers["signal"] - round(math.log2(area))
        powers["dB"] = 2 * powers["readout"] - round(math.log2(2 * N))
        tensors = {"x": arrays[i], "z": arrays[i + 1], "W": layer.weight, "bias": layer.bias, "B": B}
        tensors |= {"dW": layer.weight.grad, "dbias": layer.bias.grad, "dB": B.grad}
        powers["bias"] = powers["W"]
        pool = arrays[i].shape[-1] // arrays[i + 1].shape[-1]
        integers = {name: whole(x, powers[name]) for name, x in tensors.items()}
        found.append({"bits": bits, "pool": pool, "patch": PATCHES[i], "powers": powers, **integers})
    return found


def whole(x, power):
    """The integers of a tensor, in units of 2 to that power."""
    units = x.detach().numpy() * 2.0**-power
    assert (units == np.round(units)).all()
    return units.astype(np.int64)


def nearest(k, places, low, high):
    """k · 2^-places to the nearest integer, halves up, clipped: an add, a shift and a comparison."""
    return np.clip((k + (1 << places - 1)) >> places if places > 0 else k << -places, low, high)


def taps(x):
    """The nine shifted copies of x that a 3 × 3 kernel meets, zeros around: ((i, j), (n, c, h, w))."""
    padded, side = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))), x.shape[-1]
    return [((i, j), padded[:, :, i : i + side, j : j + side]) for i in range(3) for j in range(3)]


def windows(x, side):
    """(n, c, h, w) to (n, c, h / side, w / side, side²)."""
    n, c, h, w = x.shape
    return x.reshape(n, c, h // side, side, w // side, side).swapaxes(3, 4).reshape(n, c, h // side, w // side, -1)


def back(x, side):
    """The inverse of ``windows``."""
    n, c, h, w, _ = x.shape
    return x.reshape(n, c, h, w, side, side).swapaxes(3, 4).reshape(n, c, h * side, w * side)


def update(v):
    """z, dW, dbias, dB of one block, from its input and its weights."""
    top, at, patch = 2 ** (v["bits"] - 1) - 1, v["powers"], v["patch"]
    x, count = v["x"], len(v["x"])
    # run: the sums are wide; the bias meets an input of one
    u = sum(np.einsum("nchw,oc->nohw", tap, v["W"][:, :, i, j]) for (i, j), tap in taps(x))
    bias = v["bias"][:, None, None]
    u, power = (u + (bias << -at["x"]), at["x"] + at["W"]) if at["x"] <= 0 else ((u << at["x"]) + bias, at["W"])
    pooled = windows(np.maximum(u, 0), v["pool"])
    where, largest = pooled.argmax(-1), pooled.max(-1)  # of several largest the first
    z = nearest(largest, at["z"] - power, 0, top)
    # readout: a mean over a patch is a sum and a shift
    area = round(math.log2(patch**2))
    parts = windows(z, patch)
    r = nearest(parts.sum(-1), at["readout"] - at["z"] + area, 0, top).reshape(count, -1)
    # prediction g = B c, scores, and what the hinge lets through; the other view, and the next sample's other view
    g = nearest(r @ v["B"].T, at["g"] - at["readout"] - at["B"], -top, top)
    same = (np.arange(count) + count // 2) % count
    other = same[(np.arange(count) + 1) % count]
    score = at["readout"] + at["g"]  # its power; the margin is one
    like, unlike = ((r[i] * g).sum(1) << max(score, 0) for i in (same, other))
    pull, push = like < 1 << max(-score, 0), -unlike < 1 << max(-score, 0)
    # learn: the mean over the batch is a shift on the way to the signal, the mean over a patch stays in the power
    dz, dB = np.zeros_like(r), np.zeros_like(v["B"])
    for i in range(count):
        dz[same[i]] -= pull[i] * g[i]
        dz[other[i]] += push[i] * g[i]
        dB += np.outer(push[i] * r[other[i]] - pull[i] * r[same[i]], r[i])
    signal = nearest(dz, at["signal"] - at["g"] + round(math.log2(count)), -top, top)
    spread = back(signal.reshape(*parts.shape[:4], 1).repeat(patch**2, -1), patch) * (largest > 0)  # the gate
    routed = np.zeros_like(pooled)
    np.put_along_axis(routed, where[..., None], spread[..., None], -1)
    delta, dW = back(routed, v["pool"]), np.zeros_like(v["W"])
    for (i, j), tap in taps(x):
        dW[:, :, i, j] = np.einsum("nohw,nchw->oc", delta, tap)
    return {"z": z, "dW": dW, "dbias": delta.sum((0, 2, 3)), "dB": dB}


def main(bits=8, seed=0, out=None):
    vectors = record(bits, seed)
    for number, v in enumerate(vectors, start=1):
        mine = update(v)
        wrong = sum(int((mine[name] != v[name]).sum()) for name in mine)
        total, widest = sum(a.size for a in mine.values()), max(int(np.abs(a).max()) for a in mine.values())
        print(f"block {number}: {wrong} of {total:,} integers differ; the widest has {widest.bit_length() + 1} bits")
    if out is not None:
        whole_file = [{k: x.tolist() if isinstance(x, np.ndarray) else x for k, x in v.items()} for v in vectors]
        write_text(out, json.dumps(whole_file))
    return vectors


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bits", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    main(**vars(parser.parse_args()))
