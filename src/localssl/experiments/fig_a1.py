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
from localssl.theory.lowrank import LowRank, low_rank
from localssl.theory.projection import solve

WIDTH, DEPTH, STARTS = 128, 6, 5
RANKS = (1, 2, 4, 8, 16, 32, 64, 128)
BATCHES = 32
RANDOM, CUT = "five random starts", "B* cut to the rank, and four random"
SPREAD = ["rank", "spread_mean", "spread_max", "cut_lowest", "random_lowest", "problems", "unconverged", "starts"]


def run(settings: Settings) -> None:
    """Figure A1: alignment against the rank of B, lowest of five minima each (12 minutes)."""
    torch.set_num_threads(1)  # the matrices are small: threads would wait for each other
    batches, data = crops(settings, 14)
    rows: dict[str, list[list[object]]] = {RANDOM: [], CUT: []}
    apart: list[list[object]] = []
    for rank in RANKS:
        cosines: dict[str, list[list[float]]] = {panel: [[] for _ in range(DEPTH)] for panel in rows}
        found: list[LowRank] = []
        for seed, (view_a, view_b) in enumerate(batches[:BATCHES]):
            generator = torch.Generator().manual_seed(seed)
            encoder = networks.mlp([WIDTH] * DEPTH, 14 * 14, generator)
            samples = Samples.from_views(view_a.flatten(1), view_b.flatten(1))
            with torch.no_grad():
                z = [encoder(x) for x in (samples.pos, samples.neg, samples.c)]
            layers = [_minima(z[0][k], z[1][k], z[2][k], rank, generator) for k in range(DEPTH)]
            found += layers
            for panel, starts in ((RANDOM, slice(1, STARTS + 1)), (CUT, slice(0, STARTS))):
                lowest: list[Tensor | None] = [m.matrices[starts][m.losses[starts].argmin()] for m in layers]
                local, end_to_end = gradients(encoder, samples, Setting(projections=lowest))
                for layer, (a, b) in enumerate(zip(local, end_to_end, strict=True)):
                    quantities = compare(a, b)
                    if quantities is not None:
                        cosines[panel][layer].append(quantities["cosine"])
        for panel, values in cosines.items():
            for layer, of_layer in enumerate(values, start=1):
                shown = [round(v, 5) for v in t_interval(of_layer)] if of_layer else ["", "", ""]
                rows[panel].append([panel, f"rank {rank}", layer, *shown, len(of_layer)])
            print(f"rank {rank}, {panel}: {' '.join(str(row[3]) for row in rows[panel][-DEPTH:])}", flush=True)
        apart.append(_apart(rank, found))
    caption = (
        f"{data}, 14 × 14 crops, 6 orthonormal layers of {WIDTH} units, softplus type 2, λ = 0.01; B of the rank "
        f"given, lowest of {STARTS} minima per layer; mean and 95 % t interval over {min(BATCHES, len(batches))} "
        f"batches of 32 images, each with its own draw of the weights"
    )
    settings.out.mkdir(parents=True, exist_ok=True)
    drawn = [*rows[RANDOM], *rows[CUT]]
    evaluate.to_csv(settings.out / "figA1.csv", HEADER, drawn, caption)
    note = (
        f"spread: highest / lowest loss of {STARTS} random starts, minus 1. lowest: problems (a layer on a batch) "
        "where B* cut to the rank, or a random start, ended more than 1e-6 below the other. unconverged: of all starts"
    )
    evaluate.to_csv(settings.out / "spread.csv", SPREAD, apart, note)
    path = layers_figure.draw(drawn, caption, settings.out / "figA1.png")
    print(f"written: {path}, {settings.out / 'figA1.csv'}, {settings.out / 'spread.csv'}")


def _minima(z_pos: Tensor, z_neg: Tensor, c: Tensor, rank: int, generator: torch.Generator) -> LowRank:
    """Where the search ends from B* cut to the rank (first) and from ``STARTS`` random factors."""
    width = z_pos.shape[1]
    f1, f2 = torch.randn((2, STARTS, rank, width), generator=generator, dtype=torch.float64) / width**0.5
    u, s, vt = torch.linalg.svd(solve(z_pos, z_neg, c).matrix())
    cut_1, cut_2 = u[:, :rank].T, s[:rank, None] * vt[:rank]
    # To 1e-4: what is left then changes a cosine by 1e-8 or so.
    return low_rank(z_pos, z_neg, c, torch.cat((cut_1[None], f1)), torch.cat((cut_2[None], f2)), tolerance=1e-4)


def _apart(rank: int, found: list[LowRank]) -> list[object]:
    """A row under ``SPREAD``."""
    losses = torch.stack([minima.losses for minima in found])
    cut, random = losses[:, 0], losses[:, 1:]
    lowest, highest = random.min(1).values, random.max(1).values
    spread = highest / lowest - 1
    lower, higher = cut < lowest * (1 - 1e-6), cut > lowest * (1 + 1e-6)
    stopped = torch.cat([~minima.converged for minima in found])
    counts = [int(which.sum()) for which in (lower, higher)]
    return [
        rank,
        f"{float(spread.mean()):.3g}",
        f"{float(spread.max()):.3g}",
        *counts,
        len(found),
        int(stopped.sum()),
        len(stopped),
    ]
