"""Table A4's grid of incremental predictive coding, T and eta_h for three objectives, at a CPU's scale on CIFAR-10.

Weight rates, decays and batches are the table's, but for the batch of lpl (1,024 there). Width, images and epochs are
not: 10,000 training images, width 0.125, four epochs, one seed. With T = 1 the weights learn before the states have
moved, and the states end with their batch: eta_h does nothing, and T = 1 is run once. The paper says Adam for all: its
decay is taken as LPL's code and PyTorch's Adam take theirs, as L2 in the gradient, not as AdamW's (the paper's code for
these runs is not public). Judged on held-out training images through one linear probe of all blocks, as every search
here; what the paper chose by is not stated, its supervised number is that of the best test epoch.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from localssl import evaluate
from localssl.data.sources import drawn
from localssl.experiments.cells import Cell, Settings, run_cells
from localssl.probe import fast_probe, features
from localssl.report.tables import show
from localssl.runs.config import TrainConfig
from localssl.runs.run import Run

STEPS = (1, 9, 17)
ETA_H = (0.01, 0.1, 0.5)
GRID = "grid.csv"
TOTAL = 50_000  # training images of CIFAR-10
IMAGES = 10_000
HELD_OUT = 3_000
EPOCHS = 4
SIZE = f"{IMAGES}x{EPOCHS}"


@dataclass(frozen=True)
class Setting:
    """What Table A4 keeps fixed for an objective."""

    lr: float
    weight_decay: float
    batch_size: int


OBJECTIVES = {"ce": Setting(5e-5, 1e-4, 128), "clapp": Setting(2e-4, 0.0, 32), "lpl": Setting(1e-3, 1e-4, 256)}


def run(settings: Settings) -> None:
    """Table A4: T and eta_h of predictive coding on held-out training images (8 core-hours by count)."""
    grid = [(objective, *point) for objective in OBJECTIVES for point in points()]
    cells = [Cell(_name(*point), _config(settings, *point), _held_out) for point in grid]
    first = _config(settings, "clapp", 1, ETA_H[0], epochs=0)
    untrained, *records = run_cells([Cell(f"{SIZE}-untrained", first, _held_out), *cells], settings)
    rows: list[list[object]] = [["untrained", "", "", 0, untrained["accuracy"]]]
    rows += [
        [o, t, "any" if t == 1 else e, weight_steps(o, t), r["accuracy"]]
        for (o, t, e), r in zip(grid, records, strict=True)
    ]
    comment = (
        f"CIFAR-10, {IMAGES:,} images, width 0.125, {EPOCHS} epochs; weight steps: T a batch. One seed: no interval, "
        f"so near values say nothing. {untrained['protocol']}"
    )
    header = ["objective", "T", "eta_h", "weight_steps", "accuracy"]
    evaluate.to_csv(settings.out / GRID, header, rows, comment)
    show(f"iPC; untrained {untrained['accuracy']} %", header, rows[1:], comment)
    print(f"written: {settings.out / GRID}")


def points() -> list[tuple[int, float]]:
    """T and eta_h of the grid; at T = 1 one eta_h stands for all."""
    return [(steps, eta) for steps in STEPS for eta in (ETA_H[:1] if steps == 1 else ETA_H)]


def weight_steps(objective: str, steps: int) -> int:
    """How often the weights move: T times a batch."""
    return EPOCHS * (IMAGES // OBJECTIVES[objective].batch_size) * steps


def winners(out: Path) -> dict[str, dict[str, Any]]:
    """T and eta_h of the best of every objective, as options of the rule, where a finished grid lies in ``out``."""
    if not (out / GRID).is_file():
        return {}
    with (out / GRID).open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(line for line in file if not line.startswith("#")) if row["T"]]
    best = {o: max((r for r in rows if r["objective"] == o), key=lambda r: float(r["accuracy"])) for o in OBJECTIVES}
    return {
        o: {"steps": int(row["T"])} | ({} if row["eta_h"] == "any" else {"eta_h": float(row["eta_h"])})
        for o, row in best.items()
    }


def _name(objective: str, steps: int, eta_h: float) -> str:
    """Of a cell; sizes are in it, so that cells of other sizes in the same folder are not taken for it."""
    return f"{SIZE}-{objective}-T{steps:02d}" + (f"-eta{eta_h:g}" if steps > 1 else "")


def _config(settings: Settings, objective: str, steps: int, eta_h: float, epochs: int = EPOCHS) -> TrainConfig:
    fixed = OBJECTIVES[objective]
    name = _name(objective, steps, eta_h) if epochs else f"{SIZE}-untrained"
    return TrainConfig(
        rule="ipc",
        rule_options=(f"objective={objective}", f"steps={steps}", f"eta_h={eta_h:g}"),
        data="cifar10",
        data_root=settings.data_root,
        limit_images=IMAGES,
        width=0.125,
        lr=fixed.lr,
        weight_decay=fixed.weight_decay,
        optimizer="adam-l2" if fixed.weight_decay else "adam",
        batch_size=fixed.batch_size,
        epochs=epochs,
        precision="32-true",
        threads=settings.threads_per_job(),
        out=settings.out / "runs" / name,
        resume=True,
        probe_every=0,
    )


def _held_out(run: Run, settings: Settings) -> dict[str, Any]:
    seen, index = drawn(TOTAL, IMAGES), drawn(TOTAL, IMAGES + HELD_OUT)  # the first are among the second
    images = run.images("train", limit=IMAGES + HELD_OUT)  # the others need not be decoded
    trained = torch.as_tensor(np.isin(index, seen))
    fit, held = images.subset(trained.nonzero().flatten()), images.subset((~trained).nonzero().flatten())
    encoder, normalise = run.encoder(), run.normalise()
    read = [features(encoder, part, patches=run.config.patches, normalise=normalise) for part in (fit, held)]
    result = fast_probe(read[0], fit.labels, read[1], held.labels, layers=("all",), knn=False)
    return {
        "accuracy": round(result.rows[0].accuracy, 2),
        "protocol": f"{HELD_OUT} training images that no encoder saw, no test image. {result.protocol}",
    }
