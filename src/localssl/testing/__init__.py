"""Checks that every rule should pass, yours too: ``localssl.testing.check_rule(MyRule)``.

>>> import localssl
>>> localssl.testing.check_rule("clapp++dfb")["locality"]
'passed'
"""

from __future__ import annotations

import random
import sys
from collections.abc import Generator
from contextlib import contextmanager

import numpy as np
import torch

from localssl import markdown, own
from localssl.errors import UsageError, one_line
from localssl.rules import Rule
from localssl.rules.base import PER_LAYER
from localssl.testing.bench import Bench, CheckFailed, Failure, Skip, benches, the_rule
from localssl.testing.checks import CHECKS, Check

__all__ = ["CHECKS", "Check", "CheckFailed", "check_rule", "table"]


def check_rule(rule: Rule | type[Rule] | str) -> dict[str, str]:
    """Run every check that a rule's declarations ask for, on three small networks; seconds.

    A rule may except itself from a check: ``exceptions = {"mean": "the reason"}`` among its class variables. An
    exception is strict: a check that is excepted and passes is an error. A built-in rule whose credit is "local" may
    not except "locality".

    Args:
        rule: a rule, its class, or what ``localssl.rules.get`` takes.

    Returns:
        By check: "passed", "excepted: the reason", or "not asked: why".

    Raises:
        CheckFailed: the first check that fails, what was found, where in the rule's file if it raised, and which others
            fail, too.
        UsageError: no such rule.
    """
    made = the_rule(rule)
    name = vars(type(made)).get("name") or type(made).__name__  # not what it inherits
    with _aside():
        _check_exceptions(made, name)
        try:
            places, remarks = benches(made)
        except Exception as error:
            raise CheckFailed(name, "encoders", f"no small network takes it: {_raised(error, made)}") from error
        outcomes, failed = dict[str, str](), list[CheckFailed]()
        for check in CHECKS:
            try:
                outcomes[check] = _outcome(made, name, check, places)
            except CheckFailed as error:
                failed.append(error)
                if check == "encoders":  # it does not run: whatever else it fails follows from that
                    break
        if failed:
            raise failed[0].beside([other.check for other in failed[1:]])
    if remarks and outcomes["encoders"] == "passed":
        outcomes["encoders"] = f"passed ({'; '.join(remarks)})"
    return outcomes


def table() -> str:
    """The checks as a table in Markdown, for the documentation."""
    rows = [[f"`{name}`", check.claim, check.asked_of] for name, check in CHECKS.items()]
    return markdown.table(["check", "what holds", "asked of"], rows)


def _outcome(rule: Rule, name: str, check: str, places: list[Bench]) -> str:
    excepted = rule.exceptions.get(check)
    if reason := CHECKS[check].reason(rule):
        if excepted is not None:
            raise CheckFailed(name, check, f"it is excepted but not asked ({reason}); remove the exception")
        return f"not asked: {reason}"
    found, skipped = _run(CHECKS[check], places)
    if excepted is not None:
        if found is None:
            raise CheckFailed(name, check, f"it is excepted ({excepted}) but passes; remove the exception")
        return f"excepted: {excepted}"
    if found is not None:
        raise CheckFailed(name, check, found[0]) from found[1]
    return f"not asked: {skipped}" if skipped else "passed"


def _run(check: Check, places: list[Bench]) -> tuple[tuple[str, Exception] | None, str]:
    """What a check found wrong and why, if anything; and why it could not tell."""
    skipped = ""
    for bench in places:
        try:
            check.run(bench)
        except Skip as error:
            skipped = str(error)
        except Failure as error:
            return (f"{error} (network {bench.network!r})", error), ""
        except Exception as error:
            return (f"{_raised(error, bench.rule)} (network {bench.network!r})", error), ""
    return None, skipped


def _raised(error: Exception, rule: Rule) -> str:
    """An exception in one line, with the place in the rule's own file."""
    file = getattr(sys.modules.get(type(rule).__module__), "__file__", None)
    place = own.where(error, *([file] if file else []))
    text = one_line(error)
    kind = "" if isinstance(error, UsageError | Failure) else f"{type(error).__name__}: "
    return f"{place}: {kind}{text}" if place else f"{kind}{text}"


def _check_exceptions(rule: Rule, name: str) -> None:
    for check, reason in rule.exceptions.items():
        if check not in CHECKS:
            raise CheckFailed(name, check, f"it is excepted but there is no such check; there are {', '.join(CHECKS)}")
        if not reason.strip():
            raise CheckFailed(name, check, "it is excepted without a reason")
    built_in = type(rule).__module__.startswith("localssl.rules.")
    if "locality" in rule.exceptions and built_in and rule.credit in PER_LAYER and rule.credit != "optimum":
        raise CheckFailed(
            name, "locality", f"a built-in rule whose credit is {rule.credit} may not be excepted from it"
        )


@contextmanager
def _aside() -> Generator[None]:
    """Leave every source of random numbers as it was; gradients are on."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(), torch.enable_grad():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
