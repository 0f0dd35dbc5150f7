"""One look for all figures: colours that colour-blind readers can tell apart (Okabe & Ito 2008), one marker a rule."""

from __future__ import annotations

import os
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from localssl.system.files import write_atomic

if "MPLBACKEND" not in os.environ:  # a notebook's stays, or its user's pictures would not be shown
    mpl.use("Agg")

COLOURS = {
    "untrained": "#7f7f7f",
    "clapp": "#E69F00",
    "clapp++": "#0072B2",
    "clapp++dfb": "#D55E00",
    "clapp++both": "#CC79A7",
    "bp-clapp++": "#000000",
    "bp-infonce": "#009E73",
}
MARKERS = {
    "untrained": "x",
    "clapp": "v",
    "clapp++": "o",
    "clapp++dfb": "s",
    "clapp++both": "D",
    "bp-clapp++": "^",
    "bp-infonce": "P",
}

PALETTE = (  # for lines that are no rules
    ("#009E73", "o"),
    ("#7f7f7f", "x"),
    ("#0072B2", "s"),
    ("#E69F00", "v"),
    ("#D55E00", "D"),
    ("#CC79A7", "^"),
    ("#000000", "P"),
    ("#56B4E9", "*"),
)

mpl.rcParams.update(
    {
        "figure.dpi": 150,
        "savefig.bbox": "tight",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 9,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "legend.frameon": False,
        "figure.constrained_layout.use": True,
    }
)


def colour(rule: str) -> str:
    """The rule's colour; grey for a rule without one."""
    return COLOURS.get(rule, "#56B4E9")


def marker(rule: str) -> str:
    """The rule's marker."""
    return MARKERS.get(rule, "*")


def readable_on(background: tuple[float, float, float, float]) -> str:
    """White where it stands out from a colour (red, green, blue, alpha; 0 to 1) by 4.5 to 1, else black, which does."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in background[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "white" if 1.05 / (luminance + 0.05) >= 4.5 else "black"


def finish(figure: Figure, legend_of: Axes, caption: str, path: Path, columns: int = 8) -> Path:
    """One legend below, the caption that says what is shown above; written as PNG to ``path``, which is returned."""
    handles, labels = legend_of.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), columns))
    return write(figure, caption, path)


def write(figure: Figure, caption: str, path: Path) -> Path:
    """As ``finish``, for a figure without a legend."""
    figure.suptitle(caption, fontsize=8, x=0.01, ha="left")
    write_atomic(path, lambda temporary: figure.savefig(temporary, format="png"))
    plt.close(figure)
    return path
