"""Accuracy against alignment, a point a checkpoint, a line a run."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt

from localssl.report.style import colour, finish, marker

Row = Sequence[object]  # rule, seed, epochs, accuracy, cosines of the blocks, their mean


def draw(rows: Sequence[Row], path: Path, caption: str) -> Path:
    """Write the figure: one panel a block below the last, and one for the mean."""
    columns = len(rows[0]) - 4
    figure, axes = plt.subplots(2, -(-columns // 2), figsize=(8.5, 5.2), squeeze=False, sharey=True)
    places = axes.flatten().tolist()
    for column, place in enumerate(places[:columns]):
        for run in dict.fromkeys((row[0], row[1]) for row in rows):
            mine = [row for row in rows if (row[0], row[1]) == run]
            x, y = ([float(str(row[i])) for row in mine] for i in (4 + column, 3))
            name = str(run[0])
            label = name if run[1] == 0 else None
            place.plot(x, y, color=colour(name), marker=marker(name), markersize=4, linewidth=0.7, label=label)
            place.plot(x[:1], y[:1], color="white", marker=marker(name), markersize=2, linestyle="")
        place.set(title=f"block {column + 1}" if column < columns - 1 else "mean of them", xlabel="cosine")
    for place in places[columns:]:
        place.set_axis_off()
    for row in axes:
        row[0].set(ylabel="test accuracy, all blocks (%)")
    caption = "\n".join(textwrap.wrap(f"{caption}; white: before training", 125))
    return finish(figure, places[0], caption, path)
