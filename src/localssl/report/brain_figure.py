"""Similarity of a block with its end-to-end twin's against gradient alignment: a point a rule, block and seed."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt

from localssl.report.style import colour, finish, marker


class Point(NamedTuple):
    """One block of one run."""

    measure: str
    rule: str
    block: int
    cosine: float
    similarity: float


def draw(points: Sequence[Point], path: Path, caption: str) -> Path:
    """Write the figure: one panel a measure; the number beside a point is its block."""
    measures = list(dict.fromkeys(p.measure for p in points))
    figure, axes = plt.subplots(1, len(measures), figsize=(4.3 * len(measures), 3.6), squeeze=False)
    for place, measure in zip(axes[0].tolist(), measures, strict=True):
        for rule in dict.fromkeys(p.rule for p in points):
            mine = [p for p in points if (p.rule, p.measure) == (rule, measure)]
            x, y = [p.cosine for p in mine], [p.similarity for p in mine]
            place.plot(x, y, color=colour(rule), marker=marker(rule), markersize=4, linestyle="", label=rule)
            for p in mine:
                offset = {"xytext": (3, 2), "textcoords": "offset points"}
                place.annotate(str(p.block), (p.cosine, p.similarity), fontsize=6, color="0.4", **offset)
        place.set(title=measure.upper(), xlabel="cosine of gradients")
    axes[0][0].set(ylabel="similarity with the twin's block")
    return finish(figure, axes[0][0], "\n".join(textwrap.wrap(caption, 125)), path)
