"""CIFAR-10 on a CPU: the rows of Table 2 that issue from CLAPP, at width 0.25, one schedule for all."""

from __future__ import annotations

from typing import Any

from localssl import evaluate, probe
from localssl.config import TrainConfig
from localssl.experiments.cells import Cell, Settings, run_cells
from localssl.run import Run

RULES = ("clapp", "clapp++", "clapp++dfb", "clapp++both", "bp-clapp++")
SEARCH_LR = (5e-4, 1e-3, 2e-3)
HELD_OUT = 5_000


def cifar10_search(settings: Settings) -> None:
    """CIFAR-10: learning rate per rule on a held-out part of the training images (width 0.125, 15,000 images)."""
    cells = [
        Cell(f"{rule}-lr{lr:g}", _search_config(settings, rule, lr), _held_out) for rule in RULES for lr in SEARCH_LR
    ]
    untrained = Cell("untrained", _search_config(settings, "clapp++", 1e-3, epochs=0), _held_out)
    records = run_cells([untrained, *cells], settings)
    rows: list[list[object]] = [
        [r["cell"], r["config"]["rule"], r["config"]["lr"], r["config"]["epochs"], r["all"], *r["each"]]
        for r in records
    ]
    header = ["cell", "rule", "lr", "epochs", "all_layers", *(f"layer_{i}" for i in range(1, 7))]
    evaluate.to_csv(settings.out / "search.csv", header, rows, records[0]["protocol"])
    print(f"written: {settings.out / 'search.csv'}")


def _search_config(settings: Settings, rule: str, lr: float, epochs: int = 3) -> TrainConfig:
    return TrainConfig(
        rule=rule,
        data="cifar10",
        data_root=settings.data_root,
        limit_images=20_000,
        width=0.125,
        lr=lr,
        epochs=epochs,
        precision="bf16-mixed",
        threads=settings.threads_per_job(),
        out=settings.out / "runs" / (f"{rule}-lr{lr:g}" if epochs else "untrained"),
        resume=True,
        probe_every=0,
    )


def _held_out(run: Run, settings: Settings) -> dict[str, Any]:
    images = run.images("train", limit=run.config.limit_images)
    assert images.labels is not None
    parts = probe.features(run.encoder(), images, patches=run.config.patches, normalise=run.normalise())
    fit, held = [z[:-HELD_OUT] for z in parts], [z[-HELD_OUT:] for z in parts]
    result = probe.fast_probe(fit, images.labels[:-HELD_OUT], held, images.labels[-HELD_OUT:], knn=False)
    return {**_accuracies(result), "protocol": f"held-out training images only, no test image. {result.protocol}"}


def _accuracies(result: probe.ProbeResult, method: str = "linear") -> dict[str, Any]:
    rows = [row for row in result.rows if row.method == method and row.labels == "all"]
    each = [round(row.accuracy, 2) for row in rows if row.layer != "all"]
    return {"all": next(round(row.accuracy, 2) for row in rows if row.layer == "all"), "each": each}
