"""Ours beside published numbers, from docs/results: the paper's, and those of other rules' own publications."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from localssl import markdown
from localssl.experiments import findings, lpl_own, own_settings, published, summary, tables
from localssl.experiments.apart import FAILED
from localssl.experiments.comparison import Compared
from localssl.experiments.findings import GPU, Finding
from localssl.experiments.published import Number
from localssl.experiments.rows import Study, of_rule, safe
from localssl.report.comparison import plus_minus
from localssl.stats import t_interval

WITHIN = 0.3  # points, of the numbers of other rules that were aimed at
RUN_ON: dict[str, str] = {
    "ff-mnist": "2026-11-25",
    "scff-mnist": "2026-11-25",
    "lpl-cifar10": "2026-11-29",
    "scff-cifar10": "2026-11-29",
    "stochastic-ff-cifar10": "2026-11-30",
}
OTHERS = ("lpl-cifar10", "lpl-stl10", *own_settings.RECIPES)  # experiments of a CPU's scale and of the paper's


def accuracies(results: Path) -> str:
    """Tables 2 and A3, number by number: ours of docs/results/cifar10, else of the comparisons there and tableA3."""
    rows: list[tuple[str, ...]] = []
    kept = _kept(results, "tableA3")
    for row, by_data in published.TABLE2.items():
        for data, number in by_data.items():
            found, made = _longest(results, row, data, number), data
            if found is None:
                found, made = _compared(results, row, data, number), f"compare-{data}"
            from_ = _from(results, made) if found else ""
            rows.append(("Table 2", row, data, str(number), *(found or _not_run(number)), from_))
    for row, by_data in published.TABLE_A3.items():
        for data, number in by_data.items():
            found = kept.get((row, data))
            from_ = _from(results, "tableA3") if found else ""
            rows.append(("Table A3", row, data, str(number), *(found or _not_run(number)), from_))
    return markdown.table(("table", "row", "data", "paper", "ours", "verdict", "ours from"), rows)


def _from(results: Path, name: str) -> str:
    """What made the numbers of a folder of docs/results, and at which commits."""
    command = "[`compare`](compare.md#run-it-again)" if name.startswith("compare-") else f"`reproduce {name}`"
    return f"{command}, {findings.commit(results, name)}"


def peers(results: Path) -> str:
    """Other rules in their own publications' settings: those on MNIST at their full size, and what else was run."""
    ff = [100 - float(row["error_test"]) for row in findings.read(results / "ff-mnist" / "ff-mnist.csv")]
    nets = findings.read(results / "scff-mnist" / "scff-mnist.csv")
    scff = [float(row["accuracy"]) for row in nets if row["net"] == "scff"]
    rows: list[tuple[str, ...]] = []
    for rule, values, name, scale in (
        ("ff-supervised", ff, "ff-mnist", "the published sizes (50,000 images, 100 epochs)"),
        ("scff", scff, "scff-mnist", "the published sizes (20 + 9 epochs)"),
    ):
        number = published.PEERS[rule]["mnist"]
        row = (f"`{rule}`", "mnist", str(number), plus_minus(t_interval(values)), f"{scale}, {findings.seeds(values)}")
        commit = findings.commit(results, name)
        rows.append((*row, f"`localssl reproduce {name}`", RUN_ON[name], commit, _near(number, values)))
    rows += [line for name in OTHERS for line in _own(results, name)]
    head = ("rule", "data", "published", "ours", "scale of ours", "command", "date", "commit", "verdict")
    return markdown.table(head, rows)


def not_run(results: Path) -> str:
    """Which of the others' own settings have no numbers here, and what the published sizes need."""
    names = [f"`localssl reproduce {name}`" for name in OTHERS if not _own(results, name)]
    said = f"Not run here: {', '.join(names)}. " if names else ""
    return f"{said}The published sizes of all but `ff-mnist` and `scff-mnist` need {GPU}."


