"""What a rule is held against: end-to-end backpropagation of which loss."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from localssl import rules
from localssl.alignment.fitting import fit_projections
from localssl.errors import UsageError, unknown
from localssl.learner import Learner
from localssl.rules.base import Rule, ScoreRule

REFERENCES = ("own", "bp-clapp++", "bp-infonce")


@dataclass(frozen=True)
class Against:
    """The learner whose last-layer loss is backpropagated, and the words for it in the column ``reference``."""

    name: str
    learner: Learner


def choose(
    learner: Learner, reference: str | Learner, fit: Sequence[Sequence[Tensor | None]] | None, memo: dict[str, Against]
) -> Against:
    """The reference of one learner. ``memo`` keeps what was fitted, to be shared by learners of one encoder.

    Raises:
        UsageError: unknown reference, one that must be fitted and nothing to fit it on, or a loss that no update
            descends.
    """
    rule, called = learner.rule, name_of(learner.rule)
    whose = reference.rule if isinstance(reference, Learner) else rule
    if (reference == "own" or whose is not rule) and (why := refusal(whose)):
        raise UsageError(f"{why}; choose the reference {' or '.join(REFERENCES[1:])}")
    if isinstance(reference, Learner):
        if reference.encoder is not learner.encoder:
            raise UsageError("the reference learner has another encoder than the rule; build both on one encoder")
        return Against(f"backpropagation of the {reference.rule.name} given", reference)
    if reference not in REFERENCES:
        raise unknown("reference", str(reference), REFERENCES)
    if reference == "own":
        if rule.credit == "backprop":
            return Against(f"itself ({called} is end to end)", learner)
        return Against(f"backpropagation of {called}'s own last-layer loss", learner)
    if reference == rule.name:
        return Against(f"itself ({called} is end to end)", learner)
    if reference == "bp-clapp++":
        shared = _shared(learner)
        if shared is not None:
            return Against("bp-clapp++ with the rule's own B^L", shared)
    key = f"{reference} {_options(learner) if reference == 'bp-clapp++' else ''}"
    if key not in memo:
        memo[key] = _fitted(learner, reference, fit)
    return memo[key]


def refusal(rule: Rule) -> str | None:
    """Why a rule's own loss is no reference, in words; None where it is one."""
    if rule.credit != "hebbian":
        return None
    return f"{name_of(rule)}'s updates descend no loss whose backpropagation they could be held against"


def name_of(rule: Rule) -> str:
    """The rule's registered name, or its class's."""
    return rule.name or type(rule).__name__


def _options(learner: Learner) -> dict[str, object]:
    """The form of the loss, which bp-clapp++ takes over from a score rule."""
    rule = learner.rule
    return {f.name: getattr(rule, f.name) for f in fields(ScoreRule)} if isinstance(rule, ScoreRule) else {}


def _end_to_end(learner: Learner, name: str) -> Learner:
    rule = rules.get(name, **(_options(learner) if name == "bp-clapp++" else {}))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Learner(learner.encoder, rule, learner.input_shape)


def _shared(learner: Learner) -> Learner | None:
    """bp-clapp++ with the rule's B^L: for one score, of the last layer with itself, averaged over all positions."""
    rule, shape = learner.rule, learner.output_shapes[-1]
    patch = learner.patches[-1]
    averaged = len(shape) == 1 or patch is None or all(size <= patch for size in shape[1:])
    if not isinstance(rule, ScoreRule) or len(rule.references) != 1 or not averaged:
        return None
    (key, source), last = next(iter(rule.references.items())), len(learner.output_shapes) - 1
    if source.source(last, last + 1) != last:
        return None
    made = _end_to_end(learner, "bp-clapp++")
    made.projections["lateral"] = torch.nn.ModuleList([copy.deepcopy(learner.parts[key][-1])])
    return made


def _fitted(learner: Learner, name: str, fit: Iterable[Sequence[Tensor | None]] | None) -> Against:
    what = "B^L" if name == "bp-clapp++" else "its head"
    if fit is None:
        raise UsageError(
            f"reference {name!r} has {what} to be fitted on the frozen encoder for {name_of(learner.rule)!r}; "
            f"give fit=[...], batches of training images"
        )
    made = _end_to_end(learner, name)
    fit_projections(made, fit)
    return Against(f"{name} with {what} fitted on the frozen encoder", made)
