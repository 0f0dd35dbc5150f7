"""Beyond the paper: a page on which a reader moves depth, width, λ and f and sees the alignment of every layer."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from localssl.encoders import Encoder
from localssl.experiments.cells import Settings
from localssl.experiments.layers import Line, cosines, crops
from localssl.references import Last, Own, Reference
from localssl.report import charts, page
from localssl.stats import t_interval
from localssl.theory import networks
from localssl.theory.gradients import Setting

AXES: dict[str, tuple[Any, ...]] = {
    "layers": (2, 3, 4, 6, 8),
    "width ratio": (1.0, 0.8, 0.65, 0.5),
    "λ": (0.0001, 0.001, 0.01, 0.1, 1.0, 10.0),
    "f": ("softplus", "hinge", "linear"),
    "weights": ("orthonormal", "default", "orthonormal, ReLU"),
}
START = {"layers": "6", "width ratio": "1", "λ": "0.01", "f": "softplus", "weights": "orthonormal"}
FIRST, BATCHES = 64, 4
REFERENCES: dict[str, Reference] = {"layerwise": Own(), "direct feedback": Last()}


def run(settings: Settings) -> None:
    """One page, explorer.html: alignment by layer on a grid of networks and losses (a quarter of an hour)."""
    torch.set_num_threads(1)  # the matrices are small: threads would wait for each other
    batches, data = crops(settings, 14, images=32 * BATCHES)
    lines: list[charts.Row] = []
    for point in itertools.product(*AXES.values()):
        for name, reference in REFERENCES.items():
            found = _alignment(point, reference, batches)
            y, low, high = (list(values) for values in zip(*found, strict=True))
            lines.append({"at": [_said(value) for value in point], "of": name, "y": y, "low": low, "high": high})
        if len(lines) % 200 == 0:
            print(f"{len(lines)} lines", flush=True)
    settings.out.mkdir(parents=True, exist_ok=True)
    _write(settings.out / "explorer.html", lines, data)
    print(f"written: {settings.out / 'explorer.html'} ({len(lines):,} lines)")


def _write(path: Path, lines: Sequence[charts.Row], data: str) -> None:
    axes = {name: [_said(value) for value in values] for name, values in AXES.items()}
    start = {name: START[name] if START[name] in values else values[0] for name, values in axes.items()}
    title = "How close is layerwise learning to backpropagation?"
    lead = (
        "Cosine of the layerwise gradient with the end-to-end gradient, layer by layer, every B optimal, type 2. "
        "Layerwise: each layer is its own reference (Theorem 3.1). Direct feedback: the last layer is the reference of "
        "all (Theorem 3.3)."
    )
    caption = (
        f"{data}, 14 × 14 crops; layer 1 has {FIRST} units, each further layer the last one's times the width ratio. "
        f"Mean and 95 % t interval over {BATCHES} batches of 32 images, each with its own draw of the weights, drawn "
        "where it lies between −0.2 and 1; the means stand above. None: all gradients were zero. With the hinge, few "
        "units and many samples, many sets of slopes belong to the one optimal B, and the loss has no gradient there; "
        "what is drawn is the subgradient that "
        f"the solver selects, one of several. {len(lines):,} lines, computed by localssl reproduce theory-explorer."
    )
    first = [line for line in lines if line["at"] == list(start.values())]
    says = "; ".join(
        f"{line['of']} {', '.join('none' if value is None else f'{value:.2f}' for value in line['y'])}"
        for line in first
    )
    spec = charts.explorer(lines, axes, start, "layer", "cosine")
    chart = page.Chart("Choose a network and a loss", spec, f"Cosines by layer at first: {says}.", caption)
    page.write(path, title, lead, [page.Section("explorer", "Explorer", [chart])])


def _said(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _alignment(
    point: tuple[Any, ...], reference: Reference, batches: list[tuple[Tensor, Tensor]]
) -> list[list[float | None]]:
    """[mean, low, high] of every layer; None where all gradients were zero."""
    depth, ratio, lam, f, weights = point
    widths = [max(1, round(FIRST * ratio**layer)) for layer in range(depth)]
    kind, _, relu = str(weights).partition(", ")

    def network(generator: torch.Generator) -> Encoder:
        return networks.mlp(widths, 14 * 14, generator, kind, relu=bool(relu))

    found = cosines(Line("", "", network, lambda g: Setting(f, 2, lam, reference)), batches)
    return [[round(v, 3) if v == v else None for v in t_interval(x)] if x else [None] * 3 for x in found]