def _longest(results: Path, row: str, data: str, number: Number) -> Finding | None:
    """Our accuracies of a rule where longer runs than a comparison's are there, and how they may be compared."""
    cells = sorted((results / data / "cells").glob(f"{tables.TABLE2[row][0]}-s*-e*.json"))
    if not cells:
        return None
    last = cells[-1].stem.rpartition("-e")[2]
    kept = [findings.record(cell) for cell in cells if cell.stem.endswith(f"-e{last}")]
    ours = [cell["linear"]["all"] for cell in kept]
    found = published.differences(number, kept[0]["config"], "fast", kept[0]["notes"])
    return plus_minus(t_interval(ours)), published.mark(number, ours, found)


def _compared(results: Path, row: str, data: str, number: Number) -> Finding | None:
    """The same of a rule's cells in the comparison on these data, marked as ``reproduce table2`` marks them."""
    found = of_rule(*tables.TABLE2[row])
    files = findings.cells(results, f"compare-{data}", f"{safe(found.label)}-s[0-9]*")
    records = [record for record in map(findings.record, files) if FAILED not in record]
    if not records:
        return None
    study = Study.of(records[0]["task"][0]["study"])
    ours = [summary.accuracy(record, "all", study.labels[-1]) for record in records]
    return plus_minus(t_interval(ours)), tables.verdict(number, ours, Compared(found, records, None, ""), study)


def _not_run(number: Number) -> Finding:
    return "", f"not run; {number.never}" if number.never else "not run"


def _near(number: Number, values: Sequence[float]) -> str:
    """How far ours lies from a number that was aimed at, and on which side of the line."""
    off = round(sum(values) / len(values) - number.accuracy, 2)
    side = "within" if abs(off) < WITHIN else "exactly on the line of" if abs(off) == WITHIN else "not within"
    return f"{off:+.2f} points, {findings.seeds(values)}: {side} {WITHIN:g} points".replace("-", "−")


def _own(results: Path, name: str) -> list[tuple[str, ...]]:
    """The lines of one rule in its own published setting, one a scale that was run, by that setting's own verdict."""
    lines: list[tuple[str, ...]] = []
    for scale, words in (("paper", "the published sizes"), ("cpu", "a CPU's")):
        file = results / name / f"{name}-{scale}.csv"
        if not file.is_file():
            continue
        by_net: dict[str, list[float]] = {}
        for row in findings.read(file):
            by_net.setdefault(row.get("net") or row["encoder"], []).append(float(row["accuracy"]))
        control = by_net.pop("untrained")
        (values,) = by_net.values()
        rule, _, data = name.rpartition("-")
        if name in own_settings.RECIPES:
            facts = findings.record(findings.cells(results, name, f"{scale}-probe-s*")[0])["facts"]
            verdict = own_settings.verdict(own_settings.RECIPES[name], scale, values, facts)
        else:
            verdict = lpl_own.verdict(values, lpl_own.SCALES[scale if data == "cifar10" else f"{data}-{scale}"])
        ours = f"{plus_minus(t_interval(values))} (untrained {plus_minus(t_interval(control))})"
        number = published.PEERS.get(rule, {}).get(data)
        command = f"`localssl reproduce {name}{' --scale paper' if scale == 'paper' else ''}`"
        row = (f"`{rule}`", data, "" if number is None else str(number), ours, f"{words}, {findings.seeds(values)}")
        lines.append((*row, command, RUN_ON.get(name, ""), findings.commit(results, name), verdict))
    return lines


def _kept(results: Path, name: str) -> dict[tuple[str, str], Finding]:
    """Ours and the mark by row and data, of a table that ``localssl reproduce`` made; none where it was not."""
    file = results / name / f"{name}.csv"
    if not file.is_file():
        return {}
    return {(row["published as"], row["data"]): (row["ours (%)"], row["mark"]) for row in findings.read(file)}
