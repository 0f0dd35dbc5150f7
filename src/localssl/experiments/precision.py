"""Rows of a comparison at several precisions and on imperfect devices, and what becomes of them: a table, curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from localssl import evaluate
from localssl.engine.integer import refused
from localssl.errors import UsageError
from localssl.experiments.cells import Settings
from localssl.experiments.comparison import Compared
from localssl.experiments.rows import Row, Study, descends
from localssl.experiments.summary import accuracy, setting
from localssl.grids import Grid
from localssl.optimizer import power_of_two
from localssl.report import bits_figure
from localssl.runs.run import get_rule
from localssl.stats import t_interval

FLAWS = ("weight_noise", "dead", "mismatch")
HEADER = ["rule", "bits", *FLAWS, "quantity", "mean", "low", "high", "seeds"]
QUANTITIES = ("accuracy", "cosine", "saturated")


def bits_of(words: Sequence[str]) -> list[int]:
    """The numbers of bits in "4,6,8" or "4 6 8", each once.

    Raises:
        UsageError: something else than 2 to 16.
    """
    found = [word for text in words for word in text.split(",") if word]
    for word in found:
        if not word.isdecimal():
            raise UsageError(f"--bits {word!r}: use whole numbers from 2 to 16, for instance 4,6,8,16")
        Grid(int(word))
    return list(dict.fromkeys(map(int, found)))


def rows(of: Sequence[Row], bits: Sequence[int], flaws: Mapping[str, Sequence[float]] | None = None) -> list[Row]:
    """Every row in floats, by the same descent, and at every number of bits, there also with every flaw alone.

    Raises:
        UsageError: a rule that cannot learn in integers, a flaw outside 0 to 1.
    """
    found: list[Row] = []
    for row in of:
        rule = get_rule(row.rule, dict(row.options))
        if why := refused(rule):
            raise UsageError(f"rule {row.rule!r} cannot learn in integers: {why}")
        same = {} if rule.lr is None else {"lr": power_of_two(rule.lr)}
        optimizer = {} if rule.optimizer else {"optimizer": "shift-sgd"}
        found.append(replace(row, label=f"{row.label} float", changes={**same, **optimizer, **row.changes}))
        for b in bits:
            changes: dict[str, Any] = {**row.changes, "bits": b}
            found.append(replace(row, label=f"{row.label} {b} bits", changes=changes))
            for name, values in (flaws or {}).items():
                for value in values:
                    label = f"{row.label} {b} bits {name.replace('_', '-')} {value:g}"
                    found.append(replace(row, label=label, changes={**changes, name: value}))
    return list({row.label: row for row in found}.values())


def write(compared: Sequence[Compared], study: Study, settings: Settings) -> list[Path]:
    """``bits.csv``, and a picture for the bits and for every flaw: accuracy and cosine of every rule against it."""
    trained = [c for c in compared if c.baseline is not None and c.records]
    lines = [[*_place(c), *line] for c in trained for line in _values(c, study)]
    text = setting(compared, study)
    comment = (
        f"{text} Accuracy of all blocks, %; cosine of the update with backpropagation of the rule's own last-layer "
        f"loss, mean over all blocks but the last that had a gradient; saturated: share clipped since the last "
        f"row of metrics.csv but one. Float: the same descent by powers of two. 95 % t intervals over seeds."
    )
    evaluate.to_csv(settings.out / "bits.csv", HEADER, lines, comment)
    made = [settings.out / "bits.csv"]
    caption = (
        f"{text} Linear probe of all blocks, {study.protocol} protocol, {study.labels[-1]} labels; cosine of the "
        f"update, mean over all blocks but the last."
    )
    records = [dict(zip(HEADER, line, strict=True)) for line in lines]
    for axis in ("bits", *FLAWS):
        others = [name for name in FLAWS if name != axis]
        shown = [r for r in records if not any(r[name] for name in others)]
        if axis != "bits" and not any(r[axis] for r in shown):
            continue
        made.append(bits_figure.draw(shown, axis, caption, settings.out / f"{axis.replace('_', '-')}.png"))
    return made


def _place(c: Compared) -> list[object]:
    """The columns that say which row it is."""
    changes = c.row.changes
    label = (
        c.row.label.split(" float")[0] if "bits" not in changes else c.row.label.split(f" {changes['bits']} bits")[0]
    )
    return [label, changes.get("bits", "float"), *(changes.get(name, 0.0) for name in FLAWS)]


def _values(c: Compared, study: Study) -> list[list[object]]:
    """A line a quantity that was measured in every seed."""
    found: dict[str, list[float]] = {name: [] for name in QUANTITIES}
    for record in c.records:
        found["accuracy"].append(accuracy(record, "all", study.labels[-1]))
        cosines = [float(line[1]) for line in record["align"][:-1] if line[1] != ""]
        if cosines and descends(c.row):
            found["cosine"].append(sum(cosines) / len(cosines))
        if record.get("saturated") is not None:
            found["saturated"].append(record["saturated"])
    digits = {"accuracy": 3, "cosine": 5, "saturated": 7}
    return [
        [name, *(round(v, digits[name]) for v in t_interval(values)), len(values)]
        for name, values in found.items()
        if len(values) == len(c.records)
    ]
