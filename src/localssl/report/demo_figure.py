"""The demo's picture: accuracy by block, accuracy by label budget, alignment by block."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from localssl.report.style import colour, finish, marker
from localssl.stats import t_interval


def draw(records: Sequence[dict[str, Any]], path: Path) -> Path:
    """Write the figure of the demo's records (one a rule and seed); points are means over seeds."""
    rules = list(dict.fromkeys(record["rule"] for record in records))
    seeds = sorted({record["seed"] for record in records})
    figure, (by_block, by_labels, align) = plt.subplots(1, 3, figsize=(10.5, 3.4))
    for name in ("untrained", *rules):
        mine = [r for r in records if r["rule"] == (rules[0] if name == "untrained" else name)]
        _by_block(by_block, name, mine)
        _by_labels(by_labels, name, mine)
        if name != "untrained":
            _alignment(align, name, mine)
    by_block.set(title="a  Linear probe, 10 labels per class", xlabel="block", ylabel="test accuracy (%)")
    by_labels.set(title="b  All blocks together", xlabel="labels per class", ylabel="test accuracy (%)")
    align.set(
        title="c  Weight gradient against backpropagation",
        xlabel="block",
        ylabel="cosine similarity",
    )
    align.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    align.xaxis.set_major_locator(MaxNLocator(integer=True))
    several = len(seeds) > 1
    n = f"mean of {len(seeds)} seeds, bars: 95 % interval over seeds" if several else "one seed"
    over_them = "" if several else ", bars: 95 % interval over them"
    caption = (
        f"Digits, 1,297 unlabelled training images, 500 test images; {n}. "
        f"a, b: frozen encoder, mean over label draws{over_them}.\n"
        f"c: against backpropagation of the rule's own last-layer loss; 7 batches of test images{over_them}."
    )
    return finish(figure, by_block, caption, path)


def _bars(axes: Axes, x: Sequence[float], rows: Sequence[Sequence[Sequence[float]]], name: str) -> None:
    """``rows[seed][point]`` is (value, low, high): intervals over seeds if there are several, else the given ones."""
    values = np.array([[point[0] for point in seed] for seed in rows])
    if len(rows) > 1:
        low, high = np.array([t_interval(list(column))[1:] for column in values.T]).T
    else:
        low, high = np.array([[point[1], point[2]] for point in rows[0]], dtype=float).T
    mean = values.mean(0)
    low, high = np.where(np.isnan(low), mean, low), np.where(np.isnan(high), mean, high)
    axes.errorbar(
        x,
        mean,
        yerr=[mean - low, high - mean],
        label=name,
        color=colour(name),
        marker=marker(name),
        markersize=5,
        capsize=2,
        linewidth=1.2,
        linestyle="--" if name == "untrained" else "-",
    )


def _number(value: Any) -> float:
    return float("nan") if value in ("", None) else float(value)


def _probe_points(record: dict[str, Any], name: str, keep: Any) -> list[tuple[float, float, float]]:
    rows = [row for row in record["probe"] if row[0] == name and row[2] == "linear" and keep(row)]
    return [(float(row[4]), _number(row[5]), _number(row[6])) for row in rows]


def _by_block(axes: Axes, name: str, mine: Sequence[dict[str, Any]]) -> None:
    rows = [_probe_points(r, name, lambda row: row[3] == "10") for r in mine]
    layers = [row[1] for row in mine[0]["probe"] if row[0] == name and row[2] == "linear" and row[3] == "10"]
    _bars(axes, range(1, len(layers) + 1), rows, name)
    axes.set_xticks(range(1, len(layers) + 1), layers)


def _by_labels(axes: Axes, name: str, mine: Sequence[dict[str, Any]]) -> None:
    rows = [_probe_points(r, name, lambda row: row[1] == "all") for r in mine]
    budgets = [row[3] for row in mine[0]["probe"] if row[0] == name and row[2] == "linear" and row[1] == "all"]
    _bars(axes, range(len(budgets)), rows, name)
    axes.set_xticks(range(len(budgets)), budgets)


def _alignment(axes: Axes, name: str, mine: Sequence[dict[str, Any]]) -> None:
    rows = [
        [(_number(r[4]), _number(r[5]), _number(r[6])) for r in record["align"] if r[3] == "cosine"] for record in mine
    ]
    blocks = [row[2] for row in mine[0]["align"] if row[3] == "cosine"]
    _bars(axes, blocks, rows, name)
