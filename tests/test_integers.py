"""Learning in integers: against a slow integer oracle, against floats, over a run, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

import localssl
from localssl import engine, metrics, rules
from localssl.encoders import Encoder, vgg5
from localssl.engine.integer import KEY
from localssl.engine.synapses import FRACTION, PARTS, Device, Numbers, Synapses, Writes
from localssl.grids import Grid
from localssl.readout import readout
from tests.train_util import assert_same_run, hooked, last_state, rows, run_tiny, send, stop_at, tiny, weights
from tests.util import usage_error

Ints = NDArray[np.int64]
N, SIDE, PATCH = 4, 4, (2, 2)


def small(bits: int | None, rule: str = "clapp++dfb", seed: int = 0, **device: float) -> localssl.Learner:
    """Two convolutions, the second pooled."""
    torch.manual_seed(seed)
    grids = [Grid(bits) for _ in range(3)] if bits else [nn.Identity() for _ in range(3)]
    first = nn.Sequential(grids[0], nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), grids[1])
    second = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), grids[2])
    encoder = Encoder.from_blocks([first, second]).double()
    return localssl.Learner(encoder, rules.get(rule), (2, SIDE, SIDE), PATCH, device=Device(**device))


def views() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    a, b = torch.randn(2, N, 2, SIDE, SIDE, generator=generator, dtype=torch.float64)
    return a, a + 0.3 * b


def whole(x: torch.Tensor, step: float) -> Ints:
    """The integers of a tensor on a grid."""
    units = x.detach().double().numpy() / step
    assert np.array_equal(units, np.round(units))
    return units.astype(np.int64)


def shifted(k: Ints, by: float, top: int) -> Ints:
    """k · by, with a power of two, rounded half up and clipped: an add, a shift and a comparison."""
    places = -round(math.log2(by))
    assert by == 2.0**-places
    k = (k + (1 << (places - 1))) >> places if places > 0 else k << -places
    return np.clip(k, -top, top)


def convolved(x: Ints, w: Ints) -> Ints:
    """3 × 3 with zeros around, sample by sample, position by position."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    out = np.zeros((len(x), len(w), *x.shape[2:]), dtype=np.int64)
    for n, o, i, j in np.ndindex(*out.shape):
        out[n, o, i, j] = (padded[n, :, i : i + 3, j : j + 3] * w[o]).sum()
    return out


