"""Steps of an ablation from top to bottom, published accuracies beside ours."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt

from localssl.report.comparison import Interval
from localssl.report.style import finish


@dataclass(frozen=True)
class Bar:
    """One step; what is None is not drawn."""

    name: str
    ours: Interval | None
    published: float | None
    half: float | None
    guided: bool


def draw(bars: Sequence[Bar], caption: str, path: Path) -> Path:
    """Write the figure; orange: the theory's changes, as in the paper."""
    caption = "\n".join(textwrap.wrap(caption, 105))
    figure, axes = plt.subplots(figsize=(7.0, 1.5 + 0.3 * len(bars) + 0.15 * caption.count("\n")))
    named: set[str] = set()

    def once(name: str) -> str | None:
        new = name not in named
        named.add(name)
        return name if new else None

    for place, bar in enumerate(bars):
        if bar.ours is not None:
            mean, low, high = bar.ours
            error = None if math.isnan(low) else [[mean - low], [high - mean]]
            colour = "#E69F00" if bar.guided else "#0072B2"
            label = once("ours, the theory's changes" if bar.guided else "ours")
            axes.errorbar([mean], [place], xerr=error, color=colour, fmt="o", markersize=6, capsize=2, label=label)
        if bar.published is not None:
            error = None if bar.half is None else [bar.half]
            style = {"markerfacecolor": "none", "markersize": 7, "capsize": 2}
            axes.errorbar([bar.published], [place], xerr=error, color="0.3", fmt="D", label=once("published"), **style)
    axes.set_yticks(range(len(bars)), [bar.name for bar in bars])
    axes.set_ylim(len(bars) - 0.5, -0.5)
    axes.grid(axis="y", color="0.93", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set(xlabel="test accuracy (%)")
    return finish(figure, axes, caption, path)
