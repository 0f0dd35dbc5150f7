"""Alignment against layer, a line a setting, one or more panels side by side."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator

from localssl.report.style import PALETTE, finish

ACROSS = 3  # panels of a row, at most: more are too small to read on a page

Row = Sequence[object]  # panel, line, layer, mean, low, high, batches


def draw(rows: Sequence[Row], caption: str, path: Path, xlabel: str = "layer") -> Path:
    """Write the figure; bars are the rows' intervals, where they have one (from one seed there is none: "")."""
    panels = list(dict.fromkeys(str(row[0]) for row in rows))
    names = list(dict.fromkeys(str(row[1]) for row in rows))
    across = min(ACROSS, len(panels))
    down = -(-len(panels) // across)
    width = 2.2 + 3.4 * across
    columns = max(1, int(width // 2.4))
    caption = "\n".join(textwrap.wrap(caption, int(14 * width)))
    height = 2.8 * down + 0.2 * -(-len(names) // columns) + 0.15 * caption.count("\n")  # the panels keep theirs
    figure, axes = plt.subplots(down, across, figsize=(width, height), squeeze=False, sharey=True)
    places = axes.flatten().tolist()
    for place in places[len(panels) :]:
        place.set_axis_off()
    for panel, place in zip(panels, places, strict=False):
        for name, (colour, marker) in zip(names, PALETTE[: len(names)], strict=True):
            mine = [row for row in rows if row[0] == panel and row[1] == name and row[3] != ""]
            x, mean = ([float(str(row[i])) for row in mine] for i in (2, 3))
            low, high = (
                [m if row[i] == "" else float(str(row[i])) for row, m in zip(mine, mean, strict=True)] for i in (4, 5)
            )
            below = [m - a for m, a in zip(mean, low, strict=True)]
            above = [b - m for m, b in zip(mean, high, strict=True)]
            style = {"markersize": 5, "capsize": 2, "linewidth": 1.2}
            place.errorbar(x, mean, yerr=[below, above], label=name, color=colour, marker=marker, **style)
        place.axhline(0, color="0.8", linewidth=0.8, zorder=0)
        place.set(title=panel, xlabel=xlabel)
        if all(isinstance(row[2], int) for row in rows):
            place.xaxis.set_major_locator(MaxNLocator(integer=True))
    for row in axes:
        row[0].set(ylabel="cosine with end-to-end gradient")
    return finish(figure, axes[0][0], caption, path, columns)
