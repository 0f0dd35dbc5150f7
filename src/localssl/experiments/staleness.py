"""What staleness costs: accuracy and alignment of rules with feedback whose blocks learn from older activity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from localssl import evaluate
from localssl.experiments.cells import Cell, Settings, run_cells
from localssl.experiments.cifar10 import LEARNING_RATES
from localssl.probe import fast_probe, features
from localssl.report.tables import show
from localssl.runs.config import TrainConfig
from localssl.runs.run import Run
from localssl.stats import t_interval

RULES = ("clapp++dfb", "clapp++both")
HEADER = ["rule", "staleness", "quantity", "mean", "low", "high", "minus_fresh", "low", "high", "seeds"]


@dataclass(frozen=True)
class Study:
    """How large it is; ``lr`` None: the rates that were found on CIFAR-10."""

    data: str = "cifar10"
    images: int | None = 12_500
    width: float = 0.25
    lr: float | None = None
    batch_size: int = 32
    epochs: int = 4
    labels: int = 5_000
    staleness: tuple[int, ...] = (0, 1, 5)  # what keeps two processes at work, and a process a block


STUDY = Study()


def run(settings: Settings) -> None:
    """Staleness of layer-parallel training: accuracy and alignment against that of fresh updates (CPU: hours)."""
    seeds = settings.seeds or 5
    grid = [(rule, staleness, seed) for rule in RULES for staleness in STUDY.staleness for seed in range(seeds)]
    records = run_cells([Cell(_name(*point), _config(settings, *point), _measure) for point in grid], settings)
    found = dict(zip(grid, records, strict=True))
    rows: list[list[object]] = []
    for rule in RULES:
        for staleness in STUDY.staleness:
            for quantity in ("accuracy", "cosine"):
                mine, fresh = ([found[rule, d, s][quantity] for s in range(seeds)] for d in (staleness, 0))
                differences = [a - b for a, b in zip(mine, fresh, strict=True)]
                digits = 2 if quantity == "accuracy" else 4
                values = [round(v, digits) for v in (*t_interval(mine), *t_interval(differences))]
                rows.append([rule, staleness, quantity, *values, seeds])
    comment = (
        f"{STUDY.data}, {STUDY.images or 'all'} images, width {STUDY.width:g}, batches of {STUDY.batch_size}, "
        f"epochs {STUDY.epochs}; cosine with backpropagation of the rule's own last-layer loss, mean over all blocks "
        f"but the last; minus_fresh: paired by seed with staleness 0; 95 % t intervals over seeds. Accuracy of all "
        f"blocks: {records[0]['protocol']}"
    )
    evaluate.to_csv(settings.out / "staleness.csv", HEADER, rows, comment)
    shown = [[*row[:4], evaluate.interval(*row[4:6]), row[6], evaluate.interval(*row[7:9]), row[9]] for row in rows]
    show("Staleness", [*HEADER[:4], "95 %", "minus fresh", "95 %", "seeds"], shown, comment)
    print(f"written: {settings.out / 'staleness.csv'}")


def _name(rule: str, staleness: int, seed: int) -> str:
    return f"{rule}-D{staleness:02d}-s{seed}"


def _config(settings: Settings, rule: str, staleness: int, seed: int) -> TrainConfig:
    return TrainConfig(
        rule=rule,
        staleness=staleness,
        data=STUDY.data,
        data_root=settings.data_root,
        limit_images=STUDY.images,
        width=STUDY.width,
        lr=STUDY.lr or LEARNING_RATES[rule],
        batch_size=STUDY.batch_size,
        epochs=STUDY.epochs,
        seed=seed,
        engine="hebbian",
        threads=settings.threads_per_job(),
        out=settings.out / "runs" / _name(rule, staleness, seed),
        resume=True,
        probe_every=0,
    )


def _measure(run: Run, settings: Settings) -> dict[str, Any]:
    labelled, test = run.images("train", limit=STUDY.labels), run.images("test")
    encoder, patches = run.encoder(), run.config.patches
    read = [features(encoder, part, patches=patches, normalise=run.normalise()) for part in (labelled, test)]
    probed = fast_probe(read[0], labelled.labels, read[1], test.labels, layers=("all",), knn=False)
    aligned = evaluate.align_run(run, evaluate.AlignOptions(), root=settings.data_root)
    cosines = [r.mean for r in aligned.rows if r.quantity == "cosine" and r.parameter == "weights"][:-1]
    return {
        "accuracy": round(probed.rows[0].accuracy, 3),
        "protocol": probed.protocol,
        "cosine": round(sum(cosines) / len(cosines), 6),
        "cosines": [round(c, 6) for c in cosines],
    }
