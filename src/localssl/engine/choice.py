"""Which engine carries out a rule's credit assignment: autograd, or the three factors alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from localssl import credit
from localssl.blocks import black_boxes
from localssl.encoders import Encoder
from localssl.engine.blocks import plan, units_per_output
from localssl.engine.integer import Integer, bits_of, refused, refused_encoder
from localssl.engine.synapses import PERFECT, Device
from localssl.engine.three_factor import ThreeFactor
from localssl.errors import UsageError, unknown
from localssl.rules.base import Rule, ScoreRule

ENGINES = ("auto", "autograd", "hebbian", "hebbian-lean", "integer")
FEW_UNITS = 2**23  # of a batch's two views: below, its calls cost the engine more than it saves in memory traffic
FEW_WEIGHTS = 2**25  # of blocks and B: above, no dense gradient of B is worth as much


class Chosen(NamedTuple):
    """A credit assignment, the engine that carries it out, and why it is not the one without autograd."""

    credit: credit.Credit
    name: str
    note: str | None = None


def choose(engine: str, encoder: Encoder, rule: Rule, device: Device = PERFECT) -> Chosen:
    """The engine of that name; "auto" takes "hebbian" where it can do the rule and the encoder.

    An encoder with grids takes "integer" where that can, else "autograd": gradients go straight through grids.

    Raises:
        UsageError: an unknown name, or one other than "auto" and "autograd" where it cannot; says why.
    """
    if engine not in ENGINES:
        raise unknown("engine", str(engine), ENGINES)
    if engine == "integer" or (engine == "auto" and bits_of(encoder) is not None):
        why = refused(rule) or refused_encoder(encoder, rule)
        if why is None:
            return Chosen(Integer(device), "integer")
        if engine == "integer":
            what = f"rule {rule.name!r}" if refused(rule) else "this encoder"
            raise UsageError(f"{what} cannot learn in integers: {why}")
        return Chosen(credit.of(rule.credit), "autograd", why)
    why = None if engine == "autograd" else refusal(encoder, rule)
    if engine == "autograd" or (engine == "auto" and why):
        return Chosen(credit.of(rule.credit), "autograd", why)
    if engine == "hebbian-lean" and (boxes := black_boxes(encoder.blocks)):
        number, box = boxes[0]
        why = f"it runs blocks twice, and black box {box.name!r} in block {number} may answer otherwise then"
    if why:
        raise UsageError(f"engine {engine!r}: {why}; use engine 'auto' or 'autograd'")
    return Chosen(ThreeFactor(lean=engine == "hebbian-lean"), "hebbian" if engine == "auto" else engine)


def autograd_is_faster(encoder: Encoder, outputs: Sequence[Sequence[int]], weights: int, images: int) -> bool:
    """Whether autograd's step takes less time than that of the three factors, which can train the encoder.

    By size and not by a clock, so that one command gives one result on every machine of a kind; what the bounds are
    worth on two CPU cores stands in docs/engine.md (``benchmarks/engines.py``).

    Args:
        encoder: of blocks that the engine knows, also on the meta device.
        outputs: shape of every block's output for one image.
        weights: numbers that are trained, of blocks and B.
        images: in a batch.
    """
    blocks = plan(encoder)
    assert not isinstance(blocks, str)
    units = sum(math.prod(z) * units_per_output(block) for block, z in zip(blocks, outputs, strict=True))
    return 2 * images * units < FEW_UNITS and weights < FEW_WEIGHTS


def refusal(encoder: Encoder, rule: Rule) -> str | None:
    """Why the three factors cannot train this encoder by this rule, in one line; None where they can."""
    if why := refused_rule(rule):
        return why
    if bits_of(encoder) is not None:
        return "its blocks round their activities"
    found = plan(encoder)
    return found if isinstance(found, str) else None


def refused_rule(rule: Rule) -> str | None:
    """Why a rule's update is not known to be that of equation 6, block by block; None where it is."""
    if not isinstance(rule, ScoreRule) or rule.credit != "local":
        return f"rule {rule.name!r} is no ScoreRule with local credit"
    for method in ("losses", "layer_loss", "scores", "draw"):
        if getattr(type(rule), method) is not getattr(ScoreRule, method):
            return f"rule {rule.name!r} has its own {method}"
    return None
