"""Time and memory of a training step against one thing that grows, on logarithmic axes, a line a rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator

from localssl.report.style import colour, finish, marker

SHOWN = {"seconds": "seconds a step", "activity": "activity and temporaries, MiB", "total": "memory in all, MiB"}


def draw(axis: str, rows: Sequence[Mapping[str, Any]], exponents: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Write the figure of one axis: a panel a quantity, the exponents of its upper end in the legend's order above it.

    Args:
        axis: which of the rows and exponents to show.
        rows: with axis, rule, x and the three quantities.
        exponents: with axis, rule, quantity, exponent and arithmetic (by name).
        path: of the PNG.
    """
    figure, axes = plt.subplots(1, len(SHOWN), figsize=(9, 3.4), squeeze=False)
    mine = [r for r in rows if r["axis"] == axis]
    for place, (quantity, label) in zip(axes[0], SHOWN.items(), strict=True):
        for rule in dict.fromkeys(r["rule"] for r in mine):
            line = sorted((r["x"], r[quantity]) for r in mine if r["rule"] == rule)
            x, y = zip(*line, strict=True)
            place.plot(x, y, color=colour(rule), marker=marker(rule), markersize=4, linewidth=0.9, label=rule)
            place.set_xticks(x, [f"{v:g}" for v in x])
        found = [e for e in exponents if (e["axis"], e["quantity"]) == (axis, quantity)]
        measured = " ".join(f"{e['exponent']:.2f}" for e in found)
        predicted = [
            f"{name} " + " ".join(f"{e['arithmetic'][name]:.2f}" for e in found) for name in found[0]["arithmetic"]
        ]
        place.set(xscale="log", yscale="log", xlabel=axis, ylabel=label)
        place.set_xticks([r["x"] for r in mine], [f"{r['x']:g}" for r in mine], minor=False)
        place.minorticks_off()
        place.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))  # a decade alone may have no number
        place.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        place.set_title("\n".join([f"exponents {measured}", *(f"by {p}" for p in predicted)]), fontsize=7)
    return finish(figure, axes[0][0], f"A training step as {axis} grows; exponents in the legend's order", path)
