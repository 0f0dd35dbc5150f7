"""Where the worlds of a learner begin and where they are cut.

What leaves a layer with weights (its drive) and what leaves a block (the activity z^l) are signals that anyone near may
read: there all worlds take this world's values again, but the one in which that very signal differs. Whatever a weight
update still reads of another weight, it reads past the activities. Numbers that are one a sample (modulators) are cut
likewise.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes  # pyright: ignore[reportPrivateUsage]
from typing_extensions import override

from localssl.certificate.worlds import Worlds, memory
from localssl.learner import Learner

OTHERS = 19  # samples at most, spread over the batch, that are tried for an interaction with the first one
NEAR = 9  # and of those that follow it, where partners and negatives often are
SHIFT = 2.0  # how far a value is moved, over its root mean square: signs and thresholds must be crossed


@dataclass(frozen=True)
class World:
    """What differs.

    Args:
        kind: "weight" (a parameter of a block), "part" (one of a projection, or a buffer of it), "way down" (a part
            once more, past what the part itself puts out), "activity" (z^l, or the encoder's input for layer 0), "gate"
            (the drive of one layer with weights, as its own block reads it),
            "modulator" (all numbers that are one a sample), "labels", "sample" (some rows of the encoder's input).
        layer: of the block, from 1.
        name: of the parameter or module.
        rows: of a parameter, 0 or 1: every second row differs, from that one on; None: all.
        samples: rows of the encoder's input.
    """

    kind: str
    layer: int = 0
    name: str = ""
    rows: int | None = None
    samples: tuple[int, ...] = ()


@dataclass
class Cuts(Worlds):
    """Worlds with the cuts of a learner."""

    learner: Learner
    labels: Tensor
    pairs: list[tuple[int, ...]] = field(default_factory=list)
    samples: int = 0
    labels_enter: bool = False
    crossing: list[tuple[str, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        Worlds.__init__(self)
        self.generator = torch.Generator().manual_seed(0)
        self.parameters = sources(self.learner)
        self.fixed: list[World] = []  # worlds of weights: cut at modulators, too
        self.activities: list[World] = []
        self.modulator = World("modulator")
        self.halves: list[World] = []  # of parts: cut at their outputs, too, to see what a part reads of itself
        self.ways: list[World] = []  # likewise, to see who reads a part by another way than what it puts out
        self.putting_out: set[str] = set()  # parts that put something out

    def start(self) -> None:
        """Open the worlds of weights and labels."""
        for name, tensor in self.parameters.items():
            kind = "weight" if name.startswith("encoder.") else "part"
            for rows in (None, 0, 1) if tensor.ndim > 0 and len(tensor) > 1 else (None,):
                world = World(kind, layer_of(name, self.learner), name, rows)
                value = self.moved(tensor)
                if rows is not None:
                    value[1 - rows :: 2] = tensor.detach()[1 - rows :: 2]
                self.put(world, tensor, value)
                self.fixed.append(world)
                if rows is not None and kind == "part":
                    self.halves.append(world)
                if rows is None and kind == "part":
                    self.ways.append(way := World("way down", world.layer, name))
                    self.put(way, tensor, value)
                    self.fixed.append(way)
            self.used[memory(tensor)] = set()
        self.put(World("labels"), self.labels, self.labels.roll(1))

    def moved(self, tensor: Tensor) -> Tensor:
        """Another value of the same size."""
        values = tensor.detach()
        size = values.square().mean().sqrt()
        noise = torch.randn(values.shape, generator=self.generator, dtype=values.dtype)
        return values + SHIFT * torch.where(size > 0, size, 1.0) * noise

    @override
    def after(self, outputs: list[Tensor]) -> None:
        for o in outputs:
            if o.is_floating_point() and o.shape in ((self.samples,), (self.samples, 1)):
                self.hold(o, self.fixed)
                if any(self.see(world, o) is not None for world in self.activities):
                    self.put(self.modulator, o, self.moved(o))

    def cut(self, signal: Tensor, world: World) -> Tensor:
        """A copy of what leaves a module, which all worlds take from this one but its own (and those of samples)."""
        copy = signal.clone()
        with _disable_current_modes():
            self.hold(copy, [*self.fixed, *self.activities, self.modulator, World("labels")])
            if world not in self.activities:
                self.activities.append(world)
            self.put(world, copy, self.moved(copy))
        return copy

    def leave(self, prediction: Tensor, name: str) -> None:
        """What leaves a part: the worlds that tell its own rows apart, or its ways, take it from this one."""
        self.putting_out.add(name)
        with _disable_current_modes():
            self.hold(prediction, [*self.halves, *self.ways])

    def told(self) -> list[World]:
        """The worlds of weights that can be named: a part that puts nothing out, feedback, has no other way."""
        silent = [way for way in self.ways if way.name.rpartition(".")[0] not in self.putting_out]
        return [world for world in self.fixed if world not in silent]

    def enter(self, x: Tensor) -> None:
        """The encoder's input, at its first arrival: other samples, other activity; labels come this far."""
        with _disable_current_modes():
            if self.samples and self.see(World("activity"), x) is not None:
                return
            self.samples = len(x)
            self.labels_enter |= self.see(World("labels"), x) is not None
            self.hold(x, [*self.fixed, World("labels")])
            world = World("activity")
            self.activities.insert(0, world)
            value = self.moved(x)
            self.put(world, x, value)
            self.pairs = self.pairs or pairs(len(x))
            for other in self.pairs:
                mixed = x.detach().clone()
                mixed[list(other)] = value[list(other)]
                self.put(World("sample", samples=other), x, mixed)

    def mixes(self, x: Tensor) -> bool:
        """Whether the rows of other samples differ where one sample does."""
        value = self.see(World("sample", samples=(0,)), x)
        return len(x) == self.samples and value is not None and not torch.equal(value[1:], x.detach()[1:])

    @contextmanager
    def hooked(self) -> Generator[None]:
        """Within, the learner's encoder is cut."""
        handles: list[Any] = []
        try:
            for number, block in enumerate(self.learner.encoder.blocks, start=1):
                for name, module in block.named_modules(prefix=f"encoder.blocks.{number - 1}"):
                    handles += self._hooks(name, module, number)
                world = World("activity", number)
                handles.append(block.register_forward_hook(partial(_passed, self.cut, world)))
            first = self.learner.encoder.blocks[0]
            handles.append(first.register_forward_pre_hook(partial(entered, self)))
            for name, module in self.learner.projections.named_modules(prefix="projections"):
                if dict(module.named_parameters(recurse=False)):
                    handles.append(module.register_forward_hook(partial(_passed, self.leave, name)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hooks(self, name: str, module: nn.Module, number: int) -> list[Any]:
        weighted = bool(dict(module.named_parameters(recurse=False)))
        world = World("gate", number, name)

        def before(_module: nn.Module, args: tuple[Any, ...]) -> None:
            self.watching = self.watching and not weighted

        def after(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            self.watching = True
            with _disable_current_modes():
                leaf = not list(module.children())
                if leaf and self.mixes(output) and not self.mixes(args[0]):
                    self.crossing.append((type(module).__name__, number))
            return self.cut(output, world) if weighted else None

        return [module.register_forward_pre_hook(before, prepend=True), module.register_forward_hook(after)]


def _passed(cut: Callable[..., Tensor | None], what: World | str, module: Any, args: Any, output: Any) -> Any:
    """A forward hook that hands the output to a cut."""
    return cut(output, what)


def entered(worlds: Cuts, module: Any, args: Any) -> None:
    """A hook in front of the first block."""
    worlds.enter(args[0])


def sources(learner: Learner) -> dict[str, Tensor]:
    """What an update may read of weights: every parameter, fixed ones too, and the buffers of the projections."""
    found: dict[str, Tensor] = dict(learner.named_parameters())
    buffers = {n: b for n, b in learner.named_buffers() if n.startswith("projections.") and b.is_floating_point()}
    return found | buffers


def layer_of(name: str, learner: Learner) -> int:
    """The layer that a parameter belongs to, from 1; a part of which there is one alone belongs to the last."""
    count = len(learner.encoder.blocks)
    words = name.split(".")
    if words[0] == "encoder":
        return int(words[2]) + 1 if words[1] == "blocks" else 0
    return count if len(learner.parts[words[1]]) == 1 else int(words[2]) + 1


def pairs(samples: int) -> list[tuple[int, ...]]:
    """The rows to disturb: the first, some others, and the first with each of them."""
    behind = range(1, min(NEAR, samples - 1) + 1)
    others = sorted({*behind, *(round(i) for i in torch.linspace(1, samples - 1, min(OTHERS, samples - 1)).tolist())})
    return [(0,), *((k,) for k in others), *((0, k) for k in others)]
