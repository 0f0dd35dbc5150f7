"""Every statement on many random cases: the largest deviation found, and whether that is what the statement says."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from localssl.errors import UsageError
from localssl.theory.cases import Case, draw
from localssl.theory.extensions import FAILS, HOLDS
from localssl.theory.statements import PAPER, Statement

KINDS: dict[str, tuple[Statement, ...]] = {"paper": PAPER, "extension": HOLDS, "counterexample": FAILS}


@dataclass(frozen=True)
class Outcome:
    """What became of one statement.

    Args:
        kind: "paper", "extension" or "counterexample".
        statement: which.
        cases: how many were tried.
        worst: largest deviation found.
        where: the case it was found on.
        passed: within the tolerance on every case; for a counterexample: broken by at least what it asks for.
    """

    kind: str
    statement: Statement
    cases: int
    worst: float
    where: Case
    passed: bool


def cases_of(statement: Statement, cases: int) -> list[Case]:
    """Random cases 0 … cases - 1, the statement's f and types in turn."""
    forms, types = statement.forms, statement.types
    return [
        dataclasses.replace(draw(i), f=forms[i % len(forms)], loss_type=types[i // len(forms) % len(types)])
        for i in range(cases)
    ]


def verify(kind: str, statement: Statement, cases: int) -> Outcome:
    """Try a statement on random cases; the same ones every time."""
    tried = cases_of(statement, max(1, cases // statement.cost))
    worst, where, held = -math.inf, tried[0], True
    for case in tried:
        deviation = statement.deviation(case)
        if math.isnan(deviation):
            deviation = math.inf
        held &= deviation <= statement.allowed(case)
        if deviation > worst:
            worst, where = deviation, case
    broken = statement.at_least is not None and statement.at_least <= worst < math.inf
    return Outcome(kind, statement, len(tried), worst, where, held if statement.at_least is None else broken)


def verify_all(cases: int) -> list[Outcome]:
    """All statements, the paper's first.

    Raises:
        UsageError: fewer cases than one.
    """
    if cases < 1:
        raise UsageError(f"cases is {cases}; use 1 or more")
    return [verify(kind, statement, cases) for kind, statements in KINDS.items() for statement in statements]
