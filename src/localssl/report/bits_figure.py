"""Accuracy and alignment against bits, or against what is not perfect about a device, a line a rule."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from localssl.report.style import COLOURS, MARKERS, PALETTE, finish

SHOWN = {"accuracy": ("test accuracy (%)", 0, 100), "cosine": ("cosine with BP", -1, 1)}  # what a value can be
AXES = {
    "bits": "bits",
    "weight_noise": "noise of reading, share of the largest weight",
    "dead": "share of dead synapses",
    "mismatch": "spread of the synapses' changes",
}


def draw(rows: Sequence[Mapping[str, Any]], axis: str, caption: str, path: Path) -> Path:
    """Write the figure.

    Args:
        rows: with rule, bits ("float" or a number), the axis, quantity, mean, low and high.
        axis: "bits", where floats stand at the right end; or a flaw, a line a rule and number of bits.
        caption: what was trained on what.
        path: of the PNG.
    """
    figure, places = plt.subplots(1, len(SHOWN), figsize=(7.4, 3.2), squeeze=False)
    clean = [r for r in rows if axis != "bits" or not any(r[name] for name in AXES if name != "bits")]
    whole = sorted({int(r["bits"]) for r in clean if r["bits"] != "float"})
    lines = dict.fromkeys((r["rule"], None if axis == "bits" else r["bits"]) for r in clean)
    lines = [line for line in lines if line[1] != "float"]
    rules = list(dict.fromkeys(rule for rule, _ in lines))
    cut = False
    for place, (quantity, (label, least, most)) in zip(places[0], SHOWN.items(), strict=True):
        for number, (rule, bits) in enumerate(lines):
            mine = [r for r in clean if (r["rule"], r["quantity"]) == (rule, quantity)]
            if bits is not None:
                mine = [r for r in mine if r["bits"] == bits]
            points = sorted((_position(r, axis, whole), r["mean"], r["low"], r["high"]) for r in mine)
            cut |= any(low < least or high > most for _, _, low, high in points)
            colour, marker = _look(rule, rules.index(rule))
            style = ("-", "--", ":", "-.")[number % 4 if bits is not None else 0]
            name = rule if bits is None else f"{rule}, {bits} bits"
            _line(place, points, name, color=colour, marker=marker, linestyle=style)
        low, high = place.get_ylim()  # an interval of few seeds goes on where no value can be
        place.set(xlabel=AXES[axis], ylabel=label, ylim=(max(low, least), min(high, most + 0.02 * (most - least))))
        if axis == "bits":
            place.set_xticks(range(len(whole) + 1), [*map(str, whole), "float"])
    caption = f"{caption.rstrip('.')}; intervals are cut where no value can be." if cut else caption
    return finish(figure, places[0][0], "\n".join(textwrap.wrap(caption, 110)), path, columns=4)


def _position(row: Mapping[str, Any], axis: str, whole: Sequence[int]) -> float:
    if axis != "bits":
        return float(row[axis])
    return float(len(whole) if row["bits"] == "float" else whole.index(int(row["bits"])))


def _look(rule: str, number: int) -> tuple[str, str]:
    if rule in COLOURS:
        return COLOURS[rule], MARKERS[rule]
    free = [pair for pair in PALETTE if pair[0] not in COLOURS.values() or pair[0] in ("#009E73", "#CC79A7")]
    return free[number % len(free)]


def _line(place: Axes, points: Sequence[tuple[float, float, float, float]], name: str, **style: Any) -> None:
    if not points:
        return
    x, mean, low, high = zip(*points, strict=True)
    error = None
    if not any(math.isnan(v) for v in low):
        error = [[m - v for m, v in zip(mean, low, strict=True)], [v - m for m, v in zip(mean, high, strict=True)]]
    place.errorbar(x, mean, yerr=error, label=name, markersize=4, linewidth=0.9, capsize=2, elinewidth=0.7, **style)
