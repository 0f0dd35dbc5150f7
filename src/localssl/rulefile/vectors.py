"""Golden vectors: a few steps of a small network, in float64 or in whole numbers, and the program that gives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from localssl import engine
from localssl.certificate.cuts import layer_of
from localssl.errors import UsageError
from localssl.learner import Learner
from localssl.rulefile import descent
from localssl.rulefile.ops import Op
from localssl.rulefile.optimisers import kept_moments
from localssl.rulefile.program import Program, record
from localssl.rulefile.rounding import ROUND, Draws, exponent, kept, steps_of
from localssl.rulefile.twin import BATCHES, INPUT, enter, warm
from localssl.rulefile.whole import Whole
from localssl.runs.config import RunConfig
from localssl.training.prepared import optimizer_of, rate

SMALLER = 4.0  # by so much s of every second tensor at the start: its first updates are clipped, and s grows
RATE = 1e-3  # of golden vectors, at most: larger ones make Adam's rounding noise larger


class Golden:
    """A learner's golden steps.

    Args:
        config: of the run.
        learner: the small network, which learns.
        images: in a batch.
    """

    def __init__(self, config: RunConfig, learner: Learner, images: int) -> None:
        self.config, self.learner, self.images = config, learner, images
        self.whole = learner.engine == "integer"
        self.optimizer = optimizer_of(config, learner)
        if config.bits is not None or config.optimizer == "shift-sgd":
            warm(learner, self.step_on, images, self._ready)
        for state in [state for state in self.optimizer.state.values() if "s" in state][::2]:
            state["s"] /= SMALLER

    def vectors(self) -> tuple[dict[str, Any], Program]:
        """An entry of a manifest's vectors, without its network, and the first step's program."""
        first = self._arrays(self._states())
        programs: list[dict[str, Any]] = []
        recorded: list[Program] = []
        steps: list[dict[str, Any]] = []
        for step in range(BATCHES):
            x, labels = enter(self.learner, step, self.images)
            program = record(self.learner, x, labels, step)
            program, lr = self._in_whole_numbers(program, step) if self.whole else self._in_floats(program, step)
            found = _program(program)
            if found not in programs:
                programs.append(found)
            recorded.append(program)
            inputs = self._arrays({name: program.values[name] for name in ("x", *program.draws)})
            updates = self._arrays({name: program.values[array] for name, array in program.updates.items()})
            entry = {"program": programs.index(found), "learning rate": lr, "inputs": inputs, "updates": updates}
            steps.append({**entry, "state": self._arrays(self._states())})
        arithmetic = "integer" if self.whole else "float64"
        return {"arithmetic": arithmetic, "state": first, "programs": programs, "steps": steps}, recorded[0]

    def step_on(self, step: int) -> float:
        """One step of the optimiser, at the rate that it returns."""
        lr = rate(self.config, step, BATCHES)
        if self.config.optimizer != "shift-sgd" and not self.whole:
            lr = min(lr, RATE)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        return lr

    def _ready(self) -> bool:
        """Whether the sizes of all steps are chosen."""
        moments = kept_moments(self.config, self.learner, self.optimizer)
        return all(bool(value.any()) for value in moments.values())

    def _in_floats(self, program: Program, step: int) -> tuple[Program, float]:
        lr = self.step_on(step)
        if self.config.optimizer != "shift-sgd":
            return program, lr
        layers = {name: layer_of(name, self.learner) for name in program.updates}
        return descent.in_floats(program, layers, lr), lr

    def _in_whole_numbers(self, program: Program, step: int) -> tuple[Program, float]:
        found = {name: exponent(program.values.get(name, 2.0**now)) for name, now in self._exponents().items()}
        if {op.operands[1] for op in program.ops if op.op == ROUND} - found.keys():
            raise UsageError("export --rule: in a small twin of this network some numbers are always 0")
        held: dict[str, int | str] = {"x": INPUT, **{name: grid for name, (grid, _) in self._grids().items()}}
        whole = Whole(program, held, found, {name: bits for name, (_, bits) in self._grids().items()})
        with Draws() as draws:
            lr = self.step_on(step)
        stores = self._stores(found, draws.found)
        shifted = self.config.optimizer == "shift-sgd"
        written = descent.write(whole, stores, exponent(lr), shifted, len(self.learner.encoder.blocks))
        drawn = [make(name) for store in stores for name in store.weights for make in (descent.random, descent.bit)]
        made = whole.made(written, drawn)
        after = self._states()
        for state, name in made.buffers.items():
            assert torch.equal(made.values[name], after[state]), state
        return made, lr

    def _states(self) -> dict[str, Tensor]:
        """Every state by name, the optimiser's too."""
        moments = kept_moments(self.config, self.learner, self.optimizer)
        if not self.whole:
            return {**kept(self.learner), **moments}
        found: dict[str, Tensor] = {}
        exponents, grids = self._exponents(), self._grids()
        for name, value in kept(self.learner).items():
            if name in grids:
                found[name] = (value.detach() / 2.0 ** exponents[grids[name][0]]).long()
        return found | {name: torch.tensor(value) for name, value in exponents.items()}

    def _exponents(self) -> dict[str, int]:
        """Every state that is an exponent."""
        found = {name: exponent(step) for name, step in steps_of(self.learner).items() if float(step)}
        moments = kept_moments(self.config, self.learner, self.optimizer)
        return found | {name: exponent(value) for name, value in moments.items()}

    def _grids(self) -> dict[str, tuple[str, int]]:
        """By weight, the state that is its exponent, and its bits."""
        return grids(self.learner)

    def _stores(self, before: Mapping[str, int], drawn: Sequence[Tensor]) -> list[descent.Store]:
        """Where weights were written, with the random numbers in the order in which they were drawn."""
        left = iter(drawn)
        found: list[descent.Store] = []
        names = {p: name for name, p in self.learner.named_parameters()}
        after = self._exponents()
        for _, weights in engine.places(self.learner.encoder, self.learner.parts):
            for these in weights.values():
                mine = [names[w] for w in these]
                if any(w.grad is None for w in these):
                    raise UsageError(f"export --rule: {mine[0]} has no update in a small twin of this network")
                grid, bits = self._grids()[mine[0]]
                words = {name: next(left).long() for name in mine}
                doubled = after[grid] > before[grid]
                once_more = {name: next(left).long() if doubled else torch.zeros_like(words[name]) for name in mine}
                found.append(descent.Store(grid, bits, layer_of(mine[0], self.learner), words, once_more))
        assert next(left, None) is None
        return found

    def _arrays(self, values: Mapping[str, Tensor]) -> dict[str, Any]:
        return {name: array(value) for name, value in values.items()}


