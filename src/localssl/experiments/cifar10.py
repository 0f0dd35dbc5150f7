"""CIFAR-10 on a CPU: rows of Table 2 at width 0.25, one schedule for all, accuracy against epochs.

The search: the same three learning rates for every rule, judged on held-out training images. The study: each rule
at its learning rate, one run a seed, probed on the way. The speed: images a second of a few training steps.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from localssl import evaluate
from localssl.errors import UsageError
from localssl.experiments.cells import Cell, Settings, run_cells
from localssl.probe import fast_probe, features
from localssl.report import epochs_figure
from localssl.report.tables import show
from localssl.runs.config import TrainConfig
from localssl.runs.metrics import read
from localssl.runs.run import Run
from localssl.training.loop import STEPS_PER_ROW

RULES = ("clapp", "clapp++", "clapp++dfb", "clapp++both", "bp-clapp++")
ORDER = ("clapp++both", "bp-clapp++", "clapp++dfb", "clapp++", "clapp")  # the heaviest first
LEARNING_RATES = {"clapp": 5e-4, "clapp++": 1e-3, "clapp++dfb": 5e-4, "clapp++both": 1e-3, "bp-clapp++": 5e-4}  # search
SEARCH_LR = (5e-4, 1e-3, 2e-3)
HELD_OUT = 3_000
LABELS = 20_000  # of the training images, for the probe: a third of the time of all 50,000
STAGES = dict.fromkeys(RULES, (2,)) | {"clapp++": (2, 4), "bp-clapp++": (2, 4)}  # epochs at which a run is probed


def search(settings: Settings) -> None:
    """CIFAR-10: learning rate per rule on a held-out part of the training images (width 0.125, 10,000 images)."""
    cells = [
        Cell(f"{rule}-lr{lr:g}", _search_config(settings, rule, lr), _held_out) for rule in RULES for lr in SEARCH_LR
    ]
    untrained = Cell("untrained", _search_config(settings, "clapp++", 1e-3, epochs=0), _held_out)
    records = run_cells([untrained, *cells], settings)
    rows: list[list[object]] = [
        [r["cell"], r["config"]["rule"], r["config"]["lr"], r["config"]["epochs"], r["accuracy"]] for r in records
    ]
    header = ["cell", "rule", "lr", "epochs", "accuracy"]
    evaluate.to_csv(settings.out / "search.csv", header, rows, records[0]["protocol"])
    print(f"written: {settings.out / 'search.csv'}")


def _search_config(settings: Settings, rule: str, lr: float, epochs: int = 4) -> TrainConfig:
    return TrainConfig(
        rule=rule,
        data="cifar10",
        data_root=settings.data_root,
        limit_images=10_000,
        width=0.125,
        lr=lr,
        epochs=epochs,
        precision="32-true",
        threads=settings.threads_per_job(),
        out=settings.out / "runs" / (f"{rule}-lr{lr:g}" if epochs else "untrained"),
        resume=True,
        probe_every=0,
    )


def _held_out(run: Run, settings: Settings) -> dict[str, Any]:
    images = run.images("train", limit=run.config.limit_images)
    assert images.labels is not None
    parts = features(run.encoder(), images, patches=run.config.patches, normalise=run.normalise())
    fit, held = [z[:-HELD_OUT] for z in parts], [z[-HELD_OUT:] for z in parts]
    result = fast_probe(fit, images.labels[:-HELD_OUT], held, images.labels[-HELD_OUT:], layers=("all",), knn=False)
    return {
        "accuracy": round(result.rows[0].accuracy, 2),
        "protocol": f"Held-out training images, no test image. {result.protocol}",
    }


def run(settings: Settings) -> None:
    """CIFAR-10: accuracy of the CLAPP family and bp-clapp++ against epochs at width 0.25 (core-hours)."""
    seeds = range(settings.seeds or 1)
    cells: list[Cell] = []
    for seed in seeds:
        cells.append(Cell(f"untrained-s{seed}", _config(settings, "clapp++", seed, 0), _test_accuracy, keep=True))
        cells += [
            Cell(f"{rule}-s{seed}-e{epochs:02d}", _config(settings, rule, seed, epochs), _test_accuracy, keep=True)
            for rule in ORDER
            for epochs in STAGES[rule]
        ]
    records = run_cells(cells, settings)
    rows: list[list[object]] = []
    for r in records:
        name = "untrained" if r["config"]["epochs"] == 0 else r["config"]["rule"]
        key = [name, r["config"]["seed"], r["config"]["epochs"], r["config"]["lr"]]
        for method in ("linear", "knn"):
            for layer, accuracy in r[method].items():
                rows.append([*key, method, layer, accuracy])
    header = ["rule", "seed", "epochs", "lr", "method", "layer", "accuracy"]
    evaluate.to_csv(
        settings.out / "accuracy.csv", header, rows, f"{'; '.join(records[0]['notes'])}. {records[0]['protocol']}"
    )
    path = epochs_figure.draw(rows, settings.out / "accuracy.png", "; ".join(records[0]["notes"][:1]))
    print(f"written: {settings.out / 'accuracy.csv'}, {path}")


def _config(settings: Settings, rule: str, seed: int, epochs: int) -> TrainConfig:
    return TrainConfig(
        rule=rule,
        data="cifar10",
        data_root=settings.data_root,
        width=0.25,
        lr=LEARNING_RATES[rule],
        epochs=epochs,
        seed=seed,
        precision="32-true",
        threads=settings.threads_per_job(),
        out=settings.out / "runs" / (f"{rule}-s{seed}" if epochs else f"untrained-s{seed}"),
        resume=True,
    )


def _test_accuracy(run: Run, settings: Settings) -> dict[str, Any]:
    train, test = run.images("train", limit=LABELS), run.images("test")
    result = evaluate.probe_encoder(run, run.encoder(), train, test, evaluate.ProbeOptions(limit=LABELS))
    return {
        **{m: {r.layer: round(r.accuracy, 2) for r in result.rows if r.method == m} for m in ("linear", "knn")},
        "protocol": result.protocol,
        "notes": train.notes,
        "seconds_of_training": float(rows[-1]["seconds"]) if (rows := read(run.path)) else 0.0,
    }


SPEED_STEPS = 60  # the first 20 warm up: one row of the metrics


def speed(settings: Settings) -> None:
    """CIFAR-10: images per second of every rule at width 0.25 (two minutes; on a machine that does nothing else)."""
    cells = [Cell(f"speed-{rule}", _speed_config(settings, rule), _images_per_second) for rule in RULES]
    if settings.jobs != 1:
        raise UsageError("cifar10-speed times one rule after the other; leave --jobs out")
    records = run_cells(cells, settings)
    rows: list[list[object]] = [[r["config"]["rule"], r["threads"], r["images_per_second"]] for r in records]
    comment = f"Whole training steps (views, losses, update) after {STEPS_PER_ROW} to warm up. {records[0]['notes'][0]}"
    evaluate.to_csv(settings.out / "speed.csv", ["rule", "threads", "images_per_second"], rows, comment)
    show("CIFAR-10, width 0.25", ["rule", "threads", "images/s"], rows, comment)
    print(f"written: {settings.out / 'speed.csv'}")


def _speed_config(settings: Settings, rule: str) -> TrainConfig:
    config = _config(settings, rule, seed=0, epochs=1)
    limit = SPEED_STEPS * 64
    return dataclasses.replace(config, limit_images=limit, probe_every=0, out=settings.out / "runs" / rule)


def _images_per_second(run: Run, settings: Settings) -> dict[str, Any]:
    rows = {int(row["step"]): float(row["seconds"]) for row in read(run.path)}
    steps = SPEED_STEPS - STEPS_PER_ROW
    rate = steps * run.config.batch_size / (rows[SPEED_STEPS] - rows[STEPS_PER_ROW])
    return {
        "images_per_second": round(rate, 1),
        "threads": settings.threads_per_job(),
        "notes": [f"Batches of {run.config.batch_size}, {run.config.precision}."],
    }