class Oracle:
    """One step of ``clapp++`` or ``clapp++dfb`` on ``small``, in int64 alone; steps of grids are read from the learner."""

    def __init__(self, learner: localssl.Learner, x: torch.Tensor, rule: str):
        self.numbers = numbers = [m for m in learner.parts[KEY] if isinstance(m, Numbers)]
        blocks, top, (key,) = learner.encoder.blocks, numbers[0].of("signal").top, learner.rule.references
        grids = [float(m.step) for m in learner.encoder.modules() if isinstance(m, Grid)]
        images = x.double().numpy() / grids[0]
        k, at = np.clip(np.floor(images + 0.5), -top, top).astype(np.int64), grids[0]
        self.updates: dict[tuple[int, str], tuple[Ints, float]] = {}
        kept: list[dict[str, Any]] = []
        for layer, conv in enumerate((blocks[0][1], blocks[1][0])):
            own = numbers[layer]
            w_step = float(own.synapses["layer"].grid.step)
            a_step = at * w_step
            w, bias = whole(conv.weight, w_step), whole(conv.bias, w_step)
            a = convolved(k, w)
            assert at <= 1  # so that the bias, of activity one, is shifted to the left
            a += (bias << -round(math.log2(at)))[:, None, None]
            gate, route = a > 0, None
            a = np.maximum(a, 0)
            if layer == 1:  # the largest of four; where several are, the first
                n, c, h, _ = a.shape
                windows = a.reshape(n, c, h // 2, 2, h // 2, 2).transpose(0, 1, 2, 4, 3, 5).reshape(n, c, h // 2, -1, 4)
                route, a = windows.argmax(-1), windows.max(-1)
            z_step, r_step = grids[layer + 1], float(own.of("readout").step)
            z = shifted(a, a_step / z_step, top)
            sums = z.reshape(len(z), z.shape[1], z.shape[2] // 2, 2, -1, 2).sum((3, 5)).reshape(len(z), -1)
            read = shifted(sums, z_step / 4 / r_step, top)
            kept.append(dict(x=k, x_step=at, gate=gate, route=route, read=read, r_step=r_step, shape=z.shape))
            k, at = z, z_step
        for layer, own in enumerate(numbers):
            mine, source = kept[layer], kept[layer if rule == "clapp++" else -1]
            b_step, g_step = float(own.synapses[key].grid.step), float(own.of(f"g_{key}").step)
            b = whole(learner.parts[key][layer].weight, b_step)
            g = shifted(source["read"] @ b.T, source["r_step"] * b_step / g_step, top)
            self._update(layer, mine, source, g, g_step, float(own.of("signal").step), top, key)

    def _update(self, layer: int, mine: Any, source: Any, g: Ints, g_step: float, s_step: float, top: int, key: str):
        read, count = mine["read"], 2 * N
        positive = np.concatenate([read[N:], read[:N]])
        negatives = (np.arange(count) + 1) % count
        one = 1 / (mine["r_step"] * g_step)  # the margin, in units of a score
        soma, db = np.zeros_like(read), np.zeros((read.shape[1], source["read"].shape[1]), dtype=np.int64)
        for i in range(count):
            j = int(negatives[i])
            pulled, pushed = (positive[i] * g[i]).sum() < one, -(positive[j] * g[i]).sum() < one
            soma[(i + N) % count] -= pulled * g[i]
            soma[(j + N) % count] += pushed * g[i]
            db += np.outer(pushed * positive[j] - pulled * positive[i], source["read"][i])
        signal = shifted(soma, g_step / count / s_step, top)
        _, c, h, w = mine["shape"]
        spread = signal.reshape(count, c, h // 2, 1, w // 2, 1).repeat(2, 3).repeat(2, 5).reshape(count, c, h, w)
        at_a = np.zeros(mine["gate"].shape, dtype=np.int64)
        for n, o, i, j in np.ndindex(*spread.shape):
            row, column = (i, j)
            if mine["route"] is not None:
                row, column = 2 * i + mine["route"][n, o, i, j] // 2, 2 * j + mine["route"][n, o, i, j] % 2
            at_a[n, o, row, column] += spread[n, o, i, j] * mine["gate"][n, o, row, column]
        padded = np.pad(mine["x"], ((0, 0), (0, 0), (1, 1), (1, 1)))
        dw = np.zeros((c, padded.shape[1], 3, 3), dtype=np.int64)
        for n, o, i, j in np.ndindex(*at_a.shape):
            dw[o] += at_a[n, o, i, j] * padded[n, :, i : i + 3, j : j + 3]
        self.updates[layer, "weight"] = dw, s_step / 4 * mine["x_step"]  # /4: shared among the patch's positions
        self.updates[layer, "bias"] = at_a.sum((0, 2, 3)), s_step / 4
        self.updates[layer, key] = db, mine["r_step"] * source["r_step"] / count

    def written(self, layer: int, name: str, k: Ints, step: float, rate: float, draws: Ints) -> Ints:
        """The weights after the update: 24 bits of fraction, as many random ones added, the rest thrown away."""
        update, unit = self.updates[layer, name]
        fine = shifted_down(-update, unit * rate / step * FRACTION)
        return np.clip((k * FRACTION + fine + draws) >> 24, -self.numbers[0].of("signal").top, None)


def shifted_down(k: Ints, by: float) -> Ints:
    """k · by with a power of two, the rest thrown away."""
    places = round(math.log2(by))
    return k << places if places >= 0 else k >> -places


@pytest.mark.parametrize("rule", ["clapp++", "clapp++dfb"])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_step_is_that_of_the_integer_oracle(bits: int, rule: str) -> None:
    learner = small(bits, rule)
    assert learner.engine == "integer"
    a, b = views()
    learner.accumulate_grads(a, b)  # chooses the grids
    learner.zero_grad()
    numbers = [m for m in learner.parts[KEY] if isinstance(m, Numbers)]
    learner.eval()  # the grids stay
    learner.accumulate_grads(a, b)
    oracle = Oracle(learner, torch.cat((a, b)), rule)
    rate = 8 * 2.0**-bits
    places = engine.places(learner.encoder, learner.parts)
    before: dict[tuple[int, str], tuple[Ints, float]] = {}
    draws: dict[tuple[int, str], Ints] = {}
    for layer, (own, weights_) in enumerate(places):
        generator = own.generator(1)
        for name, these in weights_.items():
            step = float(own.synapses[name].grid.step)
            for w, kind in zip(these, ("weight", "bias") if name == "layer" else (name,), strict=True):
                update, unit = oracle.updates[layer, kind]
                assert w.grad is not None
                assert np.abs(update).max() > 0
                np.testing.assert_array_equal(whole(w.grad, unit), update)
                before[layer, kind] = whole(w, step), step
                draws[layer, kind] = torch.randint(FRACTION, w.shape, generator=generator).numpy()
    top = numbers[0].of("signal").top
    Writes(places, rate, shifted=False).step()
    changed = 0
    for layer, (own, weights_) in enumerate(places):
        for name, these in weights_.items():
            for w, kind in zip(these, ("weight", "bias") if name == "layer" else (name,), strict=True):
                k, step = before[layer, kind]
                assert float(own.synapses[name].grid.step) == step, "a grid was widened: choose another seed"
                want = np.minimum(oracle.written(layer, kind, k, step, rate, draws[layer, kind]), top)
                np.testing.assert_array_equal(whole(w, step), want)
                changed += int((want != k).sum())
    assert changed > 0
