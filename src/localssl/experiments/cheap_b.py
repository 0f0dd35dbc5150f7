"""Cheaper projections B of ``clapp++both`` against dense ones: how small they are, and what they lose."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

import torch

from localssl import encoders, evaluate, rules
from localssl.data.specs import Augmentation
from localssl.errors import UsageError
from localssl.experiments import screening
from localssl.experiments.cells import Cell, Settings, run_cells
from localssl.experiments.screening import EPOCHS, IMAGES, LR, PATCHES, file_name
from localssl.report import arithmetic
from localssl.runs.config import RunConfig, parse_options
from localssl.runs.run import Run
from localssl.stats import t_interval

RULE, DENSE = "clapp++both", "dense"
LOSS = 0.3  # points of accuracy that a cheap B may lose
HELD = 3.0  # % of a dense B's numbers that it may hold at width 1
TRIED: dict[str, tuple[str, ...]] = {  # label: options of the rule
    DENSE: (),
    "low-rank 64": ("projection=low-rank", "rank=64"),
    "low-rank 16": ("projection=low-rank", "rank=16"),
    "frozen 64": ("projection=low-rank-frozen", "rank=64"),
    "frozen 256": ("projection=low-rank-frozen", "rank=256"),
    "patch-local, low-rank 64": ("projection=patch-local", "rank=64"),
    "patch-local, frozen 256": ("projection=patch-local-frozen", "rank=256"),
    "patch-shared, low-rank 64": ("projection=patch-shared", "rank=64"),
}
FACTORED = "dense, factored second moment"  # no B, but an optimiser of its own
SHARES = ["learnt", "held", "learnt_at_width_1", "held_at_width_1"]
MEANS = (
    "learnt: parameters of B, held: with those that stay random, % of dense ones at the same width and at width 1; "
    "dense cells of better-rule are read where all else is equal (their engine may be another, equal to rounding)"
)
Measure = Callable[[Run, Settings], dict[str, Any]]


def screen(settings: Settings) -> None:
    """Seven cheap projections B of clapp++both and dense ones, on held-out images of CIFAR-10 (an hour on a core)."""
    records = _records(settings, [n for n in TRIED if n != DENSE], 0.125, [0], screening.measure, "better-rule")
    accuracies = {name: float(mine[0]["accuracy"]) for name, mine in records.items()}
    rows: list[list[object]] = []
    for name, (record,) in records.items():
        cosines = record["cosines"][:-1]
        mean = round(sum(cosines) / len(cosines), 4)
        loss = round(accuracies[DENSE] - accuracies[name], 2)
        rows.append([name, accuracies[name], loss, mean, *shares(name, 0.125)])
    comment = (
        f"{_facts(records, 0.125)}, seed 0; held-out training images, no test image; cosine: blocks 1 to 5; {MEANS}"
    )
    file = settings.out / "screen.csv"
    evaluate.to_csv(file, ["projection", "accuracy", "loss", "cosine_mean", *SHARES], rows, comment)
    print(f"written: {file}; for cheap-b-final: {' and '.join(finalists(accuracies))}")


def final(settings: Settings) -> None:
    """Dense B and two that cheap-b named, at width 0.25, five paired seeds, on test images (core-hours)."""
    _final(settings, finalists(_screened(settings.out.parent / "cheap-b" / "screen.csv")), "final.csv")


def moment(settings: Settings) -> None:
    """Adam with B's second moment factored against Adam: clapp++both, width 0.25, five paired seeds (core-hours)."""
    _final(settings, [FACTORED], "factored-moment.csv")


def _final(settings: Settings, names: Sequence[str], file: str) -> None:
    """Dense B and these variants, paired by seed."""
    seeds = range(settings.seeds or 5)
    records = _records(settings, names, 0.25, seeds, screening.measure_final, "better-rule-final")
    found = {name: [float(r["accuracy"]) for r in mine] for name, mine in records.items()}
    rows: list[list[object]] = [
        [name, *compared(mine, found[DENSE], name == DENSE), *shares(name, 0.25)] for name, mine in found.items()
    ]
    header = ["projection", "accuracy", "low", "high", "loss", "loss_low", "loss_high", "verdict", "seeds", *SHARES]
    comment = (
        f"{_facts(records, 0.25)}; test images; 95 % t intervals over seeds, losses paired; loses less than {LOSS}: "
        f"the upper end of the loss is below it; {MEANS}"
    )
    evaluate.to_csv(settings.out / file, header, rows, comment)
    print(f"written: {settings.out / file}")


