"""Which learning rate, views and number of epochs suit the digits: the same grid for every rule, no test image.

Encoders train on all 1,297 training images without labels, as in the demo. Labels are drawn from a part of these images
and the accuracy is that on the rest of them. Stage 1 runs the whole grid with one seed. Stage 2 repeats the best two
choices of views and epochs, each rule at its best rate there, with another seed. Neither is a seed of the demo.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from localssl import evaluate
from localssl.data.specs import Augmentation
from localssl.experiments import demo
from localssl.experiments.cells import Cell, Settings, run_cells
from localssl.probe import fast_probe, features
from localssl.report.tables import show
from localssl.runs.config import TrainConfig
from localssl.runs.run import Run

RATES = (5e-4, 1e-3, 2e-3)
STRENGTHS = (0.5, 1.0)
EPOCHS = (20, 40)
SEEDS = (100, 101)
HELD_OUT = 697
BUDGETS = ("1", "10")
DRAWS = 20
JUDGED = "10"  # labels per class whose margin decides: with one, the local rules win anyway

Record = dict[str, Any]
Choice = tuple[float, int]  # strength of the views, epochs


def run(settings: Settings) -> None:
    """Digits: learning rate, views and epochs of the demo's rules, on held-out training images (half an hour)."""
    grid = [(rule, strength, lr, EPOCHS) for rule in demo.RULES for strength in STRENGTHS for lr in RATES]
    records = _run(settings, grid, SEEDS[0])
    best = _best_rates(records)
    chosen = sorted(best, key=lambda choice: -statistics.mean(_margin(r) for r in best[choice]))[:2]
    again = [(r["config"]["rule"], s, r["config"]["lr"], (e,)) for s, e in sorted(chosen) for r in best[s, e]]
    records += _run(settings, again, SEEDS[1])
    rows: list[list[object]] = []
    for r in records:
        c, found = r["config"], [r[what][budget] for budget in BUDGETS for what in ("accuracy", "margin")]
        rows.append([c["seed"], c["rule"], *_choice(r), c["lr"], *found])
    header = ["seed", "rule", "view_strength", "epochs", "lr"]
    header += [f"{what}_{budget}" for budget in BUDGETS for what in ("accuracy", "margin")]
    evaluate.to_csv(settings.out / "search.csv", header, rows, records[0]["protocol"])
    repeated = [(rule, s, e, lr) for rule, s, lr, (e,) in again]
    caption = "margin: points of accuracy above the untrained encoder of the same seed, on held-out training images"
    show("Digits, both seeds", header, [row for row in rows if tuple(row[1:5]) in repeated], caption, left=2)
    print(f"written: {settings.out / 'search.csv'}")


def _choice(record: Record) -> Choice:
    return record["config"]["augmentation"]["degrees"] / Augmentation.degrees, record["config"]["epochs"]


def _margin(record: Record) -> float:
    return record["margin"][JUDGED]


def _best_rates(records: list[Record]) -> dict[Choice, list[Record]]:
    """For every choice of views and epochs each rule's record at its best rate."""
    best: dict[Choice, dict[str, Record]] = {}
    for record in records:
        mine = best.setdefault(_choice(record), {})
        rule = record["config"]["rule"]
        if rule not in mine or _margin(record) > _margin(mine[rule]):
            mine[rule] = record
    return {choice: list(found.values()) for choice, found in best.items()}


def _run(settings: Settings, wanted: Sequence[tuple[str, float, float, tuple[int, ...]]], seed: int) -> list[Record]:
    """The measured runs, each with its margin over the untrained encoder of the seed."""
    out = settings.out / "runs" / f"untrained-s{seed}"
    cells = [Cell(out.name, _config(settings, wanted[0][0], 1, 1e-3, 0, seed, out), _held_out)]
    for rule, strength, lr, stages in wanted:
        for epochs in stages:  # one run, measured on the way
            out = settings.out / "runs" / f"{rule}-v{strength:g}-lr{lr:g}-s{seed}"
            config = _config(settings, rule, strength, lr, epochs, seed, out)
            cells.append(Cell(f"{out.name}-e{epochs}", config, _held_out, keep=True))
    untrained, *records = run_cells(cells, settings)
    for r in records:
        r["margin"] = {b: round(r["accuracy"][b] - untrained["accuracy"][b], 3) for b in BUDGETS}
    return records


def _config(
    settings: Settings, rule: str, strength: float, lr: float, epochs: int, seed: int, out: Path
) -> TrainConfig:
    return TrainConfig(
        rule=rule,
        data="digits",
        lr=lr,
        view_strength=strength,
        epochs=epochs,
        seed=seed,
        threads=settings.threads_per_job(),
        out=out,
        resume=True,
        probe_every=0,
    )


def _held_out(run: Run, settings: Settings) -> Record:
    images = run.images("train")
    assert images.labels is not None
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    fit, held = order[:-HELD_OUT], order[-HELD_OUT:]
    parts = features(run.encoder(), images, patches=run.config.patches, normalise=run.normalise())
    result = fast_probe(
        [z[fit] for z in parts],
        images.labels[fit],
        [z[held] for z in parts],
        images.labels[held],
        labels=BUDGETS,
        draws=DRAWS,
        layers=("all",),
        knn=False,
    )
    shape = f"labels drawn from {len(fit)} training images, accuracy on the {HELD_OUT} others, no test image"
    return {
        "accuracy": {row.labels: round(row.accuracy, 3) for row in result.rows},
        "protocol": f"Digits: {shape}. {result.protocol}",
    }
