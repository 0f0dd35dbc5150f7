"""A recorded program in whole numbers: every array integers times a power of two, and the shifts between them.

Exponents are known as names: a grid's is a state, others follow from those by additions, which are operations of the
program like any others. So one program serves while exponents change.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from localssl.errors import UsageError
from localssl.rulefile.lengths import Length, sigmoid
from localssl.rulefile.ops import Op, Operand
from localssl.rulefile.program import Program
from localssl.rulefile.rounding import LENGTH, ROUND, TABLE, WIDEN
from localssl.rulefile.writing import Array, Exponent, Writer, fits

PRODUCTS = ("conv", "conv-weight-gradient", "matmul", "multiply")
LIKE_THE_FIRST = ("sum", "reshape", "transpose", "broadcast", "slice", "embed", "maxpool", "unpool", "take")
TOGETHER: dict[str, slice] = {  # which operands must have one exponent
    **dict.fromkeys(("add", "subtract", "maximum", "minimum", "less", "less-equal", "equal"), slice(0, 2)),
    **{"where": slice(1, 3), "concat": slice(None), "scatter-add": slice(0, 3, 2)},
}
NOT_WIDER = {"reshape", "transpose", "broadcast", "slice", "embed", "maxpool", "take", "concat", "where", "maximum"}
SUMS = {"avgpool": "sumpool", "avgpool-spread": "sumpool-spread"}


class Whole(Writer):
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
        super().__init__(at, bits)
        self.program = program
        self._known: dict[str, Array] = {}
        self._divided: set[str] = set()  # arrays of the recording that are samples over their lengths
        self._lengths: dict[str, Length] = {}  # by grid, what it rounds
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

    def of(self, name: str) -> Array:
        """What an array of the recording is here."""
        return self._known[name]

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
        if op.op == LENGTH:
            self._known[op.out] = operands[0]  # not yet divided: ``ROUND`` does both
            self._divided.add(op.out)
            return
        self._know(op.out, self._made(op, operands))

    def _made(self, op: Op, operands: list[Array]) -> Array:
        names = [x.name for x in operands]
        how, value = dict(op.attributes), self.program.values[op.out]
        if op.op == ROUND:
            x, grid = operands
            assert isinstance(grid.name, str)
            if op.operands[0] in self._divided:
                length = self._lengths[grid.name] = Length(self, x, grid.name)
                return Array(length.rounded(_whole(value, self.at[grid.name]), how["bits"]), grid.name)
            by = self.scalar("subtract", grid.name, x.exponent or 0)
            whole = _whole(value, self.at[grid.name])
            return Array(self.emit("round", (x.name, by), whole, how["bits"], **how), grid.name)
        if op.op == TABLE:
            return sigmoid(self, operands[0], value, how["bits"])
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
        if op.operands[0] in self._divided:
            over = self._lengths[state].outside(bits)
            self._known[op.out] = Array(self.wider(state, [over], op.attributes["count"], bits, after, early=True))
            return
        by = self.scalar("subtract", state, x.exponent or 0)
        assert isinstance(x.name, str)
        edge, sizes = float(2**bits - 1) * 2.0 ** self.number(by), 2 * self.values[x.name].abs()
        over = self.emit("outside", (x.name, by), sizes >= edge, early=True, bits=bits)
        self._known[op.out] = Array(self.wider(state, [over], op.attributes["count"], bits, after, early=True))

    def _at(self, value: Tensor, exponent: Exponent | None) -> Tensor:
        return _whole(value, 0 if exponent is None else self.number(exponent))


def _whole(value: Tensor, exponent: int) -> Tensor:
    """The whole numbers of an array, which are checked; truths as they are."""
    if not value.is_floating_point():
        return value
    found = value / 2.0**exponent
    assert torch.equal(found, found.round()), exponent
    fits(float(found.abs().max()) if found.numel() else 0.0)
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