def finalists(accuracies: Mapping[str, float]) -> list[str]:
    """Of those that hold no more than ``HELD`` at width 1 the most accurate local one, and the most accurate other."""
    small = [name for name in accuracies if name != DENSE and shares(name, 1)[1] <= HELD]
    kinds = ([name for name in small if _is_local(name) == local] for local in (True, False))
    return [max(kind, key=lambda name: accuracies[name]) for kind in kinds if kind]


def _is_local(name: str) -> bool:
    """Whether its B learns without other synapses' weights, as the certificate finds of the frozen ones alone."""
    return TRIED[name][0].endswith("-frozen")


def compared(mine: Sequence[float], dense: Sequence[float], itself: bool = False) -> list[object]:
    """Mean, interval, paired loss against dense B, its interval, what that says, number of seeds."""
    loss = t_interval([d - m for m, d in zip(mine, dense, strict=True)])
    _, low, high = loss
    verdict = f"loses less than {LOSS}" if high < LOSS else f"loses {LOSS} or more" if low >= LOSS else "not resolved"
    numbers = [round(v, 3) for v in (*t_interval(mine), *loss)]
    return [*numbers, "" if itself else verdict, len(mine)]


def shares(name: str, width: float) -> list[float]:
    """% of a dense B's numbers that learn and that are held, at this width and at width 1."""
    found: list[float] = []
    for w in (width, 1):
        mine, dense = (_cost(n, w) for n in (name, DENSE))
        found += [100 * mine.b / dense.b, 100 * (mine.b + mine.fixed) / dense.b]
    return [round(v, 2) for v in found]


def _cost(name: str, width: float) -> arithmetic.Cost:
    with torch.device("meta"):
        encoder = encoders.vgg6(width)
    return arithmetic.step(encoder, rules.get(RULE, **parse_options(TRIED.get(name, ()))), (3, 32, 32), PATCHES, 2)


def _records(
    settings: Settings, names: Sequence[str], width: float, seeds: Sequence[int], measure: Measure, before: str
) -> dict[str, list[dict[str, Any]]]:
    """By projection, dense first, a record a seed; dense cells are those of the study ``before`` that are the same."""
    found = run_cells([_cell(settings, name, width, s, measure) for s in seeds for name in names], settings)
    folder = settings.out.parent / before / "cells"
    suffix = {s: "" if measure is screening.measure else f"-s{s}" for s in seeds}
    there = {s: _same(folder / f"{RULE}{suffix[s]}.json", found[i * len(names)]) for i, s in enumerate(seeds)}
    left = [s for s in seeds if there[s] is None]
    there |= zip(left, run_cells([_cell(settings, DENSE, width, s, measure) for s in left], settings), strict=True)
    dense = [record for record in there.values() if record is not None]
    return {DENSE: dense, **{name: found[i :: len(names)] for i, name in enumerate(names)}}


def _cell(settings: Settings, name: str, width: float, seed: int, measure: Measure) -> Cell:
    optimizer = "adam-factored" if name == FACTORED else None
    config = screening.config(settings, name, width, seed, RULE, PATCHES, TRIED.get(name, ()), optimizer)
    return Cell(f"{file_name(name)}-s{seed}", config, measure)


def _same(path: Path, like: Mapping[str, Any]) -> dict[str, Any] | None:
    """The record of another study's dense cell if no more than B, its optimiser and the engine are not ``like``'s."""
    if not path.is_file():
        return None
    record = json.loads(path.read_text(encoding="utf-8"))

    def rest(of: Mapping[str, Any]) -> list[object]:
        config = {k: v for k, v in of["config"].items() if k not in ("rule_options", "engine", "optimizer")}
        views = json.loads(json.dumps(asdict(Augmentation()))) | config.get("augmentation", {})  # and younger keys
        younger = {f.name: f.default for f in fields(RunConfig) if f.default is not MISSING and f.name != "engine"}
        return [younger | config | {"augmentation": views}, of["protocol"], of["notes"]]

    plain = not record["config"]["rule_options"] and record["config"]["optimizer"] == "adam"
    return record if plain and rest(record) == rest(like) else None


def _screened(path: Path) -> dict[str, float]:
    """Accuracies of the screening."""
    if not path.is_file():
        raise UsageError(f"{path} is not there: run localssl reproduce cheap-b first, with the same --out")
    lines = path.read_text(encoding="utf-8").splitlines()[1:]
    return {row["projection"]: float(row["accuracy"]) for row in csv.DictReader(lines)}


def _facts(records: Mapping[str, Sequence[Mapping[str, Any]]], width: float) -> str:
    first = records[DENSE][0]
    return (
        f"{'; '.join(first['notes'])}; {RULE}, width {width}, {IMAGES:,} images, {EPOCHS} epochs, Adam {LR:g}, "
        f"batch 64; accuracy (%): {first['protocol']}"
    )
