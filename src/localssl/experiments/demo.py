"""The main job: two local rules, backpropagation and the untrained encoder on the embedded digits, in minutes."""

from __future__ import annotations

from typing import Any

from localssl import evaluate
from localssl.experiments.cells import Cell, Settings, run_cells
from localssl.report import demo_figure
from localssl.report.tables import show
from localssl.runs.config import TrainConfig, program
from localssl.runs.run import Run

RULES = ("clapp++", "clapp++dfb", "bp-clapp++")
LABELS = ("1", "10", "all")
VIEW_STRENGTH = {"bp-clapp++": 0.5}  # each rule at the best of its own search (demo_search)


def run(settings: Settings) -> None:
    """The main job on the embedded digits: local rules beside backpropagation and the untrained encoder (a minute)."""
    seeds = range(settings.seeds or 1)
    cells = [Cell(f"{rule}-s{seed}", _config(settings, rule, seed), _measure) for seed in seeds for rule in RULES]
    records = run_cells(cells, settings)
    rows: list[list[object]] = [[r["rule"], r["seed"], *row] for r in records for row in r["probe"]]
    rows = [row for row in rows if row[2] != "untrained" or row[0] == RULES[0]]  # one encoder, met once per rule
    header = ["run", "seed", *evaluate.PROBE_HEADER]
    evaluate.to_csv(settings.out / "probe.csv", header, rows, records[0]["protocol"])
    align: list[list[object]] = [[r["seed"], *row] for r in records for row in r["align"]]
    evaluate.to_csv(settings.out / "align.csv", ["seed", *evaluate.ALIGN_HEADER], align, records[0]["align_protocol"])
    _table(records, settings)
    path = demo_figure.draw(records, settings.out / "demo.png")
    print(f"written: {path}, {settings.out / 'probe.csv'}, {settings.out / 'align.csv'}")
    print(f"go on with: {program()} probe {settings.out / 'runs' / 'clapp++-s0'}")


def _config(settings: Settings, rule: str, seed: int) -> TrainConfig:
    return TrainConfig(
        rule=rule,
        data="digits",
        seed=seed,
        view_strength=VIEW_STRENGTH.get(rule),
        threads=settings.threads_per_job(),
        out=settings.out / "runs" / f"{rule}-s{seed}",
        resume=True,
        probe_every=10,
    )


def _measure(run: Run, settings: Settings) -> dict[str, Any]:
    results = evaluate.probe_run(run, evaluate.ProbeOptions(labels=LABELS))
    align = evaluate.align_run(run, evaluate.AlignOptions(batches=7))
    return {
        "rule": run.config.rule,
        "seed": run.config.seed,
        "probe": evaluate.probe_rows(results),
        "protocol": results[run.config.rule].protocol,
        "align": [row for row in evaluate.align_rows(align) if row[-1] == "weights"],
        "align_reference": align.reference,
        "align_protocol": align.protocol,
    }


def _table(records: list[dict[str, Any]], settings: Settings) -> None:
    """Accuracy with all layers at each label budget, mean over seeds, and alignment per block."""

    def accuracy(record: dict[str, Any], encoder: str, labels: str) -> float:
        found = [
            row[4]
            for row in record["probe"]
            if row[0] == encoder and row[1] == "all" and row[2] == "linear" and row[3] == labels
        ]
        return float(found[0])

    def mean(values: list[float]) -> str:
        return f"{sum(values) / len(values):.1f}"

    rows: list[list[object]] = []
    for name in ("untrained", *RULES):
        mine = [r for r in records if r["rule"] == (RULES[0] if name == "untrained" else name)]
        cells: list[object] = [mean([accuracy(r, name, labels) for r in mine]) for labels in LABELS]
        if name == "untrained":
            cells.append("")
        else:
            blocks = sorted({row[2] for row in mine[0]["align"]})
            cosines = [
                [float(row[4]) for r in mine for row in r["align"] if row[2] == b and row[3] == "cosine"]
                for b in blocks
            ]
            cells.append(" ".join(f"{sum(c) / len(c):.2f}" for c in cosines))
        rows.append([name, *cells])
    n_seeds = len({r["seed"] for r in records})
    seeds = f"{n_seeds} seeds" if n_seeds > 1 else "1 seed"
    header = ["digits", "1 label/class, %", "10 labels/class, %", "all labels, %", "cosine with BP, blocks 1…5"]
    show(
        f"Linear probe on all blocks, test accuracy ({seeds})",
        header,
        rows,
        f"{records[0]['protocol']} Cosine: {records[0]['align_protocol']}; "
        f"each against backpropagation of its own last-layer loss.",
    )
