"""Beyond the paper: a page on which a reader moves depth, width, λ and f and sees the alignment of every layer."""

from __future__ import annotations

import itertools
import json
from importlib import resources
from typing import Any

import torch
from torch import Tensor

from localssl.encoders import Encoder
from localssl.experiments.cells import Settings
from localssl.experiments.layers import Line, cosines, crops
from localssl.references import Last, Own, Reference
from localssl.stats import t_interval
from localssl.system.files import write_text
from localssl.theory import networks
from localssl.theory.gradients import Setting

AXES: dict[str, tuple[Any, ...]] = {
    "layers": (2, 3, 4, 6, 8),
    "width ratio": (1.0, 0.8, 0.65, 0.5),
    "λ": (0.0001, 0.001, 0.01, 0.1, 1.0, 10.0),
    "f": ("softplus", "hinge", "linear"),
    "weights": ("orthonormal", "default", "orthonormal, ReLU"),
}
FIRST, BATCHES = 64, 4
REFERENCES: dict[str, Reference] = {"layerwise": Own(), "direct feedback": Last()}


def run(settings: Settings) -> None:
    """One page, explorer.html: alignment by layer on a grid of networks and losses (a quarter of an hour)."""
    torch.set_num_threads(1)  # the matrices are small: threads would wait for each other
    batches, data = crops(settings, 14, images=32 * BATCHES)
    points: dict[str, dict[str, list[list[float | None]]]] = {}
    for point in itertools.product(*AXES.values()):
        points["|".join(f"{value:g}" if isinstance(value, float) else str(value) for value in point)] = {
            name: _alignment(point, reference, batches) for name, reference in REFERENCES.items()
        }
        if len(points) % 100 == 0:
            print(f"{len(points)} points", flush=True)
    note = (
        f"Cosine of the layerwise gradient with the end-to-end gradient, every B optimal, type 2. "
        f"{data}, 14 × 14 crops; layer 1 has {FIRST} units, each further layer the last one's times the width ratio. "
        "With the hinge, few units and many samples, many sets of slopes belong to the one optimal B, and the loss has "
        "no gradient there; what is drawn is the subgradient that the solver selects, one of several. "
        f"Mean and 95 % t interval over {BATCHES} batches of 32 images, each with its own draw of the weights. "
        f"{2 * len(points):,} lines, each computed by localssl reproduce theory-explorer."
    )
    axes = {
        name: [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
        for name, values in AXES.items()
    }
    record = json.dumps({"axes": axes, "points": points, "note": note}, ensure_ascii=False, separators=(",", ":"))
    page = resources.files("localssl.report").joinpath("explorer.html").read_text(encoding="utf-8")
    settings.out.mkdir(parents=True, exist_ok=True)
    write_text(settings.out / "explorer.html", page.replace("/*DATA*/", record))
    print(f"written: {settings.out / 'explorer.html'} ({len(points)} points)")


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
