"""Tables of the documentation that are made from the committed results of studies, ``docs/results``."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from localssl import markdown
from localssl.stats import t_interval

RESULTS = Path(__file__).parents[3] / "docs" / "results"
Row = dict[str, str]


def brain() -> str:
    """CKA of every block with the twin's, mean over seeds, and what it may be held against."""
    rows = [r for r in _read("brain", "similarity.csv") if r["measure"] == "cka"]
    rules = list(dict.fromkeys(r["rule"] for r in rows))
    lines: list[Sequence[str]] = []
    for block in dict.fromkeys(r["block"] for r in rows):
        mine = [r for r in rows if r["block"] == block]
        cells = [_mean(r["similarity"] for r in mine if r["rule"] == rule) for rule in rules]
        cosines = [_mean(r["cosine"] for r in mine if r["rule"] == rule) for rule in rules]
        beside = [_mean(r[key] for r in mine) for key in ("between_twins", "untrained")]
        lines.append([block, *(f"{c} ({k})" for c, k in zip(cells, cosines, strict=True)), *beside])
    header = ["block", *(f"`{rule}`" for rule in rules), "twins of two seeds", "twin and its start"]
    return markdown.table(header, lines)


def brain_answer() -> str:
    """The rank correlation of similarity and cosine."""
    rows = _read("brain", "answer.csv")
    lines: list[Sequence[str]] = []
    for r in rows:
        value, low, high = (f"{float(r[key]):.2f}" for key in ("correlation", "low", "high"))
        lines.append([r["measure"].upper(), r["over"], f"{value} ({low} to {high})", r["points"]])
    return markdown.table(["measure", "over", "Spearman (95 %)", "points"], lines)


COMPARED = {"compare-mnist": "MNIST", "compare-cifar10": "CIFAR-10", "compare-tiny-imagenet": "Tiny ImageNet"}


def compare() -> str:
    """Accuracy, and what it is above the untrained encoder's, of every rule on every data set that was compared."""
    found = {name: _shown(name) for name in COMPARED if (RESULTS / name / "table.md").is_file()}
    columns = ("accuracy, all labels (%)", "above untrained, all labels (points)")
    rules = sorted(dict.fromkeys(rule for rows in found.values() for rule in rows), key=_trained)
    lines = [
        [
            f"`{rule}`" if _trained(rule) else rule,
            *(rows.get(rule, {}).get(c, "") for rows in found.values() for c in columns),
        ]
        for rule in rules
    ]
    header = [word for name in found for word in (f"{COMPARED[name]} (%)", "above untrained")]
    return markdown.table(["rule", *header], lines)


def _trained(rule: str) -> bool:
    return not rule.startswith("untrained")


FLAWS: Sequence[str] = ("dead", "weight_noise", "mismatch")


def bits() -> str:
    """Accuracy and cosine against the number of bits, mean over seeds and half the 95 % interval."""
    rows = _read("bits", "bits.csv")
    places = list(dict.fromkeys(r["bits"] for r in rows))
    ordered = sorted(places, key=lambda place: float("inf") if place == "float" else int(place))
    columns = {place: {"bits": place} for place in ordered}
    labels = {place: "float" if place == "float" else f"{place} bits" for place in ordered}
    return _curves("bits", rows, columns, labels, "float")


def flaws() -> str:
    """The same at 8 bits, each flaw alone."""
    rows = [r for r in _read("flaws", "bits.csv") if r["bits"] == "8"]
    columns: dict[str, Row] = {"none": dict.fromkeys(FLAWS, "0.0")}
    labels = {"none": "8 bits"}
    for name in FLAWS:
        for value in dict.fromkeys(r[name] for r in rows if float(r[name])):
            words = f"{name.replace('_', '-')} {float(value):g}"
            columns[words], labels[words] = {**columns["none"], name: value}, f"8 bits {words}"
    return _curves("flaws", rows, columns, labels, "none")


