"""Learning in integers: the factors of an update, and the weights, are numbers of b bits; sums of them are exact.

Every number that one multiplication takes lies on a ``Grid``: a whole number times a power of two. float64 holds their
products and sums without rounding up to 53 bits, so what is computed here is what integers with shifts would give; it
is asserted that they fit. What is no sum of such products, a norm, a softmax, a sigmoid, is rounded to a grid at once.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from typing_extensions import override

from localssl import readout
from localssl.blocks import black_boxes
from localssl.credit import Step
from localssl.credit.hebbian import weighted
from localssl.credit.local import Local
from localssl.encoders import Encoder
from localssl.engine import factors, narrow, passes
from localssl.engine.blocks import Block, Pool, leaves, plan
from localssl.engine.synapses import PARTS, PERFECT, Device, Numbers, Synapses
from localssl.errors import UsageError
from localssl.grids import Grid
from localssl.optimizer import add_grad
from localssl.rules.base import Batch, Projections, Rule, ScoreRule
from localssl.rules.forward_forward import Goodness
from localssl.rules.softhebb import HebbianRule, SoftHebb

EXACT = 53  # bits that float64 holds
STILL = (nn.Flatten, nn.Identity, nn.ReflectionPad2d)  # heads that leave numbers as they are
ABLE = "clapp, clapp++, clapp++dfb, clapp++both, ff, ff-supervised and softhebb"  # as their defaults are
KEY = "integer"  # under which the projections hold every layer's ``Numbers``


def bits_of(encoder: Encoder) -> int | None:
    """Of how many bits the encoder's activities are; None where they are not rounded."""
    return next((m.bits for m in encoder.modules() if isinstance(m, Grid)), None)


def refused(rule: Rule) -> str | None:
    """Why a rule cannot learn in integers, in one line; None where it can."""
    if isinstance(rule, ScoreRule) and rule.credit == "local":
        if rule.f == "softplus":
            return "the modulators of f=softplus are neither 0 nor 1; use f=hinge"
        return None if rule.projection == "dense" else f"projection {rule.projection!r} is not dense"
    if isinstance(rule, Goodness):
        return "peer compares a unit with all others of its layer; use peer=0" if rule.peer else None
    if isinstance(rule, SoftHebb):
        return None
    if rule.credit != "local":
        return f"its credit assignment ({rule.credit}) is not local; {ABLE} can"
    return f"its update is not made of three factors; {ABLE} can"


def refused_encoder(encoder: Encoder, rule: Rule) -> str | None:
    """Why an encoder cannot learn in integers by a rule that can; None where it can."""
    if black_boxes(encoder.blocks):
        return "a black box has no integers"
    if bits_of(encoder) is None:
        return "its blocks have no grids; build it with the option bits"
    if isinstance(rule, HebbianRule):
        for number, block in enumerate(encoder.blocks, start=1):
            weighted(block, number)
        return None
    blocks = plan(encoder)
    if isinstance(blocks, str):
        return blocks
    for number, block in enumerate(blocks, start=1):
        if isinstance(block.layer, nn.Conv1d):
            return f"block {number} is a convolution of sequences"
        if block.grid is None:
            return f"block {number} does not end with a grid"
        if isinstance(block.pool, nn.AvgPool2d) and not _power(_area(block.pool)):
            return f"block {number} averages over {_area(block.pool)} positions, no power of two"
    return None


