"""A recorded program in whole numbers: every array integers times a power of two, and the shifts between them.

Exponents are known as names: a grid's is a state, others follow from those by additions, which are operations of the
program like any others. So one program serves while exponents change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from localssl.errors import UsageError
from localssl.rulefile.ops import Op, Operand
from localssl.rulefile.program import Program, Stage
from localssl.rulefile.rounding import ROUND, WIDEN

WORD = 63  # bits of a whole number of the golden vectors, without the sign
EARLY = ("less", "less-equal", "maxpool-where", "reshape")  # done where the operand is made: fewer bits are held then
PRODUCTS = ("conv", "conv-weight-gradient", "matmul", "multiply")
LIKE_THE_FIRST = ("sum", "reshape", "transpose", "broadcast", "slice", "embed", "maxpool", "unpool", "take")
TOGETHER: dict[str, slice] = {  # which operands must have one exponent
    **dict.fromkeys(("add", "subtract", "maximum", "minimum", "less", "less-equal", "equal"), slice(0, 2)),
    **{"where": slice(1, 3), "concat": slice(None), "scatter-add": slice(0, 3, 2)},
}
NOT_WIDER = {"reshape", "transpose", "broadcast", "slice", "embed", "maxpool", "take", "concat", "where", "maximum"}
SUMS = {"avgpool": "sumpool", "avgpool-spread": "sumpool-spread"}
Exponent = int | str


@dataclass(frozen=True)
class Array:
    """An array or a number; its exponent, None where all its numbers are 0."""

    name: Exponent
    exponent: Exponent | None = 0


class Whole:
    """Writes a program in whole numbers.

    Args:
        program: as recorded, on numbers that are whole multiples of powers of two.
        held: by state or input, its exponent: a number, or the name of a state.
        at: by state that is an exponent, its value in this step.
        bits: by state or input, of a number.

    Attributes:
        values: by name, what an array is in this step.
        exponents: by name of an array, its exponent.
        bits: by name of an array, where its numbers are of so many.

    Raises:
        UsageError: from all methods: what has no form in whole numbers, or needs more than ``WORD`` bits.
    """

    def __init__(
        self, program: Program, held: Mapping[str, Exponent], at: Mapping[str, int], bits: Mapping[str, int]
    ) -> None:
        self.program, self.at, self.bits = program, dict(at), dict(bits)
        self.values: dict[str, Tensor] = {}
        self.exponents: dict[str, Exponent] = {}
        self.stages: list[tuple[Stage, list[Op]]] = []
        self.constants: dict[str, Tensor] = {}
        self._known: dict[str, Array] = {}
        self._stage: dict[str, int] = {}  # by array, of which stage it is
        self._scalars: dict[tuple[Operand, ...], str] = {}
        self.grown = ""  # by how much the last grid's exponent grows
        for name, exponent in held.items():
            self._know(name, Array(name, exponent))
        for name in program.draws:
            self._know(name, Array(name))
        for name, value in program.constants.items():
            self._know(name, Array(name, _finest(value)))
            self.constants[name] = self.values[name]
        for name in at:
            self._known[name] = Array(name, 0)
        for stage in program.stages:
            self.begin(stage)
            for op in stage.ops:
                self._write(op)

    def begin(self, stage: Stage) -> None:
        """What is written from now on belongs to this stage."""
        self.stages.append((stage, []))

    def of(self, name: str) -> Array:
        """What an array of the recording is here."""
        return self._known[name]

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
        _fits(float(value.abs().max()) * 2.0**places)
        return self.emit("shift", (x, by), value * 2**places)

    def together(self, arrays: Sequence[Array]) -> tuple[list[Exponent], Exponent]:
        """Arrays at the smallest of their exponents, and which that is."""
        exponents = list(dict.fromkeys(x.exponent for x in arrays if x.exponent is not None))
        common: Exponent = exponents[0] if exponents else 0
        for exponent in exponents[1:]:
            common = self.scalar("minimum", common, exponent)
        return [self.shifted(x, common) for x in arrays], common

    def made(self, written: Mapping[str, str], drawn: Sequence[str]) -> Program:
        """The program; every update is followed by its exponent.

        Args:
            written: arrays that states become, beside those that the recording has.
            drawn: inputs that are random, beside those of the recording.
        """
        old, known = self.program, {name: str(x.name) for name, x in self._known.items()}
        updates: dict[str, str] = {}
        for parameter, name in old.updates.items():
            updates[parameter] = known[name]
            updates[f"{parameter} exponent"] = str(self._known[name].exponent)
        order = [op.out for _, ops in self.stages for op in ops if op.out not in self.at]
        new = {name: f"v{i}" for i, name in enumerate(order, start=1)}

        def now(named: Mapping[str, str]) -> dict[str, str]:
            return {key: new.get(name, name) for key, name in named.items()}

        def op_of(op: Op) -> Op:
            operands = tuple(new.get(o, o) if isinstance(o, str) else o for o in op.operands)
            return replace(op, out=new.get(op.out, op.out), operands=operands)

        values = {new.get(name, name): value for name, value in self.values.items()}
        return Program(
            tuple(replace(stage, ops=tuple(map(op_of, ops))) for stage, ops in self.stages),
            self.constants,
            (*old.draws, *drawn),
            now(updates),
            now({state: known[name] for state, name in old.buffers.items()} | dict(written)),
            now({signal: known[name] for signal, name in old.signals.items()}),
            {p: [new.get(known[name], known[name]) for name in found] for p, found in old.modulators.items()},
            values | {name: torch.tensor(value) for name, value in self.at.items()},
            {new.get(name, name): exponent for name, exponent in self.exponents.items()},
            {new.get(name, name): bits for name, bits in self.bits.items()},
        )

    def number(self, x: Exponent) -> int:
        """What a number, or the name of one, is in this step."""
        if isinstance(x, int):
            return x
        return self.at[x] if x in self.at else int(self.values[x])

    def _know(self, name: str, x: Array) -> None:
        """What an array of the recording is, whose numbers are checked."""
        self._known[name] = x
        value = self.program.values[name]
        if isinstance(x.name, str) and x.exponent is not None:
            self.values[x.name] = _whole(value, self.number(x.exponent))
            self.exponents[x.name] = x.exponent
        elif isinstance(x.name, str):
            self.values[x.name] = value.long()
            self.exponents[x.name] = 0

    def _operand(self, o: Operand) -> Array:
        if isinstance(o, str):
            return self._known[o]
        if o == 0:
            return Array(0, None)
        numerator, denominator = float(o).as_integer_ratio()
        twos = (numerator & -numerator).bit_length() - 1
        found = Array(numerator >> twos, twos - denominator.bit_length() + 1)
        widest = max(self.bits.values())
        if abs(numerator >> twos) >= 2**widest:
            raise UsageError(f"export --rule: {o} is no whole number of {widest} bits times a power of two")
        return found

    def _write(self, op: Op) -> None:
        if op.op == WIDEN:
            self._widen(op)
            return
        operands = [self._operand(o) for o in op.operands]
        self._know(op.out, self._made(op, operands))

    def _made(self, op: Op, operands: list[Array]) -> Array:
        names = [x.name for x in operands]
        how, value = dict(op.attributes), self.program.values[op.out]
        if op.op == ROUND:
            x, grid = operands
            assert isinstance(grid.name, str)
            by = self.scalar("subtract", grid.name, x.exponent or 0)
            whole = _whole(value, self.at[grid.name])
            return Array(self.emit("round", (x.name, by), whole, how["bits"], **how), grid.name)
        if op.op in ("power", "divide") or op.op == "multiply":
            return self._scaled(op, operands, value)
        if op.op in PRODUCTS:
            return self._product(op.op, operands, value, how)
        if op.op in LIKE_THE_FIRST:
            exponent = operands[0].exponent
            bits = self.bits.get(str(names[0])) if op.op in NOT_WIDER else None
            return Array(self.emit(op.op, names, self._at(value, exponent), bits, **how), exponent)
        if op.op in SUMS:
            exponent = self.scalar("subtract", operands[0].exponent or 0, _twos(math.prod(how["kernel"])))
            return Array(self.emit(SUMS[op.op], names, self._at(value, exponent), **how), exponent)
        if op.op in ("maxpool-where", "cast"):
            if op.op == "cast":
                how["type"] = "int" if how["type"] == "float" else how["type"]
            known = operands[0].exponent in (0, None) or op.op == "maxpool-where" or how["type"] == "bool"
            if known:
                return Array(self.emit(op.op, names, _whole(value, 0), **how))
        if op.op in TOGETHER:
            part = TOGETHER[op.op]
            aligned, exponent = self.together(operands[part])
            names[part] = aligned
            widths = {self.bits.get(str(n)) for n in names[part] if n != 0}
            bits = widths.pop() if op.op in NOT_WIDER and len(widths) == 1 else None
            exponent = 0 if op.op in ("less", "less-equal", "equal") else exponent
            return Array(self.emit(op.op, names, self._at(value, exponent), bits, **how), exponent)
        raise UsageError(f"export --rule: in whole numbers there is no {op.op}, which this rule's update needs")

    def _scaled(self, op: Op, operands: list[Array], value: Tensor) -> Array:
        """A product, a square, or an array over a power of two, which is the same array at another exponent."""
        x, other = operands
        if op.op == "power":
            if op.operands[1] != 2:
                raise UsageError(f"export --rule: in whole numbers there is no power {op.operands[1]}")
            return self._product("multiply", [x, x], value, {})
        if op.op == "divide":
            if not (isinstance(other.name, int) and other.name == 1 and isinstance(other.exponent, int)):
                raise UsageError(f"export --rule: in whole numbers nothing is divided by {op.operands[1]}")
            other = Array(1, -other.exponent)
        x, other = (other, x) if isinstance(x.name, int) else (x, other)
        if other.name == 1 and x.exponent is not None:
            assert other.exponent is not None
            return Array(x.name, self.scalar("add", x.exponent, other.exponent))
        return self._product("multiply", [x, other], value, {})

    def _product(self, op: str, operands: list[Array], value: Tensor, how: Mapping[str, Any]) -> Array:
        a, b = operands
        exponent = None if a.exponent is None or b.exponent is None else self.scalar("add", a.exponent, b.exponent)
        gated = [x for x in operands if isinstance(x.name, str) and self.values[x.name].dtype == torch.bool]
        rest = [x for x in operands if x not in gated]
        bits = self.bits.get(str(rest[0].name)) if op == "multiply" and gated and rest else None
        return Array(self.emit(op, (a.name, b.name), self._at(value, exponent), bits, **how), exponent)

    def _widen(self, op: Op) -> None:
        """A grid's next exponent: one more where more than one number in 2^bits was clipped."""
        x, (state, bits) = self._operand(op.operands[0]), (str(op.operands[1]), op.attributes["bits"])
        before = self.program.values[state]
        after = round(math.log2(float(self.program.values[op.out]) / float(before)))
        by = self.scalar("subtract", state, x.exponent or 0)
        assert isinstance(x.name, str)
        edge, sizes = float(2**bits - 1) * 2.0 ** self.number(by), 2 * self.values[x.name].abs()
        over = self.emit("outside", (x.name, by), sizes >= edge, early=True, bits=bits)
        self._known[op.out] = Array(self.wider(state, [over], op.attributes["count"], bits, after, early=True))

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

    def _at(self, value: Tensor, exponent: Exponent | None) -> Tensor:
        return _whole(value, 0 if exponent is None else self.number(exponent))


_SCALARS: dict[str, Callable[[int, int], int]] = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "minimum": min,
    "shift": lambda a, b: a << b if b >= 0 else a >> -b,
}


def _whole(value: Tensor, exponent: int) -> Tensor:
    """The whole numbers of an array, which are checked; truths as they are."""
    if not value.is_floating_point():
        return value
    found = value / 2.0**exponent
    assert torch.equal(found, found.round()), exponent
    _fits(float(found.abs().max()) if found.numel() else 0.0)
    return found.long()


def _finest(value: Tensor) -> int | None:
    """The largest exponent at which an array is whole; None where it is 0."""
    if not value.is_floating_point():
        return 0
    pairs = [x.as_integer_ratio() for x in value.unique().tolist() if x]
    twos = [(n & -n).bit_length() - d.bit_length() for n, d in pairs]
    return min(twos, default=None)


def _twos(n: int) -> int:
    if n & (n - 1):
        raise UsageError(f"export --rule: in whole numbers there is no mean over {n}, no power of two")
    return n.bit_length() - 1


def _fits(largest: float) -> None:
    if largest >= 2.0**WORD:
        raise UsageError(f"export --rule: a number of this update needs more than {WORD} bits and a sign")
