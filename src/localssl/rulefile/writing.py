"""Operations on whole numbers, written one by one with what each of them gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from localssl.errors import UsageError
from localssl.rulefile.ops import Op, Operand
from localssl.rulefile.program import Stage

WORD = 63  # bits of a whole number of the golden vectors, without the sign
EARLY = ("less", "less-equal", "maxpool-where", "reshape")  # done where the operand is made: fewer bits are held then
Exponent = int | str


@dataclass(frozen=True)
class Array:
    """An array or a number; its exponent, None where all its numbers are 0."""

    name: Exponent
    exponent: Exponent | None = 0


class Writer:
    """Writes operations into stages.

    Args:
        at: by state that is an exponent, its value in this step.
        bits: by state or input, of a number.

    Attributes:
        stages: with their operations.
        values: by name, what an array is in this step.
        exponents: by name of an array, its exponent.
        bits: by name of an array, where its numbers are of so many.
        constants: by name.
        grown: by how much the exponent of the last ``wider`` grows.

    Raises:
        UsageError: from all methods: what needs more than ``WORD`` bits.
    """

    def __init__(self, at: Mapping[str, int], bits: Mapping[str, int]) -> None:
        self.at, self.bits = dict(at), dict(bits)
        self.values: dict[str, Tensor] = {}
        self.exponents: dict[str, Exponent] = {}
        self.stages: list[tuple[Stage, list[Op]]] = []
        self.constants: dict[str, Tensor] = {}
        self.grown = ""
        self._stage: dict[str, int] = {}  # by array, of which stage it is
        self._scalars: dict[tuple[Operand, ...], str] = {}

    def begin(self, stage: Stage) -> None:
        """What is written from now on belongs to this stage."""
        self.stages.append((stage, []))

    def emit(
        self,
        op: str,
        operands: Sequence[Operand],
        value: Tensor,
        width: int | None = None,
        early: bool = False,
        **how: Any,
    ) -> str:
        """Write an operation on arrays.

        Args:
            op, operands, how: as in ``Op``.
            value: what it gives, whole numbers or truths.
            width: bits of these numbers; None where they may be wide.
            early: in the stage of the last of its operands.
        """
        made = [self._stage[o] for o in operands if o in self._stage]
        early = early or (op in EARLY and bool(made) and self.stages[max(made)][0].kind == "run")
        at = max(made) if early else len(self.stages) - 1
        name = f"v{len(self.values) + 1}"
        self._stage[name] = at
        self.values[name] = value
        self.exponents[name] = 0
        self.stages[at][1].append(Op(name, op, tuple(operands), dict(how)))
        if value.dtype != torch.bool and width is not None:
            self.bits[name] = width
        return name

    def scalar(self, op: str, a: Exponent, b: Exponent) -> Exponent:
        """A number that follows from exponents; written as an operation where one of them is a state or follows so."""
        one, other = (self.at[x] if isinstance(x, str) else x for x in (a, b))
        found = _SCALARS[op](one, other)
        if isinstance(a, int) and isinstance(b, int):
            return found
        if (op, b) in (("add", 0), ("subtract", 0)):
            return a
        if (op, a) == ("add", 0):
            return b
        if (op, a, b) not in self._scalars:
            name = f"e{len(self._scalars) + 1}"
            self._scalars[op, a, b] = name
            self.at[name] = found
            self._stage[name] = len(self.stages) - 1
            self.stages[-1][1].append(Op(name, op, (a, b)))
        return self._scalars[op, a, b]

    def shifted(self, x: Array, to: Exponent) -> Exponent:
        """An array, or a number, at another exponent that is not larger."""
        if x.exponent is None or x.exponent == to:
            return x.name
        by = self.scalar("subtract", x.exponent, to)
        if not isinstance(x.name, str):
            return self.scalar("shift", x.name, by)
        return x.name if by == 0 else self.moved(x.name, by)

    def moved(self, x: str, by: Exponent) -> str:
        """An array times a power of two, rounded down."""
        value, places = self.values[x], self.number(by)
        if places < 0:
            return self.emit("shift", (x, by), value >> -places)
        fits(float(value.abs().max()) * 2.0**places)
        return self.emit("shift", (x, by), value * 2**places)

    def together(self, arrays: Sequence[Array]) -> tuple[list[Exponent], Exponent]:
        """Arrays at the smallest of their exponents, and which that is."""
        exponents = list(dict.fromkeys(x.exponent for x in arrays if x.exponent is not None))
        common: Exponent = exponents[0] if exponents else 0
        for exponent in exponents[1:]:
            common = self.scalar("minimum", common, exponent)
        return [self.shifted(x, common) for x in arrays], common

    def number(self, x: Exponent) -> int:
        """What a number, or the name of one, is in this step."""
        if isinstance(x, int):
            return x
        return self.at[x] if x in self.at else int(self.values[x])

    def size(self, x: Array) -> str:
        """|x|."""
        value = self.values[str(x.name)]
        return self.emit("maximum", (x.name, self.emit("multiply", (x.name, -1), -value)), value.abs())

    def wider(self, state: str, over: Sequence[str], count: int, bits: int, after: int, early: bool = False) -> str:
        """A grid's next exponent, given which numbers of ``count`` were clipped; ``after``: by how much it grows."""
        total: str | None = None
        for each in over:
            value = self.values[each]
            axes = list(range(value.ndim))
            found = self.emit("sum", (each,), value.sum(), early=early, axes=axes, keep=False)
            total = found if total is None else self.emit("add", (total, found), self.values[total] + value.sum())
        assert total is not None
        most = count // 2**bits
        many = self.emit("less", (most, total), self.values[total] > most, early=early)
        assert bool(self.values[many]) == bool(after)
        self.grown = self.emit("cast", (many,), self.values[many].long(), early=early, type="int")
        return self.emit("add", (state, self.grown), torch.tensor(self.at[state] + after), early=early)


_SCALARS: dict[str, Callable[[int, int], int]] = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "minimum": min,
    "shift": lambda a, b: a << b if b >= 0 else a >> -b,
}


def fits(largest: float) -> None:
    """Refuse numbers of more than ``WORD`` bits."""
    if largest >= 2.0**WORD:
        raise UsageError(f"export --rule: a number of this update needs more than {WORD} bits and a sign")