class Integer(Local):
    """Local credit in integers, for score rules, Forward-Forward and SoftHebb; see ``docs/hardware.md``."""

    def __init__(self, device: Device = PERFECT):
        self.device = device

    @override
    def build(
        self, encoder: Encoder, rule: Rule, dims: Sequence[int], parts: Mapping[str, Sequence[nn.Module]]
    ) -> dict[str, list[nn.Module]]:
        """Every layer's ``Numbers``; weights and B are rounded to their grids here."""
        bits = bits_of(encoder)
        assert bits is not None
        found = [weights_of(encoder, parts, layer) for layer in range(len(encoder.blocks))]
        return {KEY: [Numbers(bits, weights, self.device) for weights in found]}

    @override
    def check(self, rule: Rule, shapes: Sequence[tuple[int, ...]], patches: Sequence[int | None]) -> None:
        """Refuse patches over which a mean is no shift."""
        for number, (shape, patch) in enumerate(zip(shapes, patches, strict=True), start=1):
            area = math.prod(readout.kernel(shape[1:], patch))
            if isinstance(rule, ScoreRule) and not _power(area):
                raise UsageError(
                    f"in integers a mean is a shift, and a patch of block {number} has {area} positions; choose "
                    f"--patches of 1, 2, 4, …"
                )

    @override
    def updates(self, step: Step) -> Iterator[Tensor]:
        """As ``Credit.updates``: ``.grad`` holds the whole sum, which ``synapses.Writes`` rounds to the weights."""
        rule = step.rule
        with torch.no_grad(), self._noisy(step):
            if isinstance(rule, HebbianRule):
                losses = _hebbian(step, rule)
            elif isinstance(rule, Goodness):
                losses = _goodness(step, rule)
            else:
                assert isinstance(rule, ScoreRule)
                losses = _scores(step, rule)
        yield losses

    @contextmanager
    def _noisy(self, step: Step) -> Generator[None]:
        """Within, the weights are as this batch reads them."""
        if not self.device.noise:
            yield
            return
        stored: list[tuple[nn.Parameter, Tensor]] = []
        for layer, numbers in enumerate(_numbers(step)):
            generator = numbers.generator(0)
            for name, these in weights_of(step.encoder, step.projections, layer).items():
                for w in these:
                    stored.append((w, w.data))  # lent, not overwritten: graphs that were made before stay whole
                    w.data = numbers.store(name).read(w.data, generator)
        try:
            yield
        finally:
            for w, before in stored:
                w.data = before


def weights_of(encoder: Encoder, parts: Mapping[str, Sequence[nn.Module]], layer: int) -> dict[str, list[nn.Parameter]]:
    """Weight and bias of a layer under "layer", its projections under their keys."""
    found = {"layer": list(weighted(encoder.blocks[layer], layer + 1).parameters())}
    for key, modules in parts.items():
        if key != KEY:
            found[key] = list(modules[layer].parameters())
    return found


def places(encoder: Encoder, projections: Projections) -> list[tuple[Numbers, dict[str, list[nn.Parameter]]]]:
    """What ``synapses.Writes`` writes to."""
    layers = [m for m in projections[KEY] if isinstance(m, Numbers)]
    return [(numbers, weights_of(encoder, projections, i)) for i, numbers in enumerate(layers)]


def _numbers(step: Step) -> list[Numbers]:
    return [m for m in step.projections[KEY] if isinstance(m, Numbers)]


def _scores(step: Step, rule: ScoreRule) -> Tensor:
    """Equation 6: pre · gate · signal, the signal Σ ∓γ g with γ of 0 or 1 and g = Bc; for B, γ · z · c."""
    numbers, kept = _numbers(step), list(_ran(step))
    read = [
        own.fit("readout", readout.readout(z, patch))
        for own, (_, _, z), patch in zip(numbers, kept, step.patches, strict=True)
    ]
    batch = Batch(read, step.negatives, drawn=step.drawn)
    losses: list[Tensor] = []
    for layer, (own, (block, passed, _)) in enumerate(zip(numbers, kept, strict=True)):
        _fits(own, len(step.x), read[layer].shape[1])
        loss, soma, changes = factors.learn(
            rule, batch, layer, step.projections, lambda key, g, own=own: own.fit(f"g_{key}", g)
        )
        kernel = readout.kernel(passed.z.shape[2:], step.patches[layer])
        passes.learn(block, passed, own.fit("signal", soma), kernel, _summed(own, block.pool))
        for change in changes:
            change.add()
        losses.append(loss)
    return torch.stack(losses)


def _goodness(step: Step, rule: Goodness) -> Tensor:
    """Forward-Forward: pre · z · γ, with γ = ∓2σ(±(G - θD)) of the sample, unsigned, b bits for 0 to 1."""
    outputs: list[Tensor] = []
    for own, (block, passed, z) in zip(_numbers(step), _ran(step), strict=True):
        flat = z.flatten(1)
        _fits(own, 1, flat.shape[1])
        above = flat.square().sum(1) - rule.threshold * flat.shape[1]
        m = len(above) // 2
        gamma = own.sigmoid(torch.cat((-above[:m], above[m:])))
        gamma = torch.cat((-gamma[:m], gamma[m:]))
        soma = own.fit("signal", 2 * gamma[:, None] * flat / len(flat))
        passes.learn(block, passed, soma, (1,) * (z.ndim - 2), _summed(own, block.pool))
        outputs.append(z)
    return step.losses(outputs)


