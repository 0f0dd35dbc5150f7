"""Weights of b bits: how they are read, how an update is written to them, and what real devices do to both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from typing_extensions import override

from localssl.errors import UsageError
from localssl.grids import Grid
from localssl.optimizer import ShiftSGD, evaluated

FRACTION = 2**24  # an update is kept to this part of a weight's step; as many bits are drawn to round it
PARTS = 64  # gains and reading noise are whole multiples of 1/64


@dataclass(frozen=True)
class Device:
    """What is not perfect about the synapses, those of B included.

    Args:
        noise: standard deviation of what is added to every weight whenever a batch reads it, as a share of the largest
            weight that its grid holds. Weights that are measured afterwards are read without.
        dead: share of the synapses that are stuck at 0.
        mismatch: standard deviation, over synapses, of the factor by which a synapse's changes are too large or small.

    Raises:
        UsageError: outside 0 to 1.
    """

    noise: float = 0.0
    dead: float = 0.0
    mismatch: float = 0.0

    def __post_init__(self) -> None:
        for flag, value in (("weight-noise", self.noise), ("dead", self.dead), ("mismatch", self.mismatch)):
            if not 0 <= value <= 1:
                raise UsageError(f"--{flag} {value}: use a number from 0 to 1")


PERFECT = Device()


class Synapses(nn.Module):
    """Tensors of weights on one grid (a layer's weights and biases, or one B). They themselves are kept elsewhere.

    Args:
        bits: of a weight.
        weights: rounded to the grid here, the dead ones set to 0.
        device: what is not perfect about them.
    """

    def __init__(self, bits: int, weights: Sequence[nn.Parameter], device: Device):
        super().__init__()
        self.grid = Grid(bits)
        self.device = device
        for i, w in enumerate(weights):
            gain: Tensor | None = None
            if device.dead or device.mismatch:
                drawn = PARTS * (1 + device.mismatch * torch.randn(w.shape))
                alive = torch.rand(w.shape) >= device.dead
                gain = torch.where(alive, drawn.round().clamp(1, 255), 0).to(torch.uint8)
            self.register_buffer(f"gain_{i}", gain)
        if any(w.is_meta for w in weights):
            return
        with torch.no_grad():
            self.grid.calibrate(torch.cat([w.flatten() for w in weights]))
            for i, w in enumerate(weights):
                w.copy_(self.grid(w))
                if (gain := self.gain(i)) is not None:
                    w.mul_((gain > 0).to(w.device))

    def gain(self, i: int) -> Tensor | None:
        """By how many 64ths a change of the i-th tensor is written, 0 for the dead; None: wholly, all alive."""
        return getattr(self, f"gain_{i}")

    def read(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        """The weights as a batch reads them: with noise, in 64ths of a step."""
        part = float(self.grid.step) / PARTS
        noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        units = torch.round(noise * self.device.noise * self.grid.top * PARTS)
        return weight + (units * part).to(weight.device, weight.dtype)

    @torch.no_grad()
    def write(self, weights: Sequence[Tensor], changes: Sequence[Tensor | None], generator: torch.Generator) -> int:
        """Add changes of any size, rounded at random to the grid: up with the probability of what is left over.

        Returns:
            How many weights were clipped. Where they were too many, the step is doubled.
        """
        over, count, top = 0, 0, self.grid.top
        for i, (w, change) in enumerate(zip(weights, changes, strict=True)):
            if change is None:
                continue
            step, gain = float(self.grid.step), self.gain(i)
            change = change.double() if gain is None else change.double() * gain / PARTS
            units = torch.floor(change / step * FRACTION) / FRACTION
            new = torch.floor(w.double() / step + units + _draw(w, FRACTION, generator))
            over, count = over + int((new.abs() > top).sum()), count + w.numel()
            w.copy_(new.clamp_(-top, top) * step)
        if self.grid.widen(over, count):
            step = float(self.grid.step)
            for w in weights:
                w.copy_(torch.floor(w.double() / step + _draw(w, 2, generator)) * step)
        return over


def _draw(like: Tensor, parts: int, generator: torch.Generator) -> Tensor:
    """One of 0, 1/parts, … (parts-1)/parts for every number."""
    return torch.randint(parts, like.shape, generator=generator).double().div_(parts).to(like.device)


class Numbers(nn.Module):
    """The integers of one layer: where its weights and what passes between its factors lie, and what was clipped.

    Args:
        bits: of every number.
        weights: of the layer, and of its projections, by name.
        device: what is not perfect about them.

    Attributes:
        grids: of the readout, of the dendritic prediction of every reference, of the signal to the synapses.
        clipped, seen: how many numbers were, of how many, since ``share``.
    """

    clipped: Tensor
    seen: Tensor
    seed: Tensor
    count: Tensor

    def __init__(self, bits: int, weights: Mapping[str, Sequence[nn.Parameter]], device: Device):
        super().__init__()
        names = ["readout", "signal", *(f"g_{key}" for key in weights if key != "layer")]
        self.grids = nn.ModuleDict({name: Grid(bits) for name in names})
        self.synapses = nn.ModuleDict({name: Synapses(bits, these, device) for name, these in weights.items()})
        for name in ("clipped", "seen", "count"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))
        self.register_buffer("seed", torch.randint(2**31, ()))

    def fit(self, grid: Grid | str, x: Tensor) -> Tensor:
        """``x`` on a grid. In training what was clipped is counted, and the grid follows: chosen by the first batch,
        its step doubled after one of which too much was clipped."""
        grid = self.of(grid) if isinstance(grid, str) else grid
        if not self.training:
            return grid(x)
        if float(grid.step) == 0:
            grid.calibrate(x)
        over = grid.saturated(x)
        self.clipped += over
        self.seen += x.numel()
        out = grid(x)
        grid.widen(over, x.numel())
        return out

    def sigmoid(self, x: Tensor) -> Tensor:
        """1 / (1 + e^-x), unsigned, in b bits for 0 to 1: a table of x."""
        parts = 2 ** (self.of("signal").bits - 1)
        return torch.floor(torch.sigmoid(x) * parts + 0.5) / parts

    def of(self, name: str) -> Grid:
        """The grid of that name."""
        grid = self.grids[name]
        assert isinstance(grid, Grid)
        return grid

    def store(self, name: str) -> Synapses:
        """The layer's weights ("layer"), or those of a projection."""
        found = self.synapses[name]
        assert isinstance(found, Synapses)
        return found

    def generator(self, use: int) -> torch.Generator:
        """The randomness of this batch: 0 for reading, 1 for writing. Apart from torch's own, so that views stay."""
        return torch.Generator().manual_seed((int(self.seed) << 31) + 2 * int(self.count) + use)

    def share(self) -> float:
        """The share of numbers that were clipped since it was last asked for."""
        found = int(self.clipped) / max(1, int(self.seen))
        self.clipped.zero_()
        self.seen.zero_()
        return found


class Writes(ShiftSGD):
    """Descent of weights of b bits by shifts, adds and a random number or two a weight.

    Args:
        places: of every layer its numbers, and its weights by name, as in ``Numbers``.
        lr: as in ``ShiftSGD``, a power of two.
        shifted: as in ``ShiftSGD``.
    """

    def __init__(
        self, places: Sequence[tuple[Numbers, Mapping[str, Sequence[nn.Parameter]]]], lr: float, shifted: bool = True
    ):
        self.places = list(places)
        super().__init__([w for _, weights in self.places for these in weights.values() for w in these], lr, shifted)

    @override
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Write what ``.grad`` asks for."""
        loss = evaluated(closure)
        (group,) = self.param_groups
        for numbers, weights in self.places:
            generator = numbers.generator(1)
            for name, these in weights.items():
                synapses = numbers.store(name)
                changes = [None if w.grad is None else self.change(w, group) for w in these]
                numbers.clipped += synapses.write(these, changes, generator)
                numbers.seen += sum(w.numel() for w, change in zip(these, changes, strict=True) if change is not None)
            numbers.count += 1
        return loss
