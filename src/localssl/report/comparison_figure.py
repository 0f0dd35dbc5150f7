"""The comparison's picture: accuracy of every rule with its interval, beside it alignment block by block."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from localssl.report.comparison import Line
from localssl.report.style import readable_on, write


def draw(lines: Sequence[Line], budget: str, caption: str, path: Path) -> Path:
    """Write the figure; rules from top to bottom as in the table, those that failed without a point."""
    shown = list(lines)
    places = range(len(shown))
    blocks = list(max((line.align for line in shown), key=len))
    names = ["\n".join(textwrap.wrap(line.label, 44, break_on_hyphens=False)) for line in shown]
    longest = max(len(part) for name in names for part in name.split("\n"))
    wide = max(1.2, 0.4 * len(blocks))
    width = 0.4 + 0.07 * longest + 3.4 + wide  # inches: names, accuracies, cosines
    caption = "\n".join(textwrap.wrap(caption, int(14 * width)))
    size = (width, 1.1 + 0.28 * len(shown) + 0.15 * caption.count("\n"))
    ratios = {"width_ratios": [3.4, wide]}
    figure, (left, right) = plt.subplots(1, 2, figsize=size, sharey=True, gridspec_kw=ratios)
    for place, line in zip(places, shown, strict=True):
        if line.failed or budget not in line.accuracy:
            left.text(0.5, place, "failed", transform=left.get_yaxis_transform(), va="center", ha="center", color="0.4")
            continue
        mean, low, high = line.accuracy[budget]
        error = None if math.isnan(low) else [[mean - low], [high - mean]]
        untrained = line.parameters_rule is None or line.label.startswith("untrained")
        colour, marker = ("#7f7f7f", "x") if untrained else ("#0072B2", "o")
        left.errorbar([mean], [place], xerr=error, color=colour, marker=marker, markersize=5, capsize=2)
        if line.label == "untrained":
            left.axvline(mean, color="0.8", linewidth=0.8, linestyle="--", zorder=0)
    left.set_yticks(places, names, fontsize=7 if longest > 30 else 8)
    left.set_ylim(len(shown) - 0.5, -0.5)
    of = "all labels" if budget == "all" else f"{budget} label{'' if budget == '1' else 's'} per class"
    left.set(title=f"a  All blocks, {of}", xlabel="test accuracy (%)")
    low, high = left.get_xlim()  # an interval of two seeds goes on where no accuracy can be
    low = max(low, -2)
    left.set_xlim(low, min(high, 100 + 0.02 * (100 - low)))
    left.grid(axis="y", color="0.93", linewidth=0.6)
    left.set_axisbelow(True)
    if blocks:
        grid = np.array([[line.align.get(b, (math.nan,))[0] for b in blocks] for line in shown], dtype=float)
        cells = right.imshow(grid, cmap="PuOr_r", vmin=-1, vmax=1, aspect="auto")
        for (row, column), value in np.ndenumerate(grid):
            if not math.isnan(value):
                colour = readable_on(cells.to_rgba(value))
                text = f"{round(value, 2) + 0.0:.2f}".replace("-", "−")
                right.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
        right.set_xticks(range(len(blocks)), blocks)
        right.set(title="b  Cosine with BP", xlabel="block")
        right.tick_params(left=False)
        for side in ("left", "bottom"):
            right.spines[side].set_visible(False)
    else:
        right.set_axis_off()
    return write(figure, caption, path)