def _hebbian(step: Step, rule: HebbianRule) -> Tensor:
    """SoftHebb: Σ y x - (Σ y u) w, with x, u and y of b bits; its norm, softmax and division are as in floats."""
    x, outputs = step.x.double(), list[Tensor]()
    for layer, (own, block) in enumerate(zip(_numbers(step), step.encoder.blocks, strict=True)):
        synapse = weighted(block, layer + 1)
        for module in leaves(block):
            if isinstance(module, Grid):
                x = own.fit(module, x)
            elif module is synapse:
                x = _compete(rule, layer, own, synapse, x)
            else:  # a norm may keep statistics, in the encoder's own precision
                x = module(x.to(synapse.weight.dtype)).double()
        outputs.append(x)
    return step.losses(outputs)


def _compete(rule: HebbianRule, layer: int, own: Numbers, synapse: nn.Conv2d | nn.Linear, x: Tensor) -> Tensor:
    """The drive of a Hebbian layer, whose update is added to ``.grad``."""
    weight = synapse.weight.double()
    bias = None if synapse.bias is None else synapse.bias.double()  # pyright: ignore[reportUnnecessaryComparison]
    exact = own.of("signal").bits
    _enough(2 * exact - 2 + math.log2(weight[0].numel()))
    drive = passes.drive_of(synapse, x, weight, None)
    u = own.fit("readout", drive)
    y = own.fit("signal", rule.activity(u, layer))
    yu = (y * u).transpose(0, 1).flatten(1).sum(1)
    yx, _ = _summed(own, None)(synapse, x, y, (True, False))
    assert yx is not None
    rows = (-1, *[1] * (weight.ndim - 1))
    change = yx - yu.view(rows) * weight
    change /= change.abs().max() + 1e-30
    change *= rule.rate(weight.flatten(1).norm(dim=1), layer).view(rows)
    add_grad(synapse.weight, -change)
    return drive if bias is None else drive + bias.view(-1, *[1] * (drive.ndim - 2))


def _ran(step: Step) -> Iterator[tuple[Block, passes.Passed, Tensor]]:
    """Every block in turn: what is kept of it (gates: 1 where the sum was above 0), and its output of b bits."""
    blocks = plan(step.encoder)
    if isinstance(blocks, str):  # since the learner was built, hooks for instance
        raise UsageError(f"learning in integers runs the layers of a block by itself, and cannot now: {blocks}")
    x, at = step.x.double(), 0.0
    for block, own in zip(blocks, _numbers(step), strict=True):
        for module in block.head:
            at = float(module.step) if isinstance(module, Grid) else at if isinstance(module, STILL) else 0.0
            x = own.fit(module, x) if isinstance(module, Grid) else module(x)
        weights = own.store("layer")
        known = 0.0 if weights.device.noise else at  # with noise the weights are not on their grid
        passed = narrow.run(replace(block, head=()), x, weights.grid.top, float(weights.grid.step), known)
        fan_in, positions = block.layer.weight[0].numel(), len(x) * math.prod(passed.drive[1:])
        _fits(own, positions, fan_in)
        assert block.grid is not None
        at = float(block.grid.step)  # before ``fit``, which may double it for the next batch; 0 in the first
        x = own.fit(block.grid, passed.z)
        yield block, passed, x


def _summed(own: Numbers, pool: Pool | None) -> passes.Change:
    """ΔW from activities and signals of this layer's bits."""
    return partial(narrow.change_of, largest=own.of("signal").top ** 2 * narrow.windows_of_a_unit(pool))


def _fits(own: Numbers, samples: int, terms: int) -> None:
    """Refuse sums that float64 does not hold exactly: ``terms`` products of weights, ``samples`` of an update."""
    bits = own.of("signal").bits
    noise = math.log2(PARTS) if any(isinstance(s, Synapses) and s.device.noise for s in own.synapses.values()) else 0
    _enough(2 * bits - 1 + max(noise + math.log2(terms), math.log2(samples)))


def _enough(bits: float) -> None:
    if bits > EXACT:
        raise UsageError(f"a sum of this layer would need {math.ceil(bits)} bits, {EXACT} are exact; use fewer --bits")


def _area(pool: nn.AvgPool2d) -> int:
    return math.prod(pool.kernel_size) if isinstance(pool.kernel_size, tuple) else pool.kernel_size**2


def _power(n: int) -> bool:
    """Whether it is a power of two."""
    return n & (n - 1) == 0
