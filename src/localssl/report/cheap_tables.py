"""What docs/engine.md says of the cheap B: the screening's cells, the final, and what stands beside its gains."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from typing import Any

import torch

from localssl import encoders, markdown, rules
from localssl.data.specs import default_patches
from localssl.report import arithmetic
from localssl.report.benchmark_tables import Row
from localssl.report.study_tables import RESULTS as STUDIES

SHORT = "An option counts only if it loses less than 0.3: where that is not resolved no goal counts as met by it."
OURS = {"low-rank-frozen": "frozen 64", "low-rank": "low-rank 64"}  # of the rows of step.json and memory.json
NAMES = {  # of a rule's option, as the screening and the final call them
    "low-rank": "low-rank",
    "low-rank-frozen": "frozen",
    "patch-local": "patch-local, low-rank",
    "patch-local-frozen": "patch-local, frozen",
    "patch-shared": "patch-shared, low-rank",
}


def cheap_b() -> str:
    """The cheap projections that were screened: accuracy, and how much of B is left at full width."""
    dense = _cell("better-rule", "clapp++both")
    files = sorted((STUDIES / "cheap-b" / "cells").glob("*.json"))
    lines = [_cheap_row("dense", dense, dense, "results/better-rule/cells/clapp++both.json", "")]
    for file in files:
        cell = json.loads(file.read_text(encoding="utf-8"))
        name = f"{NAMES[cell['config']['rule_options']['projection']]} {cell['config']['rule_options']['rank']}"
        first = dense["accuracy"] - _cell("cheap-b/first-draw", file.stem)["accuracy"]
        lines.append(_cheap_row(name, cell, dense, f"results/cheap-b/cells/{file.name}", f"{first:.2f}"))
    other = _cell("better-rule", "both-convolutional-lateral-B")
    config = dense["config"]
    head = ["B", "accuracy, %", "points lost", "as first drawn", "learnt, % at width 1", "held, % at width 1", "cell"]
    return (
        f"{markdown.table(head, lines)}\n\n"
        f"`{config['rule']}`, width 0.125, {config['epochs']} epochs, {config['limit_images']:,} images, seed "
        f"{config['seed']}, held-out training images. as first drawn: points lost with an inner factor that keeps "
        "the length of c ([cells](results/cheap-b/first-draw)). learnt: parameters of B, held: with those that stay as "
        "drawn, % of the dense ones. Another try, a lateral B that is a 3 × 3 convolution over the patches beside "
        f"a dense feedback B, has {other['accuracy']:.2f} %, {dense['accuracy'] - other['accuracy']:.2f} less than "
        "dense ([cell](results/better-rule/cells/both-convolutional-lateral-B.json))."
    )


def cheap_b_final() -> str:
    """The two that the screening named, five seeds at width 0.25, and the dense B that they are paired with."""
    return _compared("cheap-b-final", "final.csv")


def factored_moment() -> str:
    """Adam with the second moment of B factored against Adam."""
    return _compared("factored-moment", "factored-moment.csv")


def _compared(study: str, file: str) -> str:
    rows = _rows(study, file)
    if not rows:
        return f"Not measured yet: `localssl reproduce {study}`."
    head = [
        "B",
        "accuracy, %",
        "95 %",
        "points lost",
        "95 %",
        "",
        "seeds",
        "learnt, % at width 1",
        "held, % at width 1",
    ]
    lines: list[list[str]] = []
    for row in rows:
        itself = row["projection"] == "dense"
        lost = ["", ""] if itself else [row["loss"], f"{row['loss_low']} to {row['loss_high']}"]
        own = [
            row["projection"],
            row["accuracy"],
            f"{row['low']} to {row['high']}",
            *lost,
            row["verdict"],
            row["seeds"],
        ]
        lines.append([*own, *(f"{float(row[k]):.2f}" for k in ("learnt_at_width_1", "held_at_width_1"))])
    return (
        f"{markdown.table(head, lines)}\n\n`localssl reproduce {study} --seeds {rows[0]['seeds']}` "
        f"([{file}](results/{study}/{file})); `clapp++both`, width 0.25, test images; intervals are t's over seeds, "
        "losses are paired by seed."
    )


def cheap_sentence() -> str:
    """What the low-rank B of the benchmarks' rows lose, wherever they are spoken of."""
    by_name = {row["projection"]: row for row in _final()}
    said = [
        f"{row['loss']}, {row['loss_low']} to {row['loss_high']}, with `{kind}` ({row['verdict']})"
        for kind, name in OURS.items()
        if (row := by_name.get(name))
    ]
    if said:
        seeds = next(iter(by_name.values()))["seeds"]
        text = (
            f"Points of accuracy that a low-rank B of rank 64 loses: {'; '.join(said)} (`clapp++both`, width 0.25, "
            f"{seeds} paired seeds: [the cheap B](#the-cheap-b))."
        )
        return text if all(resolved(kind) for kind in OURS) else f"{text} {SHORT}"
    dense, mine = _cell("better-rule", "clapp++both"), _cell("cheap-b", "frozen-64-s0")
    config = mine["config"]
    return (
        f"The low-rank B of these rows lost {dense['accuracy'] - mine['accuracy']:.2f} points in the only screening "
        f"(`{config['rule']}`, width 0.125, {config['epochs']} epochs, one seed: [the cheap B](#the-cheap-b)). {SHORT}"
    )


def resolved(kind: str) -> bool:
    """Whether five paired seeds have said that the B of rank 64 of that kind loses less than 0.3 points."""
    name = OURS[kind]
    return any(row["projection"] == name and row["verdict"].startswith("loses less than") for row in _final())


def _final() -> list[dict[str, str]]:
    """The rows of cheap-b-final; none where it was not run."""
    return _rows("cheap-b-final", "final.csv")


def _rows(study: str, file: str) -> list[dict[str, str]]:
    path = STUDIES / study / file
    if not path.is_file():
        return []
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return list(csv.DictReader(lines))


def _cheap_row(name: str, cell: Row, dense: Row, link: str, first: str) -> list[str]:
    cost, whole = (_cost_of(options) for options in (cell["config"]["rule_options"], {}))
    shares = 100 * cost.b / whole.b, 100 * (cost.b + cost.fixed) / whole.b
    lost = "" if cell is dense else f"{dense['accuracy'] - cell['accuracy']:.2f}"
    return [name, f"{cell['accuracy']:.2f}", lost, first, *(f"{s:.2f}" for s in shares), f"[cell]({link})"]


def _cost_of(options: Mapping[str, Any]) -> arithmetic.Cost:
    with torch.device("meta"):
        net = encoders.vgg6()
    return arithmetic.step(net, rules.get("clapp++both", **options), (3, 32, 32), default_patches("vgg6", 32) or (), 2)


def _cell(study: str, name: str) -> dict[str, Any]:
    return json.loads((STUDIES / study / "cells" / f"{name}.json").read_text(encoding="utf-8"))
