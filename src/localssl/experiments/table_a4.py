"""Table A4's grid of incremental predictive coding, T and eta_h for three objectives, at a CPU's scale on CIFAR-10.

Weight rates, decays and batches are the table's, but for the batch of lpl (1,024 there). Width, images and epochs are
not: 2,000 training images, width 0.125, two epochs. The paper says Adam for all: its decay is taken as LPL's code and
PyTorch's Adam take theirs, as L2 in the gradient, not as AdamW's (the paper's code for these runs is not public).
Judged on held-out training images through one linear probe of all blocks, as every search here; the paper judged on
test images, the supervised one at its best epoch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from localssl import evaluate
from localssl.config import TrainConfig
from localssl.data.sources import drawn
from localssl.experiments.cells import Cell, Settings, run_cells
from localssl.probe import fast_probe, features
from localssl.report.tables import show
from localssl.run import Run

STEPS = (1, 9, 17)
ETA_H = (0.01, 0.1, 0.5)
TOTAL = 50_000  # training images of CIFAR-10
IMAGES = 2_000
HELD_OUT = 3_000
EPOCHS = 2


@dataclass(frozen=True)
class Setting:
    """What Table A4 keeps fixed for an objective."""

    lr: float
    weight_decay: float
    batch_size: int


OBJECTIVES = {"ce": Setting(5e-5, 1e-4, 128), "clapp": Setting(2e-4, 0.0, 32), "lpl": Setting(1e-3, 1e-4, 256)}


def run(settings: Settings) -> None:
    """Table A4: T and eta_h of predictive coding for three objectives, on held-out training images (an hour)."""
    grid = [(objective, steps, eta) for objective in OBJECTIVES for steps in STEPS for eta in ETA_H]
    cells = [Cell(f"{o}-T{t:02d}-eta{e:g}", _config(settings, o, t, e), _held_out) for o, t, e in grid]
    first = _config(settings, "clapp", 1, 0.1, epochs=0)
    untrained, *records = run_cells([Cell("untrained", first, _held_out), *cells], settings)
    rows: list[list[object]] = [["untrained", "", "", untrained["accuracy"]]]
    rows += [[*point, r["accuracy"]] for point, r in zip(grid, records, strict=True)]
    comment = f"CIFAR-10, {IMAGES} images, width 0.125, {EPOCHS} epochs. {untrained['protocol']}"
    evaluate.to_csv(settings.out / "grid.csv", ["objective", "T", "eta_h", "accuracy"], rows, comment)
    found = {point: r["accuracy"] for point, r in zip(grid, records, strict=True)}
    shown: list[list[object]] = [[o, t, *(found[o, t, e] for e in ETA_H)] for o in OBJECTIVES for t in STEPS]
    header = ["objective", "T", *(f"eta_h {e:g}" for e in ETA_H)]
    show(f"iPC; untrained {untrained['accuracy']} %", header, shown, comment)
    print(f"written: {settings.out / 'grid.csv'}")


def _config(settings: Settings, objective: str, steps: int, eta_h: float, epochs: int = EPOCHS) -> TrainConfig:
    fixed = OBJECTIVES[objective]
    name = f"{objective}-T{steps:02d}-eta{eta_h:g}" if epochs else "untrained"
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
