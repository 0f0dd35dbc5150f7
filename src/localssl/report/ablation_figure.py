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

Published = tuple[float, float | None]  # accuracy, half of its interval

# Hollow, as neither is ours: label, style, and by how much of a row it stands below the row's middle.
PAPERS = (
    ("published", {"fmt": "D", "color": "0.3", "markersize": 7}, 0.0),
    ("published, STL-10 (other data)", {"fmt": "s", "color": "0.6", "markersize": 5}, 0.3),
)


@dataclass(frozen=True)
class Bar:
    """One step; what is None is not drawn. ``elsewhere``: published on STL-10, where that is other data than ours."""

    name: str
    ours: Interval | None
    published: Published | None
    elsewhere: Published | None
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
        for number, (label, style, below) in zip((bar.published, bar.elsewhere), PAPERS, strict=True):
            if number is not None:
                accuracy, half = number
                error, label = None if half is None else [half], once(label)
                style = {**style, "markerfacecolor": "none", "capsize": 2}
                axes.errorbar([accuracy], [place + below], xerr=error, label=label, **style)
    axes.set_yticks(range(len(bars)), [bar.name for bar in bars])
    axes.set_ylim(len(bars) - 0.5, -0.5)
    axes.grid(axis="y", color="0.93", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set(xlabel="test accuracy (%)")
    return finish(figure, axes, caption, path)
