"""Which engine carries out a rule's credit assignment: autograd, or the three factors alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from localssl import credit, readout
from localssl.blocks import black_boxes
from localssl.encoders import Encoder
from localssl.engine.blocks import plan, pooled
from localssl.engine.integer import Integer, bits_of, refused, refused_encoder
from localssl.engine.synapses import PERFECT, Device
from localssl.engine.three_factor import ThreeFactor
from localssl.errors import UsageError, unknown
from localssl.rules.base import Rule, ScoreRule

ENGINES = ("auto", "autograd", "hebbian", "hebbian-lean", "integer")
FEW_UNITS = 2**23  # of a step's two views: below, calls cost the engine more than memory traffic saves it
FEW_WEIGHTS = 2**25  # of blocks and B, of which the engine has no gradient that is dense


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


def slower(encoder: Encoder, rule: Rule, shape: Sequence[int], patches: readout.Patches, images: int) -> bool:
    """Whether the three factors can train this and take longer than autograd, by ``benchmarks/engines.py``.

    Of steps with few weights: the small ones, and those on sequences. It goes by size, not by a clock: one command is
    to give one result on every machine. Encoders with black boxes are asked for nothing here, and never slower.

    Args:
        encoder, rule: on the meta device, or a real one.
        shape: of one image (C, H, W).
        patches: of the readouts, as ``Learner`` takes them.
        images: in a batch.
    """
    blocks = plan(encoder)
    if isinstance(blocks, str) or refused_rule(rule) or black_boxes(encoder.blocks):
        return False
    outputs = encoder.output_shapes(rule.inputs().shape(tuple(shape)))
    units = sum(math.prod(z) * pooled(block) for block, z in zip(blocks, outputs, strict=True))
    if 2 * images * units >= FEW_UNITS and not any(isinstance(block.layer, nn.Conv1d) for block in blocks):
        return False
    sides = rule.patches(readout.per_block(patches, len(blocks)))
    lengths = [readout.dim(z, side) for z, side in zip(outputs, sides, strict=True)]
    with torch.device("meta"):
        parts = rule.build(readout.Dims(lengths, [z[0] for z in outputs]))
    modules = [encoder, *(module for of_layers in parts.values() for module in of_layers)]
    return sum(p.numel() for module in modules for p in module.parameters()) < FEW_WEIGHTS


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
