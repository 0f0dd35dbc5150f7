"""The checks by name. Each is a function of one bench that raises ``Failure`` with what it found, or ``Skip``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from localssl.rules import Rule, ScoreRule
from localssl.rules.base import PER_LAYER
from localssl.rules.predictive_coding import PredictiveCoding
from localssl.testing import dependence, derivation, numbers, repetition
from localssl.testing.bench import Bench
from localssl.testing.descent import DESCENDED

FEEDBACK = ("direct-feedback-alignment", "feedback-alignment", "sign-symmetric")  # errors by other than forward weights


@dataclass(frozen=True)
class Check:
    """A check.

    Args:
        run: raises ``Failure`` or ``Skip``.
        asked_of: the rules that it is asked of, in words.
        reason: why a rule is not asked; "" where it is.
    """

    run: Callable[[Bench], None]
    asked_of: str
    reason: Callable[[Rule], str] = lambda rule: ""

    @property
    def claim(self) -> str:
        """What holds for a rule that passes: the first line of the function's docstring."""
        return (self.run.__doc__ or "").splitlines()[0]


def _no_layers(rule: Rule) -> str:
    asked = rule.credit in PER_LAYER or rule.credit in dependence.TOLD_ALONE
    return "" if asked else f"credit {rule.credit!r} has one loss for all blocks, and errors come through those above"


def _transported(rule: Rule) -> str:
    if isinstance(rule, PredictiveCoding):
        return "" if rule.learnt_feedback else "without learnt_feedback its errors come down through forward weights"
    return "" if rule.credit in FEEDBACK else f"credit {rule.credit!r} has no feedback of its own"


def _no_references(rule: Rule) -> str:
    declared = getattr(rule, "references", {}) or type(rule).constants is not Rule.constants
    return "" if declared else "it declares no references"


def _divided(rule: Rule) -> str:
    return "its update is divided by its largest entry, whatever the batch" if rule.credit == "hebbian" else ""


def _no_factors(rule: Rule) -> str:
    return "" if isinstance(rule, ScoreRule) and rule.credit == "local" else "it is no ScoreRule with local credit"


def _no_derivative(rule: Rule) -> str:
    return "" if rule.credit in DESCENDED else f"what credit {rule.credit!r} descends is not known here"


def _labelled(rule: Rule) -> str:
    return "it declares uses_labels" if rule.uses_labels else ""


CHECKS: Mapping[str, Check] = {
    "encoders": Check(numbers.encoders, "all"),
    "determinism": Check(repetition.determinism, "all"),
    "locality": Check(
        dependence.locality, "rules with one loss per layer; `dfa`, whose last output is held", _no_layers
    ),
    "transport": Check(
        dependence.transport,
        "feedback alignment: direct, random, sign-symmetric; predictive coding with `learnt_feedback`",
        _transported,
    ),
    "references": Check(dependence.references, "rules that declare `references` or `constants`", _no_references),
    "permutation": Check(repetition.permutation, "all, but losses that draw at random whatever `no_draws` says"),
    "mean": Check(repetition.mean, "all, but credit `hebbian`", _divided),
    "labels": Check(dependence.labels, "rules that do not declare `uses_labels`", _labelled),
    "dtype": Check(numbers.dtype, "all"),
    "device": Check(numbers.device, "all; where there is no GPU not of rules that read labels' values"),
    "extremes": Check(numbers.extremes, "all; of `pc` and `ipc` above the first block biases alone"),
    "resume": Check(repetition.resume, "all"),
    "engines": Check(derivation.engines, "score rules whose credit is `local`", _no_factors),
    "differentiation": Check(derivation.differentiation, "all, but credit `optimum`", _no_derivative),
}
