"""Learnt feedback of pc and ipc: it gets the update of the forward weights, and nothing comes through those."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

import localssl
from localssl.credit.feedback_alignment import weighted
from localssl.learner import Learner
from localssl.runs import checkpoint

from .test_rules_credit import LABELS, gradients
from .train_util import last_state, run_tiny
from .util import SHAPE, small_learner, usage_error, views


def test_learnt_feedback_gets_the_transposed_update() -> None:
    """Under the same optimiser W - W_fb stays without weight decay and shrinks with it (Kolen & Pollack)."""
    for decay, objective in ((0.0, "clapp"), (0.5, "clapp"), (0.5, "ce")):
        learner = small_learner("vgg", localssl.rules.get("pc", learnt_feedback=True, objective=objective))
        gap = [(m.weight - f.weight).detach().clone() for m, f in pairs(learner)]
        optimizer = torch.optim.AdamW(learner.parameters(), lr=0.01, weight_decay=decay)
        for _ in range(5):
            for _ in learner.updates(*views(), labels=LABELS):
                optimizer.step()
                optimizer.zero_grad()
        assert len(gap) == len(learner.encoder.blocks) + (objective == "ce")
        for old, (m, f) in zip(gap, pairs(learner), strict=True):
            torch.testing.assert_close(m.weight - f.weight, old * (1 - 0.01 * decay) ** 5, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("options", [{"learnt_feedback": True}, {}])
@pytest.mark.parametrize("name", ["pc", "ipc"])
def test_learnt_feedback_does_not_hear_of_the_head_past_its_logits(name: str, options: dict[str, Any]) -> None:
    """The head moved in directions that leave every logit as it is: no block's update hears of it, unless by Hᵀ."""
    torch.manual_seed(0)
    rule = localssl.rules.get(name, objective="ce", steps=4, classes=4, **options)
    learner = Learner(localssl.encoders.mlp(SHAPE[0] * SHAPE[1] * SHAPE[2], widths=(9, 8, 60)).double(), rule, SHAPE)
    (head,) = (cast(nn.Linear, m) for m in learner.projections.get_submodule("head").children())
    seen: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    learner.accumulate_grads(*views(), labels=LABELS)
    handle.remove()
    before = gradients(learner)
    z = torch.cat(seen)  # of every step of inference
    change = torch.randn_like(head.weight)
    fit = torch.linalg.lstsq(z, z @ change.T, driver="gelsd")  # PyTorch 2.9's default driver finds zeros here
    change -= fit.solution.T  # what is left of it no z has a part in
    assert float((z @ change.T).abs().max()) < 1e-12 < float(change.abs().max())
    with torch.no_grad():
        head.weight.add_(20 * change)
    learner.zero_grad(set_to_none=True)
    learner.accumulate_grads(*views(), labels=LABELS)
    for block, (one, other) in enumerate(zip(before, gradients(learner), strict=True), start=1):
        for key in one:
            moved = float((other[key] - one[key]).norm() / one[key].norm())
            assert (moved < 1e-9) == bool(options), (block, key, moved)


def pairs(learner: Learner) -> list[Any]:
    found: list[Any] = list(zip(weighted(learner.encoder), learner.projections["backward"], strict=True))
    if "head" in learner.projections:
        found += zip(learner.projections["head"], learner.projections["backward_head"], strict=True)
    return found


def test_a_run_from_before_heads_had_feedback_is_refused(tmp_path: Path) -> None:
    """In a line, where its learner would go on; its encoder is read as ever."""
    typed = ("objective=ce", "learnt_feedback=true")
    run = run_tiny(tmp_path / "run", rule="pc", rule_options=typed, epochs=1)
    state = last_state(run.path)
    assert state["learner"].pop("projections.backward_head.0.weight").shape[0] == 10
    checkpoint.save(run.path, state)
    with usage_error(r"lacks projections\.backward_head\.0\.weight: it was written .* or by another version$"):
        run.trained_learner()
    with usage_error(r"lacks projections\.backward_head\.0\.weight"):
        run_tiny(run.path, rule="pc", rule_options=typed, epochs=1, resume=True)
    run.encoder()
