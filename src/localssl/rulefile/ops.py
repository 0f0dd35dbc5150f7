"""The operations that a rule manifest has, and what one of them is in a program."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from localssl import markdown

OPS: dict[str, str] = {
    "conv": "cross-correlation of a (N, C, …) with weights b (`groups`, `stride`, `padding` by zeros, `dilation`)",
    "conv-weight-gradient": "of an error at the output and x, Σ over samples and positions: weights of `shape`",
    "matmul": "matrix product, also of vectors and of stacks of matrices",
    "maxpool": "largest number of every window (`kernel`, `stride`, `padding`, `dilation`)",
    "maxpool-where": "its place, an index into the flattened map",
    "unpool": "values put where `maxpool-where` says, added up, zeros elsewhere: (N, C, …) of `shape`",
    "avgpool": "mean of every window (`kernel`, `stride`, `padding` with zeros, which count)",
    "avgpool-spread": "its transpose: every value shared equally among its window, an array of `shape`",
    "add": "a + b; as every operation element by element, with NumPy's broadcasting",
    "subtract": "a - b",
    "multiply": "a · b",
    "divide": "a / b",
    "power": "a to the power b",
    "maximum": "the larger of a and b",
    "minimum": "the smaller of a and b",
    "less": "a < b",
    "less-equal": "a ≤ b",
    "equal": "a = b",
    "where": "b where a holds, c elsewhere",
    "exp": "e to the power a",
    "log": "natural logarithm",
    "tanh": "hyperbolic tangent",
    "sigmoid": "1 / (1 + e^-a)",
    "softplus": "log(1 + e^a)",
    "cast": 'to `type`: "float" (true is 1), "int" (towards zero) or "bool" (not 0)',
    "sum": "over `axes`, which stay with length 1 where `keep`",
    "reshape": "to `shape`, in C order",
    "transpose": "the `axes` in this order",
    "broadcast": "repeated to `shape`",
    "slice": "from `start` to before `stop` by `step` along `axis`",
    "embed": "its transpose: zeros of `shape` with a there",
    "concat": "one after the other along `axis`",
    "take": "the entries of a at the indices b along `axis`",
    "scatter-add": "a, with every row of c added to the row that b names",
    "shift": "whole numbers: a · 2^b, rounded down",
    "round": "whole numbers: a · 2^-b, rounded to the nearest, halves up, then clipped to ±(2^(`bits` - 1) - 1)",
    "outside": "whole numbers: whether `round` clips it, being (2^(`bits` - 1) - 1/2) · 2^b or more, of either sign",
    "floor-divide": "whole numbers: a / b, rounded down",
    "root": "whole numbers: the root of a, rounded down",
    "below": "how many numbers of the row a, which are sorted, are smaller than b",
    "sumpool": "whole numbers: `avgpool` times the window's size",
    "sumpool-spread": "whole numbers: its transpose, `avgpool-spread` times the window's size",
}

Operand = str | int | float


def table() -> str:
    """The operations as a table in Markdown, for the documentation."""
    return markdown.table(["operation", "gives"], [[f"`{name}`", what] for name, what in OPS.items()])


@dataclass(frozen=True)
class Op:
    """One operation of a program, which gives one array.

    Args:
        out: the array's name.
        op: what is done, a key of ``OPS``.
        operands: names of arrays, or numbers.
        attributes: what belongs to the operation, e.g. the stride of a convolution.
    """

    out: str
    op: str
    operands: tuple[Operand, ...]
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the arrays that it reads."""
        return tuple(o for o in self.operands if isinstance(o, str))
