"""Figure A1: Theorem 3.1 with B of restricted rank, the lowest of several minima, and how far these lie apart."""

from __future__ import annotations

import torch
from torch import Tensor

from localssl import evaluate
from localssl.alignment import compare
from localssl.experiments.cells import Settings
from localssl.experiments.layers import HEADER, crops
from localssl.report import layers_figure
from localssl.stats import t_interval
from localssl.theory import networks
from localssl.theory.gradients import Samples, Setting, gradients
from localssl.theory.lowrank import low_rank

WIDTH, DEPTH, STARTS = 128, 6, 5
RANKS = (1, 2, 4, 8, 16, 32, 64, 128)
BATCHES = 4


def run(settings: Settings) -> None:
    """Figure A1: alignment against the rank of B, lowest of five minima each (ten minutes)."""
    torch.set_num_threads(1)  # the matrices are small: threads would wait for each other
    batches, data = crops(settings, 14)
    rows: list[list[object]] = []
    apart: list[list[object]] = []
    for rank in RANKS:
        cosines: list[list[float]] = [[] for _ in range(DEPTH)]
        spread: list[float] = []
        for seed, (view_a, view_b) in enumerate(batches[:BATCHES]):
            generator = torch.Generator().manual_seed(seed)
            encoder = networks.mlp([WIDTH] * DEPTH, 14 * 14, generator)
            samples = Samples.from_views(view_a.flatten(1), view_b.flatten(1))
            with torch.no_grad():
                z = [encoder(x) for x in (samples.pos, samples.neg, samples.c)]
            found = [_lowest(z[0][k], z[1][k], z[2][k], rank, generator) for k in range(DEPTH)]
            spread += [worst / best - 1 for _, best, worst in found]
            local, end_to_end = gradients(encoder, samples, Setting(projections=[b for b, _, _ in found]))
            for layer, (a, b) in enumerate(zip(local, end_to_end, strict=True)):
                quantities = compare(a, b)
                if quantities is not None:
                    cosines[layer].append(quantities["cosine"])
        for layer, values in enumerate(cosines, start=1):
            shown = [round(v, 5) for v in t_interval(values)] if values else ["", "", ""]
            rows.append(["6 orthonormal layers of 128 units", f"rank {rank}", layer, *shown, len(values)])
        apart.append([rank, f"{sum(spread) / len(spread):.3g}", f"{max(spread):.3g}", len(spread)])
        print(f"rank {rank}: {' '.join(f'{row[3]:.3f}' for row in rows[-DEPTH:])}", flush=True)
    caption = (
        f"{data}, 14 × 14 crops, softplus type 2, λ = 0.01; B of the rank given, lowest of {STARTS} starts per layer; "
        f"mean and 95 % t interval over {BATCHES} batches of 32 images, each with its own draw of the weights"
    )
    settings.out.mkdir(parents=True, exist_ok=True)
    evaluate.to_csv(settings.out / "figA1.csv", HEADER, rows, caption)
    header = ["rank", "spread_mean", "spread_max", "problems"]
    evaluate.to_csv(settings.out / "spread.csv", header, apart, f"highest / lowest loss of {STARTS} starts, minus 1")
    path = layers_figure.draw(rows, caption, settings.out / "figA1.png")
    print(f"written: {path}, {settings.out / 'figA1.csv'}, {settings.out / 'spread.csv'}")


def _lowest(
    z_pos: Tensor, z_neg: Tensor, c: Tensor, rank: int, generator: torch.Generator
) -> tuple[Tensor, float, float]:
    """The B of the lowest loss, that loss, and the highest."""
    tried: list[tuple[Tensor, float]] = []
    for _ in range(STARTS):
        start = torch.randn((rank, c.shape[1]), generator=generator, dtype=torch.float64)
        tried.append(low_rank(z_pos, z_neg, c, start, tolerance=1e-7))
    tried.sort(key=lambda found: found[1])
    return tried[0][0], tried[0][1], tried[-1][1]
