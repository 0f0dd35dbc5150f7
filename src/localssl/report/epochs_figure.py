"""Accuracy against epochs, and by block at the end of training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from localssl.report.style import colour, finish, marker
from localssl.stats import t_interval

Row = Sequence[object]  # rule, seed, epochs, lr, method, layer, accuracy


def draw(rows: Sequence[Row], path: Path, data: str) -> Path:
    """Write the figure: linear probe on all blocks against epochs, and on each block after the last epoch."""
    rows = [row for row in rows if row[4] == "linear"]
    rules = list(dict.fromkeys(str(row[0]) for row in rows))
    ends = {rule: max(int(str(row[2])) for row in rows if row[0] == rule) for rule in rules}
    lasts = sorted({epoch for rule, epoch in ends.items() if rule != "untrained"}) or [0]
    when = (
        f"After {lasts[-1]} epochs" if len(lasts) == 1 else f"After each rule's last epoch, {lasts[0]} or {lasts[-1]}"
    )
    seeds = len({row[1] for row in rows})
    figure, (over_time, by_block) = plt.subplots(1, 2, figsize=(8.5, 3.4))
    for rule in rules:
        mine = [row for row in rows if row[0] == rule]
        epochs = sorted({int(str(row[2])) for row in mine})
        curve = [_values(mine, epoch, "all") for epoch in epochs]
        style = {"color": colour(rule), "marker": marker(rule), "markersize": 5, "capsize": 2, "linewidth": 1.2}
        if rule == "untrained":
            over_time.axhline(float(np.mean(curve[0])), color=colour(rule), linestyle="--", label=rule)
        else:
            over_time.errorbar(epochs, [np.mean(v) for v in curve], yerr=_half(curve), label=rule, **style)
        layers = list(dict.fromkeys(str(row[5]) for row in mine))
        final = [_values(mine, epochs[-1], layer) for layer in layers]
        line = "--" if rule == "untrained" else "-"
        by_block.errorbar(range(len(layers)), [np.mean(v) for v in final], yerr=_half(final), linestyle=line, **style)
        by_block.set_xticks(range(len(layers)), layers)
    over_time.set_xticks(sorted({int(str(row[2])) for row in rows}))
    over_time.set(title="a  All blocks together", xlabel="epochs", ylabel="test accuracy (%)")
    by_block.set(title=f"b  {when}", xlabel="block", ylabel="test accuracy (%)")
    n = f"mean of {seeds} seeds, bars: 95 % t interval over seeds" if seeds > 1 else "one seed, no interval"
    caption = f"{data}, width 0.25, linear probe on the frozen encoder (fast protocol, 20,000 labels); {n}."
    return finish(figure, over_time, caption, path)


def _values(rows: Sequence[Row], epochs: int, layer: str) -> list[float]:
    return [float(str(row[6])) for row in rows if int(str(row[2])) == epochs and row[5] == layer]


def _half(points: Sequence[list[float]]) -> list[float]:
    return [0.0 if len(v) < 2 else t_interval(v)[2] - float(np.mean(v)) for v in points]