def staleness() -> str:
    """Accuracy and cosine by staleness, from the study's cells: those that are there."""
    cells: dict[str, dict[int, dict[int, dict[str, Any]]]] = {}
    for file in sorted((RESULTS / "staleness" / "cells").glob("*.json")):
        cell = json.loads(file.read_text(encoding="utf-8"))
        config = cell["config"]
        cells.setdefault(config["rule"], {}).setdefault(config["staleness"], {})[config["seed"]] = cell
    if not cells:
        return "Not measured yet: `localssl reproduce staleness`."
    lines: list[list[str]] = []
    for rule, by_staleness in cells.items():
        for staleness, mine in sorted(by_staleness.items()):
            fresh = by_staleness.get(0, {})
            line = [f"`{rule}`", str(staleness)]
            for quantity, digits in (("accuracy", 2), ("cosine", 3)):
                line.append(_plus_minus([c[quantity] for c in mine.values()], digits))
                paired = [c[quantity] - fresh[seed][quantity] for seed, c in mine.items() if seed in fresh]
                line.append(_plus_minus(paired, digits, sign="+") if staleness and paired else "")
            lines.append([*line, str(len(mine))])
    head = ["rule", "D", "accuracy, %", "minus D = 0, paired", "cosine", "minus D = 0, paired", "seeds"]
    config = next(c for by in cells.values() for mine in by.values() for c in mine.values())["config"]
    return (
        f"{markdown.table(head, lines)}\n\n`localssl reproduce staleness --seeds 3` "
        f"([cells](results/staleness/cells)): {config['data']}, {config['limit_images']:,} images, width 0.25, batches "
        f"of {config['batch_size']}, {config['epochs']} epochs; ± half of Student's 95 % interval over seeds, where "
        "there are two or more. Accuracy: fast probe of all blocks, 5,000 labels, test images. Cosine: of ΔW with "
        "backpropagation's of the rule's own last-layer loss, mean over all blocks but the last."
    )


def resnet18() -> str:
    """The study's own table."""
    text = (RESULTS / "resnet18" / "resnet18.md").read_text(encoding="utf-8")
    return "\n".join(line for line in text.splitlines() if line.startswith("|"))


def _curves(
    study: str, rows: Sequence[Row], columns: Mapping[str, Row], labels: Mapping[str, str], against: str
) -> str:
    """Of every rule the accuracy, how it differs seed by seed from that of the column ``against``, the cosine.

    ``columns``: what a row has there; ``labels``: the name of the row of seeds.csv after the rule's.
    """
    lines: list[Sequence[str]] = []
    seeds = _seeds(study)
    for rule in dict.fromkeys(r["rule"] for r in rows):
        mine = [r for r in rows if r["rule"] == rule]
        base = seeds[f"{rule} {labels[against]}"]
        paired: list[str] = []
        for name, label in labels.items():
            values = seeds[f"{rule} {label}"]
            differences = [values[seed] - base[seed] for seed in base]
            paired.append("" if name == against else _plus_minus(differences, 2, sign="+"))
        lines.append([f"`{rule}`", "accuracy", *(_one(mine, "accuracy", wanted, 2) for wanted in columns.values())])
        lines.append(["", f"minus {against}, paired", *paired])
        lines.append(["", "cosine", *(_one(mine, "cosine", wanted, 3) for wanted in columns.values())])
    return markdown.table(["rule", "", *columns], lines)


def _seeds(study: str) -> dict[str, dict[str, float]]:
    """Accuracy of the linear probe of all blocks, by row and seed."""
    found: dict[str, dict[str, float]] = {}
    for r in _read(study, "seeds.csv"):
        if r["layer"] == "all" and r["method"] == "linear":
            found.setdefault(r["rule"], {})[r["seed"]] = float(r["accuracy"])
    return found


def _one(rows: Sequence[Row], quantity: str, wanted: Row, digits: int) -> str:
    found = [r for r in rows if r["quantity"] == quantity and all(r[key] == value for key, value in wanted.items())]
    if not found:
        return ""
    mean, low, high = (float(found[0][key]) for key in ("mean", "low", "high"))
    return f"{mean:.{digits}f} ± {(high - low) / 2:.{digits}f}".replace("-", "−")


def _shown(study: str) -> dict[str, Row]:
    """The rows of a comparison's table.md by rule, as they stand there."""
    lines = (RESULTS / study / "table.md").read_text(encoding="utf-8").splitlines()
    header, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|"))
    return {row[0]: dict(zip(header, row, strict=True)) for row in rows}


def _read(study: str, file: str) -> list[Row]:
    text = (RESULTS / study / file).read_text(encoding="utf-8")
    return list(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))


def _plus_minus(values: Sequence[float], digits: int, sign: str = "-") -> str:
    """The mean, and half of its interval where it has one; ``sign``: as in a format."""
    mean, low, high = t_interval(values)
    half = f" ± {(high - low) / 2:.{digits}f}" if len(values) > 1 else ""
    return f"{mean:{sign}.{digits}f}{half}".replace("-", "−")


def _mean(values: Iterable[str]) -> str:
    return f"{t_interval([float(v) for v in values])[0]:.2f}"