def grids(learner: Learner) -> dict[str, tuple[str, int]]:
    """By weight of a learner in integers, the state that is its exponent, and its bits."""
    names = {p: name for name, p in learner.named_parameters()}
    modules = {m: name for name, m in learner.named_modules()}
    found: dict[str, tuple[str, int]] = {}
    for numbers, weights in engine.places(learner.encoder, learner.parts):
        for store, these in weights.items():
            grid = numbers.store(store).grid
            found |= {names[w]: (f"{modules[grid]}.step", grid.bits) for w in these}
    return found


def _program(program: Program) -> dict[str, Any]:
    found = {
        "constants": {name: array(value) for name, value in program.constants.items()},
        "stages": [
            {"stage": s.kind, "block": s.block, "after": s.after, "ops": [_op(op) for op in s.ops]}
            for s in program.stages
        ],
        "signals": program.signals,
        "updates": program.updates,
        "buffers": program.buffers,
    }
    if program.exponents:
        found["exponents"] = {name: e for name, e in program.exponents.items() if e != 0}
    return found


def _op(op: Op) -> dict[str, Any]:
    made = {"out": op.out, "op": op.op, "in": list(op.operands)}
    return made | ({"with": op.attributes} if op.attributes else {})


def array(value: Tensor) -> dict[str, Any]:
    """An array of the file."""
    kind = "bool" if value.dtype == torch.bool else "float64" if value.is_floating_point() else "int64"
    numbers = value.detach().contiguous().flatten().tolist()
    if len(numbers) > 1 and numbers.count(numbers[0]) == len(numbers):
        return {"type": kind, "shape": list(value.shape), "fill": numbers[0]}
    return {"type": kind, "shape": list(value.shape), "values": numbers}
