"""Figures 4C and A2: alignment in a convolutional network while it learns, and whether it goes with accuracy.

The models of the paper's Appendix B: the last layer is averaged over all positions in all of them, so that every rule
but ``clapp++both`` has the last-layer loss of ``bp-clapp++`` with its own B^L.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from localssl import alignment, evaluate
from localssl.experiments import prediction
from localssl.experiments.cells import Cell, Settings, run_cells
from localssl.experiments.cifar10 import LEARNING_RATES
from localssl.markdown import counted
from localssl.probe import fast_probe, features
from localssl.report import layers_figure, scatter_figure
from localssl.runs.config import TrainConfig
from localssl.runs.run import Run

LINES = {  # rule: its label
    "clapp": "no spatial dependence (clapp)",
    "clapp++": "clapp++",
    "clapp++dfb": "clapp++dfb",
    "clapp++both": "clapp++both (own last-layer loss)",
    "optimum": "optimum (trained by it)",
}
BATCHES = 10  # held-out batches, as in the paper
HEADER = ["epochs", "line", "layer", "mean", "low", "high", "batches", "seed", "null"]


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large the study is."""

    data: str
    width: float
    images: int | None
    epochs: tuple[int, ...]
    patches: tuple[int, ...]
    lr: dict[str, float]
    batch_size: int
    labels: int


CPU = Scale(
    "cifar10", 0.125, 25_000, (0, 1, 2, 4, 8), (4, 4, 4, 2, 2, 2), LEARNING_RATES | {"optimum": 5e-4}, 64, 5_000
)
PAPER = Scale("stl10", 1.0, None, (0, 1, 10, 50, 100), (12, 12, 12, 6, 6, 6), dict.fromkeys(LINES, 2e-4), 32, 5_000)


def scale_of(settings: Settings) -> Scale:
    """The paper's sizes on STL-10, or what two CPU cores allow on CIFAR-10."""
    return PAPER if settings.scale == "paper" else CPU


def records(settings: Settings, rules: Iterable[str] = LINES) -> list[dict[str, Any]]:
    """The cells that both figures and the study share, in the folder of fig4c."""
    scale = scale_of(settings)
    shared = dataclasses.replace(settings, out=settings.out.parent / "fig4c")
    cells = [
        Cell(f"{rule}-s{seed}-e{epochs:03d}", _config(shared, scale, rule, seed, epochs), _measure)
        for seed in range(settings.seeds or 1)
        for rule in rules
        for epochs in scale.epochs
    ]
    return run_cells(cells, shared)


def fig4c(settings: Settings) -> None:
    """Figure 4C: alignment of convolutional networks after training (CPU: 90 minutes; --scale paper: STL-10, GPUs)."""
    found = records(settings)
    last = scale_of(settings).epochs[-1]
    rows = [row for row in _rows(found) if row[0] == last]
    caption = _caption(found, settings)
    evaluate.to_csv(settings.out / "fig4c.csv", HEADER, rows, caption)
    path = layers_figure.draw(
        [[f"after {last} epochs", *row[1:]] for row in rows if row[7] == 0], caption, settings.out / "fig4c.png"
    )
    print(f"written: {path}, {settings.out / 'fig4c.csv'}")


def fig_a2(settings: Settings) -> None:
    """Figure A2: alignment at several stages of training (from the runs of fig4c)."""
    found = records(settings)
    settings.out.mkdir(parents=True, exist_ok=True)
    rows = _rows(found)
    caption = _caption(found, settings)
    evaluate.to_csv(settings.out / "figA2.csv", HEADER, rows, caption)
    shown = [[f"{row[0]} epochs", *row[1:]] for row in rows if row[7] == 0]
    path = layers_figure.draw(shown, caption, settings.out / "figA2.png")
    print(f"written: {path}, {settings.out / 'figA2.csv'}")


