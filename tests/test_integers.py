"""Learning in integers: against a slow integer oracle, against floats, over a run, and what is refused."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.grad import conv2d_weight

import localssl
from localssl import engine, evaluate, rules
from localssl.blocks import BlackBox
from localssl.credit.hebbian import weighted
from localssl.encoders import Encoder, vgg5
from localssl.engine import narrow, passes
from localssl.engine.integer import ABLE, KEY, refused
from localssl.engine.synapses import FRACTION, PARTS, Device, Numbers, Synapses, Writes
from localssl.grids import Grid
from localssl.rules.base import ScoreRule
from localssl.runs import metrics
from tests.train_util import assert_same_run, last_state, run_tiny
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
    """One step of ``clapp++`` or ``clapp++dfb`` on ``small``, in int64 alone, given the grids' steps."""

    def __init__(self, learner: localssl.Learner, x: torch.Tensor, rule: str):
        self.numbers = numbers = [m for m in learner.parts[KEY] if isinstance(m, Numbers)]
        assert isinstance(learner.rule, ScoreRule)
        top, (key,) = numbers[0].of("signal").top, learner.rule.references
        grids = [float(m.step) for m in learner.encoder.modules() if isinstance(m, Grid)]
        images = x.double().numpy() / grids[0]
        k, at = np.clip(np.floor(images + 0.5), -top, top).astype(np.int64), grids[0]
        self.updates: dict[tuple[int, str], tuple[Ints, float]] = {}
        kept: list[dict[str, Any]] = []
        for layer, conv in enumerate(weighted(block, 1) for block in learner.encoder.blocks):
            own = numbers[layer]
            w_step = float(own.store("layer").grid.step)
            a_step = at * w_step
            w, bias = whole(conv.weight, w_step), whole(conv.get_parameter("bias"), w_step)
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
            kept.append({"x": k, "x_step": at, "gate": gate, "route": route, "read": read, "r_step": r_step})
            kept[-1]["shape"] = z.shape
            k, at = z, z_step
        for layer, own in enumerate(numbers):
            mine, source = kept[layer], kept[layer if rule == "clapp++" else -1]
            b_step, g_step = float(own.store(key).grid.step), float(own.of(f"g_{key}").step)
            b = whole(learner.parts[key][layer].get_parameter("weight"), b_step)
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
            step = float(own.store(name).grid.step)
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
                assert float(own.store(name).grid.step) == step, "a grid was widened: choose another seed"
                want = np.minimum(oracle.written(layer, kind, k, step, rate, draws[layer, kind]), top)
                np.testing.assert_array_equal(whole(w, step), want)
                changed += int((want != k).sum())
    assert changed > 0


def test_two_losses_add_up_on_their_grids() -> None:
    learner = small(8, "clapp++both")
    losses = learner.accumulate_grads(*views())
    assert losses.shape == (2,)
    assert all(p.grad is not None and bool(p.grad.any()) for p in learner.parameters())


