"""What docs/engine.md says of the cheap B: the screening's cells, and the sentence that stands beside its gains."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch

from localssl import encoders, markdown, rules
from localssl.data.specs import default_patches
from localssl.report import arithmetic
from localssl.report.benchmark_tables import Row
from localssl.report.study_tables import RESULTS as STUDIES


def cheap_b() -> str:
    """The cheap projections that were screened: accuracy, and how much of B is left at full width."""
    dense = _cell("better-rule", "clapp++both")
    files = sorted((STUDIES / "cheap-b" / "cells").glob("*.json"))
    lines = [_cheap_row("dense", dense, dense, "results/better-rule/cells/clapp++both.json")]
    for file in files:
        cell = json.loads(file.read_text(encoding="utf-8"))
        name = f"{cell['config']['rule_options']['projection']} {cell['config']['rule_options']['rank']}"
        lines.append(_cheap_row(name, cell, dense, f"results/cheap-b/cells/{file.name}"))
    other = _cell("better-rule", "both-convolutional-lateral-B")
    config = dense["config"]
    head = ["B", "accuracy, %", "points lost", "learnt, % at width 1", "held, % at width 1", "cell"]
    return (
        f"{markdown.table(head, lines)}\n\n"
        f"`{config['rule']}`, width 0.125, {config['epochs']} epochs, {config['limit_images']:,} images, seed "
        f"{config['seed']}, held-out training images. learnt: parameters of B, held: with those that stay as "
        "drawn, % of the dense ones. Another try, a lateral B that is a 3 × 3 convolution over the patches beside "
        f"a dense feedback B, has {other['accuracy']:.2f} %, {dense['accuracy'] - other['accuracy']:.2f} less than "
        "dense ([cell](results/better-rule/cells/both-convolutional-lateral-B.json))."
    )


def cheap_sentence() -> str:
    """The loss of the B that the low-rank rows have, wherever they are spoken of."""
    dense, mine = _cell("better-rule", "clapp++both"), _cell("cheap-b", "frozen-64-s0")
    config = mine["config"]
    return (
        f"The low-rank B of these rows lost {dense['accuracy'] - mine['accuracy']:.2f} points in the only screening "
        f"(`{config['rule']}`, width 0.125, {config['epochs']} epochs, one seed: [the cheap B](#the-cheap-b)). "
        "An option counts only if it loses less than 0.3; until that is resolved no goal counts as met by it."
    )


def resolved() -> bool:
    """Whether five paired seeds have said that the low-rank B with a fixed factor loses less than 0.3 points."""
    path = STUDIES / "cheap-b-final" / "final.csv"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return any(line.startswith("frozen 64,") and "loses less than" in line for line in lines)


def _cheap_row(name: str, cell: Row, dense: Row, link: str) -> list[str]:
    cost, whole = (_cost_of(options) for options in (cell["config"]["rule_options"], {}))
    shares = 100 * cost.b / whole.b, 100 * (cost.b + cost.fixed) / whole.b
    lost = "" if cell is dense else f"{dense['accuracy'] - cell['accuracy']:.2f}"
    return [name, f"{cell['accuracy']:.2f}", lost, *(f"{s:.2f}" for s in shares), f"[cell]({link})"]


def _cost_of(options: Mapping[str, Any]) -> arithmetic.Cost:
    with torch.device("meta"):
        net = encoders.vgg6()
    return arithmetic.step(net, rules.get("clapp++both", **options), (3, 32, 32), default_patches("vgg6", 32) or (), 2)


def _cell(study: str, name: str) -> dict[str, Any]:
    return json.loads((STUDIES / study / "cells" / f"{name}.json").read_text(encoding="utf-8"))
