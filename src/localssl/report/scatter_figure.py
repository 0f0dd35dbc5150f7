"""Accuracy against alignment, a point a checkpoint, a line a run (a point, where it has one checkpoint)."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt

from localssl.report.style import COLOURS, MARKERS, PALETTE, finish

Row = Sequence[object]  # rule, seed, epochs, accuracy, cosines of the blocks, their mean


def draw(rows: Sequence[Row], path: Path, caption: str) -> Path:
    """Write the figure: one panel a block below the last, and one for the mean."""
    columns = len(rows[0]) - 4
    figure, axes = plt.subplots(2, -(-columns // 2), figsize=(8.5, 5.2), squeeze=False, sharey=True)
    places = axes.flatten().tolist()
    others = iter(PALETTE * len(rows))
    looks = {
        name: (COLOURS[name], MARKERS[name]) if name in COLOURS else next(others)
        for name in dict.fromkeys(str(row[0]) for row in rows)
    }
    for column, place in enumerate(places[:columns]):
        for run in dict.fromkeys((row[0], row[1]) for row in rows):
            name, mine = str(run[0]), [row for row in rows if (row[0], row[1]) == run]
            x, y = ([float(str(row[i])) for row in mine] for i in (4 + column, 3))
            label = name if run[1] == 0 else None
            place.plot(x, y, color=looks[name][0], marker=looks[name][1], markersize=4, linewidth=0.7, label=label)
            if mine[0][2] == 0:
                place.plot(x[:1], y[:1], color="white", marker=looks[name][1], markersize=2, linestyle="")
        place.set(title=f"block {column + 1}" if column < columns - 1 else "mean of them", xlabel="cosine")
    for place in places[columns:]:
        place.set_axis_off()
    for row in axes:
        row[0].set(ylabel="accuracy, all blocks (%)")
    before = "; white: before training" if any(row[2] == 0 for row in rows) else ""
    caption = "\n".join(textwrap.wrap(caption + before, 125))
    return finish(figure, places[0], caption, path, columns=4)
