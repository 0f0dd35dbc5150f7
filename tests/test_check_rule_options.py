"""Rules pass check_rule under other options than the defaults, and credit assignments that go wrong are caught."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from localssl import rules
from localssl.credit import feedback_alignment, hebbian, predictive_coding
from localssl.testing import CheckFailed, check_rule

from .test_rules_credit import ALL
from .test_rules_illing import CASES as ILLING
from .util import SCORE_RULES

OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    **ALL,
    "pc lpl": ("pc", {"objective": "lpl"}),  # at eta_h 0.3 the states of the linear network swing, and no mean is left
    **{f"illing {case}": ("clapp-illing", options) for case, options in ILLING.items()},
    "illing more steps": ("clapp-illing", {"patch": 2, "stride": 2}),  # four rows, k = 1 and 2
    **{f"{case} 1": (name, {"f": "softplus", "loss_type": 1, **opts}) for case, (name, opts) in SCORE_RULES.items()},
    "random negatives": ("clapp++both", {"negatives": "random"}),
    "low rank": ("clapp++both", {"projection": "low-rank", "rank": 2}),
    "patch-local": ("clapp++both", {"projection": "patch-local", "rank": 2}),
    "patch-shared": ("clapp++dfb", {"projection": "patch-shared-frozen", "rank": 2}),
    "ff of one view, with peers": ("ff", {"views": 1, "peer": 0.03}),
    "scff of views": ("scff", {"halves": "views", "theta1": 0.5, "penalty": 0.3}),
    "softhebb": ("softhebb", {"t": 0.3, "rates": (2.0, 1.0)}),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_passes_under_other_options(case: str) -> None:
    torch.set_num_threads(1)
    name, options = OPTIONS[case]
    outcomes = check_rule(rules.get(name, **options))
    assert outcomes["encoders"].startswith("passed")
    nothing_held = options.get("variant") == "clapp-s" or name in ("pc", "ipc", "ff", "scff", "softhebb")
    assert (outcomes["references"] == "passed") == (not nothing_held)
    assert (outcomes["differentiation"] == "passed") == (name != "optimum")
    learnt = options.get("learnt_feedback", False)
    assert (outcomes["transport"] == "passed") == (learnt or name in ("dfa", "fa", "sign-symmetric"))
    assert outcomes["permutation"] == "passed"


def scaled_linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return 1.001 * F.linear(x, weight)


def with_more_energy(*args: Any) -> Any:
    energy, losses = ENERGY(*args)
    return 1.001 * energy, losses


def with_no_memory(*args: Any) -> Any:
    args[0].rule.__dict__["momentum"] = 0.0
    return ENERGY(*args)


def half(step: Any, gradients: dict[torch.Tensor, torch.Tensor]) -> None:
    TRANSPOSE(step, {p: None if g is None else g / 2 for p, g in gradients.items()})


ENERGY, TRANSPOSE, ADD = predictive_coding._energy, predictive_coding._transpose, hebbian.add_grad
FA, DFA = feedback_alignment.FeedbackAlignment, feedback_alignment.DirectFeedbackAlignment
SIGNS = feedback_alignment.SignSymmetric
WAY = SIGNS.way
LEARNT_CE: dict[str, Any] = {"learnt_feedback": True, "objective": "ce"}
LEAKS: list[tuple[str, dict[str, Any], str, Any, str, Any]] = [
    ("fa", {}, "transport", FA, "way", lambda self, rule, forward, feedback: forward),
    ("fa", {}, "differentiation", FA, "way", lambda self, rule, forward, feedback: 1.001 * feedback),
    ("sign-symmetric", {}, "differentiation", SIGNS, "way", lambda *given: 0.999 * WAY(*given)),
    ("dfa", {}, "locality", DFA, "activities", lambda self, encoder, x: encoder(x)),
    ("dfa", {}, "differentiation", feedback_alignment, "F", SimpleNamespace(linear=scaled_linear)),
    ("pc", {}, "differentiation", predictive_coding, "_energy", with_more_energy),
    ("ipc", {"objective": "ce"}, "differentiation", predictive_coding, "_energy", with_no_memory),
    ("pc", {"learnt_feedback": True}, "differentiation", predictive_coding, "_transpose", half),
    ("pc", {"learnt_feedback": True}, "transport", predictive_coding, "rerouted", lambda *ways: nullcontext()),
    ("pc", LEARNT_CE, "transport", predictive_coding, "_heads", lambda parts: {}),
    ("ipc", LEARNT_CE, "transport", predictive_coding, "_heads", lambda parts: {}),
    ("softhebb", {}, "differentiation", hebbian, "add_grad", lambda p, g: ADD(p, -g)),
]


@pytest.mark.parametrize("place", range(len(LEAKS)), ids=[f"{leak[0]} {leak[2]} {leak[4]}" for leak in LEAKS])
def test_a_wrong_credit_is_caught(place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    name, options, check, where, attribute, wrong = LEAKS[place]
    monkeypatch.setattr(where, attribute, wrong)
    with pytest.raises(CheckFailed) as caught:
        check_rule(rules.get(name, **options))
    assert caught.value.check == check
