"""Beyond the paper: how alignment decays as weights leave orthonormality, and what λ does to it."""

from __future__ import annotations

import torch

from localssl import evaluate
from localssl.encoders import Encoder
from localssl.experiments.cells import Settings
from localssl.experiments.layers import HEADER, Line, cosines, crops
from localssl.report import layers_figure
from localssl.stats import t_interval
from localssl.theory import networks
from localssl.theory.gradients import Setting

SPREADS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8)
LAMBDAS = (1e-4, 1e-2, 1.0)
LAYERS = (1, 3, 5)
WIDTH, DEPTH, BATCHES = 128, 6, 8


def _network(generator: torch.Generator, spread: float) -> Encoder:
    plain = networks.mlp([WIDTH] * DEPTH, 14 * 14, generator)
    weights = [next(block.parameters()).detach() for block in plain.blocks]
    return networks.from_weights([networks.stretched(w, spread, generator) for w in weights])


def run(settings: Settings) -> None:
    """Alignment against the spread of the weights' singular values, for three λ (half a minute)."""
    torch.set_num_threads(1)  # the matrices are small: threads would wait for each other
    batches, data = crops(settings, 14)
    rows: list[list[object]] = []
    for lam in LAMBDAS:
        for spread in SPREADS:
            line = Line(
                "",
                f"λ = {lam:g}",
                lambda g, s=spread: _network(g, s),
                lambda g, w=lam: Setting(weight_decay=w),
            )
            found = cosines(line, batches[:BATCHES])
            for layer in LAYERS:
                shown = [round(v, 5) for v in t_interval(found[layer - 1])]
                rows.append([line.name, f"layer {layer} of {DEPTH}", spread, *shown, len(found[layer - 1])])
    caption = (
        f"{data}, 14 × 14 crops, linear network of 128 units, softplus type 2; singular values e^(spread · ξ), "
        f"ξ standard normal, of mean square 1; mean and 95 % t interval over {BATCHES} batches, "
        f"each with its own draw of the weights"
    )
    settings.out.mkdir(parents=True, exist_ok=True)
    header = ["spread" if name == "layer" else name for name in HEADER]
    evaluate.to_csv(settings.out / "decay.csv", header, rows, caption)
    path = layers_figure.draw(rows, caption, settings.out / "decay.png", "spread of log singular values")
    print(f"written: {path}, {settings.out / 'decay.csv'}")