def accuracy(settings: Settings) -> None:
    """Does alignment predict accuracy? Rank correlation over rules and checkpoints (from the runs of fig4c)."""
    found = records(settings, [rule for rule in LINES if rule != "optimum"])  # which is trained by backpropagation
    settings.out.mkdir(parents=True, exist_ok=True)
    blocks = range(1, len(found[0]["cosines"]))  # the last one's cosine is 1 by construction
    rows: list[list[object]] = []
    for r in found:
        key = [r["config"]["rule"], r["config"]["seed"], r["config"]["epochs"], r["accuracy"]["all"]]
        cosines = [r["cosines"][b - 1][0] for b in blocks]
        rows.append([*key, *cosines, round(sum(cosines) / len(cosines), 5)])
    header = ["rule", "seed", "epochs", "accuracy", *(f"cosine_{b}" for b in blocks), "cosine_mean"]
    caption = _caption(found, settings, of_points=True)
    evaluate.to_csv(settings.out / "points.csv", header, rows, f"{caption}. {found[0]['protocol']}")
    trained = [row for row in rows if row[2] != 0]  # before training every rule has the same encoder
    cosines = {name: [float(str(row[i])) for row in trained] for i, name in enumerate(header) if i > 3}
    groups = [f"{row[0]}-{row[1]}" for row in trained]
    correlation = settings.out / "correlation.csv"
    prediction.write(correlation, cosines, [float(str(row[3])) for row in trained], groups, "runs")
    path = scatter_figure.draw(rows, settings.out / "accuracy.png", caption)
    print(f"written: {path}, {settings.out / 'points.csv'}, {correlation}")


def _config(settings: Settings, scale: Scale, rule: str, seed: int, epochs: int) -> TrainConfig:
    return TrainConfig(
        rule=rule,
        data=scale.data,
        data_root=settings.data_root,
        limit_images=scale.images,
        width=scale.width,
        patches=scale.patches,
        lr=scale.lr[rule],
        batch_size=128 if rule == "optimum" else scale.batch_size,  # recipe: for stability
        epochs=epochs,
        seed=seed,
        threads=settings.threads_per_job(),
        out=settings.out / "runs" / f"{rule}-s{seed}",
        resume=True,
        probe_every=0,
    )


def _measure(run: Run, settings: Settings) -> dict[str, Any]:
    scale = scale_of(settings)
    learner, _ = run.trained_learner()
    learner.eval()
    images = run.images("test")
    pairs = evaluate.view_batches(run, images, BATCHES, 128, seed=run.config.seed + 2)
    reference = "own" if run.config.rule == "clapp++both" else "bp-clapp++"
    rows = alignment.measure(learner.encoder, learner, pairs, reference)
    shown = [r for r in rows if r.parameter == "weights"]
    labelled = run.images("train", limit=scale.labels)
    parts = [
        features(learner.encoder, part, patches=run.config.patches, normalise=run.normalise())
        for part in (labelled, images)
    ]
    probe = fast_probe(parts[0], labelled.labels, parts[1], images.labels, knn=False)
    return {
        "cosines": [[round(v, 6) for v in (r.mean, r.low, r.high, r.null)] for r in shown if r.quantity == "cosine"],
        "others": {
            q: [round(r.mean, 6) for r in shown if r.quantity == q] for q in alignment.QUANTITIES if q != "cosine"
        },
        "reference": rows[0].reference,
        "accuracy": {r.layer: round(r.accuracy, 2) for r in probe.rows},
        "protocol": probe.protocol,
        "notes": images.facts,
    }


def _rows(found: list[dict[str, Any]]) -> list[list[object]]:
    return [
        [r["config"]["epochs"], LINES[r["config"]["rule"]], layer, *values[:3], BATCHES, r["config"]["seed"], values[3]]
        for r in found
        for layer, values in enumerate(r["cosines"], start=1)
    ]


def _caption(found: list[dict[str, Any]], settings: Settings, of_points: bool = False) -> str:
    scale = scale_of(settings)
    c = found[0]["config"]
    facts = "; ".join(found[0]["notes"])
    images = f"{scale.images:,} training images" if scale.images else "all training images"
    shown = dict.fromkeys(str(r["config"]["rule"]) for r in found)
    rates = ", ".join(f"{rule} {scale.lr[rule]:g}" for rule in shown)
    of_optimum = " (optimum: 128, its rate not searched)" if "optimum" in shown else ""
    over, which = "mean and 95 % t interval", "seed 0 drawn"
    if of_points:  # a point a checkpoint, without intervals, of every seed
        runs = counted(len({r["config"]["seed"] for r in found}), "seed")
        over, which = "mean", f"a point a checkpoint, {runs}; accuracy: fast probe"
    return (
        f"{facts or c['data']}: {c['encoder']['name']} at width {scale.width:g}, {images}, Adam (rates {rates}), last "
        f"layer averaged; cosine with bp-clapp++ at the same weights, views, negatives and B^L (clapp++both: with "
        f"its own last-layer loss), {over} over {BATCHES} batches of 128 test images; batches of "
        f"{scale.batch_size} in training{of_optimum}; {which}"
    )