def learnt(rule: str, bits: int, pool: nn.Module) -> list[torch.Tensor]:
    """Losses and updates of three steps, with weights of float32, on more positions than a part of ΔW holds."""
    torch.manual_seed(1)
    first = nn.Sequential(Grid(bits), nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), pool, Grid(bits))
    second = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), Grid(bits))
    third = nn.Sequential(nn.Flatten(), nn.Linear(16 * 8 * 8, 8), nn.ReLU(), Grid(bits))
    patches = (2, 2, None) if rule != "softhebb" else None
    learner = localssl.Learner(Encoder.from_blocks([first, second, third]), rules.get(rule), (2, 16, 16), patches)
    found: list[torch.Tensor] = []
    a = torch.randn(12, 2, 16, 16)
    for seed in range(3):  # the first chooses the grids
        learner.zero_grad()
        torch.manual_seed(seed)
        found.append(learner.accumulate_grads(a, a + 0.5 * torch.randn_like(a)).double())
        found += [p.grad.clone() for p in learner.parameters() if p.grad is not None]
    return found


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2)])
@pytest.mark.parametrize("bits", [3, 6, 8, 12])
@pytest.mark.parametrize("rule", ["clapp++both", "ff", "softhebb"])
def test_sums_in_float32_are_those_of_float64(
    rule: str, bits: int, pool: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[torch.dtype] = []
    drive_of = passes.drive_of
    monkeypatch.setattr(passes, "drive_of", lambda layer, x, *rest: used.append(x.dtype) or drive_of(layer, x, *rest))
    mine = learnt(rule, bits, pool)
    if rule != "softhebb":
        assert (torch.float32 in used) == (bits < 12)
    monkeypatch.setattr(narrow, "HELD", 0)
    used.clear()
    wide = learnt(rule, bits, pool)
    assert set(used) == {torch.float64}
    assert len(mine) == len(wide) >= 12
    for a, b in zip(mine, wide, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("held", [2**24, 2**27])
def test_sums_at_their_largest(held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Odd numbers near the largest: one bit more than float32 holds would be seen."""
    monkeypatch.setattr(narrow, "HELD", held)
    layer, top = nn.Conv2d(4, 4, 3, padding=1, bias=False), 127
    x, at_a = (top - 2 * torch.randint(2, (40, 4, 12, 12)) for _ in range(2))
    found, _ = narrow.change_of(layer, x.double(), at_a.double(), (True, False), top**2)
    want = conv2d_weight(x.double(), layer.weight.shape, at_a.double(), padding=1)
    assert found is not None
    assert torch.equal(found.double(), want) == (held == 2**24)


ACTIVITY, MIDDLE, LARGEST = 2.0**-9, 2.0**-8, 2.0**-3  # what docs/hardware.md states of 16 bits
LEARNT = sorted(name for name in rules.names() if refused(rules.get(name)) is None)


def apart(rule: str, bits: int, seed: int) -> tuple[list[float], list[float]]:
    """How far activities and updates of these bits are from those of floats, beside their lengths, block by block."""
    activities: list[list[torch.Tensor]] = []
    updates: list[list[torch.Tensor]] = []
    for b in (bits, None):
        torch.manual_seed(seed)
        encoder = vgg5(0.25, 1, **{**rules.get(rule).encoder_options, "bits": b}).double()
        learner = localssl.Learner(encoder, rules.get(rule), (1, 16, 16), (2, 2, 2, 1, 1), engine="auto")
        assert (learner.engine == "integer") == (b is not None)
        torch.manual_seed(100 + seed)
        a = torch.randn(8, 1, 16, 16, dtype=torch.float64)
        labels = torch.arange(8) if learner.rule.uses_labels else None
        for _ in range(2):  # the first batch chooses the grids
            learner.zero_grad()
            torch.manual_seed(4)  # what the inputs draw
            learner.accumulate_grads(a, a + 0.5 * torch.randn_like(a), labels=labels)
        updates.append([p.grad for p in learner.parameters() if p.ndim > 1 and p.grad is not None])
        activities.append([z.detach() for z in learner.encoder(a)])
    assert len(updates[0]) == len(updates[1]) >= 5
    assert all(want.any() for want in updates[1])
    zs, us = (
        [float((mine - want).norm() / want.norm()) for mine, want in zip(*found, strict=True)]
        for found in (activities, updates)
    )
    return zs, us


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rule", LEARNT)
def test_sixteen_bits_are_floats(rule: str, seed: int) -> None:
    """The same weights, views and negatives. A hinge, gate or maximum that flips changes an update by a whole share."""
    activities, updates = apart(rule, 16, seed)
    assert max(activities) < ACTIVITY
    assert statistics.median(updates) < MIDDLE
    assert max(updates) < LARGEST


@pytest.mark.parametrize("rule", ["clapp", "clapp++", "clapp++dfb", "clapp++both", "ff"])
def test_sixteen_bits_are_floats_where_little_can_flip(rule: str) -> None:
    """Two blocks, four images: every matrix's update, whatever the seed, without an allowance for flips."""
    for seed in range(20):
        found: list[list[torch.Tensor]] = []
        for bits in (16, None):
            learner = small(bits, rule, seed)
            torch.manual_seed(1000 + seed)
            pair = [torch.randn(N, 2, SIDE, SIDE, dtype=torch.float64) for _ in range(2)]
            for _ in range(2):  # the first batch chooses the grids
                learner.zero_grad()
                torch.manual_seed(4)
                learner.accumulate_grads(*pair)
            found.append([p.grad for p in learner.parameters() if p.ndim > 1 and p.grad is not None])
        for mine, want in zip(*found, strict=True):
            assert float((mine - want).norm()) <= 2.0**-9 * float(want.norm()), seed


def test_few_bits_are_not() -> None:
    """The bounds above can be missed."""
    activities, updates = apart("clapp++", 4, 0)
    assert min(activities) > 4 * ACTIVITY
    assert statistics.median(updates) > 4 * MIDDLE
    assert max(updates) > LARGEST


def test_grids() -> None:
    grid = Grid(3)
    x = torch.tensor([-9.0, -0.5, 0.4, 0.5, 2.49, 9.0])
    assert torch.equal(grid(x), x), "before it is chosen, nothing is rounded"
    grid.step.fill_(1.0)
    assert grid(x).tolist() == [-3.0, 0.0, 0.0, 1.0, 2.0, 3.0]
    assert grid.saturated(x) == 2
    assert not grid.widen(0, 6)
    assert grid.widen(2, 6)
    assert float(grid.step) == 2
    x.requires_grad_()
    grid(x).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.ones(6))
    fine = Grid(16)
    fine.calibrate(torch.linspace(-1, 1, 1000))
    assert float(fine.step) == 2.0**-15  # 2**-14 would not clip the ends, and round all the rest twice as far


def test_writing_is_right_on_average() -> None:
    """A change of a tenth of a step moves a tenth of the weights by a whole one."""
    w = nn.Parameter(torch.linspace(-1, 1, 20_001, dtype=torch.float64))
    synapses = Synapses(6, [w], Device())
    step = float(synapses.grid.step)
    inner = w.detach().abs() < 0.9
    before = w.detach().clone()
    synapses.write([w], [torch.full_like(w, 0.1 * step)], torch.Generator().manual_seed(0))
    moved = (w.detach() - before)[inner] / step
    assert set(moved.tolist()) == {0.0, 1.0}
    assert abs(float(moved.mean()) - 0.1) < 4 * math.sqrt(0.09 / int(inner.sum()))


def test_imperfect_synapses() -> None:
    torch.manual_seed(0)
    w = nn.Parameter(torch.linspace(-1, 1, 10_000))
    synapses = Synapses(8, [w], Device(dead=0.25, mismatch=0.3))
    gain = synapses.gain(0)
    assert gain is not None
    dead = gain == 0
    assert abs(float(dead.float().mean()) - 0.25) < 0.02
    assert not w.detach()[dead].any()
    synapses.write([w], [torch.full_like(w, 0.02)], torch.Generator().manual_seed(0))
    assert not w.detach()[dead].any(), "they stay at 0"
    gains = gain[~dead].double() / PARTS
    assert abs(float(gains.mean()) - 1) < 0.02
    assert abs(float(gains.std()) - 0.3) < 0.02
    noisy = Synapses(8, [w], Device(noise=0.1))
    spread = (noisy.read(w.detach(), torch.Generator().manual_seed(0)) - w.detach()).std()
    assert abs(float(spread) / (0.1 * noisy.grid.top * float(noisy.grid.step)) - 1) < 0.05


def test_noise_is_of_reading_alone() -> None:
    learner = small(8, noise=0.1)
    a, b = views()
    before = [p.detach().clone() for p in learner.parameters()]
    learner.accumulate_grads(a, b)
    first = [p.grad for p in learner.parameters() if p.grad is not None]
    assert all(torch.equal(p, old) for p, old in zip(learner.parameters(), before, strict=True))
    quiet = small(8)
    quiet.accumulate_grads(a, b)
    second = [p.grad for p in quiet.parameters() if p.grad is not None]
    assert not all(torch.equal(g, h) for g, h in zip(first, second, strict=True))


@pytest.mark.parametrize("rule", ["clapp++dfb", "softhebb"])
def test_a_run_stays_on_its_grids_and_goes_on_bit_for_bit(rule: str, tmp_path: Path) -> None:
    flaws: dict[str, Any] = {"bits": 5, "weight_noise": 0.05, "dead": 0.1, "mismatch": 0.2, "lr": None}
    run = run_tiny(tmp_path / "whole", rule=rule, **flaws)
    part = run_tiny(tmp_path / "part", rule=rule, **{**flaws, "epochs": 1})
    again = run_tiny(part.path, rule=rule, resume=True, **flaws)
    assert_same_run(run.path, again.path)
    assert (run.config.bits, run.config.engine, run.config.precision) == (5, "integer", "64-true")
    assert math.log2(run.config.lr).is_integer()
    learner, _ = run.trained_learner()
    changed = 0
    for (own, these), (_, before) in zip(
        engine.places(learner.encoder, learner.parts),
        engine.places((start := run.learner()).encoder, start.parts),
        strict=True,
    ):
        for name, params in these.items():
            step = float(own.store(name).grid.step)
            for w, old in zip(params, before[name], strict=True):
                assert np.abs(whole(w, step)).max() <= 15
                changed += int((w != old).sum())
    assert changed > 100
    table = metrics.read(run.path)
    assert all(float(row["saturated_1"]) >= 0 for row in table)
    reference = "bp-clapp++" if rule == "softhebb" else "own"  # whose updates descend no loss
    aligned = evaluate.align_run(run, evaluate.AlignOptions(batches=2, reference=reference)).rows
    cosines = [r.mean for r in aligned if r.quantity == "cosine" and r.batches]
    assert cosines
    assert all(abs(c) <= 1.0001 for c in cosines)
    assert any(float(value) > 0 for row in table for name, value in row.items() if name.startswith("saturated"))


def test_a_stopped_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    run = run_tiny(tmp_path / "whole", bits=4, lr=None)
    stopped = run_tiny(tmp_path / "part", bits=4, lr=None, epochs=1)
    assert int(last_state(stopped.path)["step"]) == 4
    assert_same_run(run.path, localssl.train(rule=None, data=None, out=tmp_path / "part", resume=True, epochs=2).path)


def test_the_rules_that_can_are_named() -> None:
    ours = [name for name in rules.names() if type(rules.get(name)).__module__.startswith("localssl.rules.")]
    able = [name for name in ours if refused(rules.get(name)) is None]
    assert sorted(able) == sorted(ABLE.replace(" and ", ", ").split(", "))


def test_blocks_that_changed_since_are_refused() -> None:
    learner = small(8)
    learner.encoder.blocks[0].register_forward_hook(lambda *_: None)
    with usage_error("cannot now: block 1: it has hooks"):
        learner.accumulate_grads(*views())


def test_an_encoder_that_cannot_is_not_blamed_on_the_rule() -> None:
    box = BlackBox(lambda x: x, (2, SIDE, SIDE))
    block = nn.Sequential(box, Grid(8), nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), Grid(8))
    with usage_error("this encoder cannot learn in integers: a black box"):
        localssl.Learner(Encoder.from_blocks([block]), rules.get("clapp++"), (2, SIDE, SIDE), PATCH, engine="integer")


def test_saturation_is_counted() -> None:
    learner = small(4)
    a, b = views()
    learner.accumulate_grads(a, b)
    (first, _) = (m for m in learner.parts[KEY] if isinstance(m, Numbers))
    first.share()
    wide = 100 * a
    grid = next(m for m in learner.encoder.modules() if isinstance(m, Grid))
    clipped = grid.saturated(torch.cat((wide, b)))
    step = float(grid.step)
    learner.accumulate_grads(wide, b)
    assert clipped > a.numel() / 2
    assert int(first.clipped) >= clipped
    assert float(grid.step) == 2 * step, "and the grid is widened"
    assert first.share() > 0
    assert int(first.seen) == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bits": 1}, "from 2 to 16"),
        ({"bits": 17}, "from 2 to 16"),
        ({"bits": 8, "rule": "bp-clapp++"}, "not local"),
        ({"bits": 8, "rule": "dfa"}, "not local"),
        ({"bits": 8, "rule": "lpl"}, "not made of three factors"),
        ({"bits": 8, "rule": "clapp++", "rule_options": ("f=softplus",)}, "neither 0 nor 1"),
        ({"bits": 8, "rule_options": ("projection=low-rank",)}, "not dense"),
        ({"bits": 8, "rule": "ff", "rule_options": ("peer=0.03",)}, "peer"),
        ({"bits": 8, "batch_size": 24}, "power of two"),
        ({"bits": 8, "engine": "hebbian"}, "engine"),
        ({"bits": 8, "optimizer": "adam"}, "moments"),
        ({"bits": 8, "precision": "bf16-mixed"}, "exact"),
        ({"bits": 8, "schedule": "cosine"}, "power of two"),
        ({"bits": 8, "devices": 2}, "one process"),
        ({"bits": 8, "encoder": "torchvision:resnet18"}, "use vgg6"),
        ({"bits": 8, "encoder": "cnn1d"}, "use vgg6"),
        ({"bits": 8, "encoder_options": ("activation=gelu",)}, "no ReLU"),
        ({"bits": 8, "dead": 1.5}, "0 to 1"),
        ({"dead": 0.5}, "go with --bits"),
        ({"encoder_options": ("bits=4",)}, "give --bits"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_refusals(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with usage_error(words):
        run_tiny(tmp_path / "run", **{"lr": None, **changes})
    assert not (tmp_path / "run").exists()


def test_a_configuration_of_integers_stays_one(tmp_path: Path) -> None:
    """What is typed beside a config.yaml is held against the bits that stand in it."""
    run = run_tiny(tmp_path / "x", bits=8, lr=None, epochs=1)
    floats = run_tiny(tmp_path / "floats", epochs=1)
    given: dict[str, Any] = {"config": run.path / "config.yaml", "out": tmp_path / "y", "report": lambda line: None}
    refused: list[tuple[dict[str, Any], str]] = [
        ({"optimizer": "adam"}, "no moments"),
        ({"precision": "bf16-mixed"}, "exact"),
        ({"schedule": "cosine"}, "power of two"),
        ({"batch_size": 24}, "a mean is a shift"),
        ({"engine": "hebbian"}, "engine of their own"),
        ({"pipeline": 2}, "one process"),
        ({"bits": 4}, f"is what other flags came to; give those, --config {run.path}"),
        ({"config": floats.path / "config.yaml", "bits": 8}, "is what other flags came to"),
    ]
    for typed, words in refused:
        with usage_error(words):
            localssl.train(**{**given, **typed})
        assert not (tmp_path / "y").exists()
    wider = localssl.train(**given, width=0.5, lr=0.01, bits=8, dead=0.1)
    assert (wider.config.encoder["bits"], wider.config.dead, wider.config.engine) == (8, 0.1, "integer")
    assert math.log2(wider.config.lr).is_integer()
