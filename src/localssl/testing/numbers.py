"""Checks of the numbers that come of a batch: their shapes and types, where they are, whether they are finite."""

from __future__ import annotations

import contextlib
import dataclasses
from unittest import mock

import torch
from torch import Tensor

from localssl.rules.base import PER_LAYER
from localssl.testing.bench import Bench, Skip, Update, require, same, update
from localssl.testing.comparing import distance, draws, listed, one_line, shown

SETTLING = ("predictive-coding", "incremental-predictive-coding")  # credit with an inference that must settle


def encoders(bench: Bench) -> None:
    """One batch gives one finite loss per layer (or one in all) and an update of every weight; the views stay."""
    learner, feed = bench.learner(), bench.feed()
    a, b = feed.a.clone(), feed.b.clone()
    found = update(learner, feed)
    wanted = (len(learner.encoder.blocks) if bench.rule.credit in PER_LAYER else 1,)
    require(tuple(found.losses.shape) == wanted, f"losses are of shape {tuple(found.losses.shape)}, expected {wanted}")
    require(bool(found.losses.isfinite().all()), f"losses are {shown(found.losses)}")
    require(same(a, feed.a) and same(b, feed.b), "the views were changed in place")
    lacking = [name for name, p in learner.named_parameters() if p.requires_grad and found.grads[name] is None]
    require(not lacking, f"no update of {listed(lacking)}")
    blocks = [g for name, g in found.grads.items() if name.startswith("encoder.") and g is not None]
    require(any(bool(g.any()) for g in blocks), "the update of all blocks is zero")


def dtype(bench: Bench) -> None:
    """Losses and updates are of the activities' type, float32 or float64, and no number in float64 passes float32."""
    losses: list[Tensor] = []
    for kind in (torch.float32, torch.float64):
        found = update(bench.learner().to(kind), bench.feed(kind))
        require(found.losses.dtype == kind, f"the losses of {kind} activities are {found.losses.dtype}")
        wrong = [name for name, g in found.grads.items() if g is not None and g.dtype != kind]
        require(not wrong, f"the update of {listed(wrong)} is not {kind}")
        losses.append(found.losses.double())
    if not any(draws(bench, bench.feed())):
        off = distance(losses[0], losses[1])
        require(off < 1e-3, f"the losses in float32 and float64 are {off:.1g} apart")
    noise = torch.randn(bench.feed().a.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    moved = [
        update(bench.learner(), bench.feed().map(lambda view, size=size: view + size * noise)).losses
        for size in (0.0, 1e-11, 1e-3)
    ]
    # what 1e-3 must change for 1e-11 to be above rounding in float64
    least = [1e-5 * float(abs(at)) for at in moved[0]]
    deaf = [
        i + 1
        for i, (at, near, far) in enumerate(zip(*moved, strict=True))
        if at == near and float(abs(far - at)) > least[i]
    ]
    require(not deaf, f"losses {deaf} in float64 do not see a change of 1e-11, but one of 1e-3: rounded to float32?")


def device(bench: Bench) -> None:
    """Everything that the rule makes is where the activities are: on the meta device, and on a GPU if there is one."""
    learner, feed = bench.learner(torch.float32).to("meta"), bench.feed(torch.float32)
    given = None if feed.labels is None else feed.labels.to("meta")
    valueless = ""
    try:
        with (  # both unknown to meta
            mock.patch.object(torch, "autocast", return_value=contextlib.nullcontext()),
            mock.patch.object(torch, "is_autocast_enabled", return_value=False),
        ):
            x = learner.enter(feed.a.to("meta"), feed.b.to("meta"), None, given)
            for losses in learner.credit.updates(learner.step_of(x, None, given)):
                place = losses.device
                require(place.type == "meta", f"the losses of activities on the meta device are on {place}")
    except (RuntimeError, NotImplementedError) as error:
        elsewhere = "expected device" in str(error) or "on the same device" in str(error)
        require(not elsewhere, f"a tensor is made on the CPU for activities elsewhere ({one_line(error)})")
        valueless = f"it needs values, which the meta device has not ({one_line(error)}), and there is no GPU"
    if valueless and not torch.cuda.is_available():
        raise Skip(valueless)
    if torch.cuda.is_available():
        there = dataclasses.replace(
            feed.map(lambda view: view.cuda()),
            negatives=None if feed.negatives is None else feed.negatives.cuda(),
            labels=None if feed.labels is None else feed.labels.cuda(),
        )
        found = update(bench.learner(torch.float32).cuda(), there)
        require(found.losses.is_cuda, "the losses of activities on a GPU are not there")
        if not any(draws(bench, feed)):
            off = distance(found.losses.cpu(), update(bench.learner(torch.float32), feed).losses)
            require(off < 1e-2, f"the losses on the GPU are {off:.1g} off those on the CPU")


def extremes(bench: Bench) -> None:
    """Losses and updates are finite for views × 1000, black ones, and one block's weights and biases × 1000 (float32).

    A norm in front of a block takes from it what the views and the blocks below have, not what its own weights have.
    Predictive coding's states diverge where η_h |W|² is far above 1, for large weights of any block but the first,
    which no error comes through: its other blocks get large biases alone.
    """
    feed = bench.feed(torch.float32)
    for factor, kind in ((1e3, "views × 1000"), (0.0, "views that are all zero")):
        found = update(bench.learner(torch.float32), feed.map(lambda view, by=factor: by * view))
        _require_finite(found, kind)
    for layer in range(len(bench.learner().encoder.blocks)):
        learner = bench.learner(torch.float32)
        biases_only = layer > 0 and bench.rule.credit in SETTLING
        with torch.no_grad():
            for name, parameter in learner.encoder.blocks[layer].named_parameters():
                if not biases_only or name.endswith("bias"):
                    parameter.mul_(1e3)
        what = "biases" if biases_only else "weights"
        _require_finite(update(learner, feed), f"{what} of block {layer + 1} × 1000")


def _require_finite(found: Update, kind: str) -> None:
    require(bool(found.losses.isfinite().all()), f"{kind} give losses {shown(found.losses)}")
    bad = [name for name, g in found.grads.items() if g is not None and not bool(g.isfinite().all())]
    require(not bad, f"{kind} give an update of {listed(bad)} that is not finite")
