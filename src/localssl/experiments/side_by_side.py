"""The page of a comparison, report.html: rules side by side, and the paper's numbers beside ours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from localssl import rules
from localssl.errors import UsageError
from localssl.experiments import published, summary, tables
from localssl.experiments.cells import Settings
from localssl.experiments.comparison import Compared
from localssl.experiments.rows import Study
from localssl.report import charts, comparison, page
from localssl.report.comparison import Interval, Line, plus_minus
from localssl.stats import t_interval


def write(compared: Sequence[Compared], lines: Sequence[Line], study: Study, settings: Settings, command: str) -> Path:
    """Write ``report.html`` into the comparison's folder; ``command`` is what repeats it.

    Raises:
        OSError: no room, no permission.
    """
    path = settings.out / "report.html"
    title = f"Rules side by side on {study.data}"
    sections = [
        _run(compared, study, settings, command),
        _accuracy(compared, lines, study),
        _paper(compared, study),
        _by_block(lines, study),
        _costs(lines, study),
    ]
    page.write(path, title, summary.setting(compared, study), sections)
    return path


def _run(compared: Sequence[Compared], study: Study, settings: Settings, command: str) -> page.Section:
    environment = compared[0].records[0]["environment"]
    facts = [[name, str(environment[name])] for name in ("localssl", "git", "python", "torch", "machine", "cuda")]
    parts = [
        page.Text("To repeat it:"),
        page.Code(command),
        page.Table("With what (of the first cell)", ["", "value"], [f for f in facts if f[1] != "None"], folded=False),
        *(page.Note(text) for text in summary.notes(compared, study, settings)),
    ]
    return page.Section("run", "What was compared", parts)


def _accuracy(compared: Sequence[Compared], lines: Sequence[Line], study: Study) -> page.Section:
    parts: list[page.Part] = []
    numbers = {c.row.label: _published(c, study) for c in compared}
    for budget in study.labels:
        done = [line for line in lines if budget in line.accuracy]
        rows = [
            {"name": line.label, "accuracy (%)": line.accuracy[budget][0], **_ends(line.accuracy[budget])}
            | {"kind": "untrained" if line.parameters_rule is None else "ours"}
            | {"mark": max((n.accuracy for _, n in numbers[line.label]), default=None) if budget == "all" else None}
            for line in done
        ]
        of = "all labels" if budget == "all" else f"{budget} label{'' if budget == '1' else 's'} per class"
        said = "; ".join(f"{line.label}: {plus_minus(line.accuracy[budget])} %" for line in done)
        spread = any(row["low"] is not None for row in rows)
        caption = f"All blocks together. {'Bars: 95 % t interval over seeds.' if spread else 'One seed: no interval.'}"
        if any(row["mark"] is not None for row in rows):
            caption += " Diamonds: the paper's number; whether the two can be compared stands below."
        title = f"Linear probe, {of}"
        parts.append(page.Chart(title, charts.ranking(rows, "accuracy (%)"), f"{title}. {said}.", caption))
    if failed := [[line.label, line.failed] for line in lines if line.failed]:
        parts.append(page.Table("Failed", ["rule", "reason"], failed, folded=False))
    header, rows = comparison.to_read(lines, study.labels)
    parts.append(page.Table("The whole table", header, rows))
    return page.Section("accuracy", "Accuracy", parts)


def _paper(compared: Sequence[Compared], study: Study) -> page.Section:
    """The paper's Table 2 on these data, and the rules' own publications."""
    rows: list[list[object]] = []
    for c in compared:
        values = [summary.accuracy(r, "all", study.labels[-1]) for r in c.records]
        ours = "failed" if c.failed else plus_minus(t_interval(values))
        for name, number in _published(c, study):
            mark = tables.verdict(number, values, c, study)
            rows.append([c.row.label, str(number), ours, mark, f"Table 2, {name}", number.how])
        if c.row.rule in dict(summary.elsewhere([c], study)):
            number = published.PEERS[c.row.rule][study.data]
            mark = tables.verdict(number, values, c, study)
            rows.append([c.row.label, str(number), ours, mark, "its own publication", number.how])
    title = "Beside the paper"
    if not rows:
        why = f"The paper and the rules' own publications give no number for these rules on {study.data}."
        return page.Section("paper", title, [page.Missing(why)])
    header = ["rule", "published (%)", "ours (%)", "mark", "published as", "how it was measured"]
    note = (
        "Reproduced: each mean lies inside the other's 95 % interval. Not comparable: the recipes differ, and how. "
        "Off by: same recipe, other result."
    )
    table = page.Table("Published numbers and ours", header, rows, folded=False)
    return page.Section("paper", title, [page.Text(note), table])


def _published(c: Compared, study: Study) -> list[tuple[str, published.Number]]:
    """The rows of the paper's Table 2 that are this rule with these options, on these data."""
    if c.baseline is None:
        return []
    try:
        ours = rules.get(c.row.rule, **c.row.options)
    except UsageError:  # its row says what is wrong with it
        return []
    return [
        (name, published.TABLE2[name][study.data])
        for name, (rule, options) in tables.TABLE2.items()
        if study.data in published.TABLE2[name] and rules.get(rule, **options) == ours
    ]


def _by_block(lines: Sequence[Line], study: Study) -> page.Section:
    parts: list[page.Part] = []
    found = [(line.label, block, value[0]) for line in lines for block, value in line.blocks.items()]
    if found:
        rows = [{"name": name, "block": block, "accuracy": value} for name, block, value in found]
        low, high = min(value for *_, value in found), max(value for *_, value in found)
        says = f"Accuracy of the linear probe on one block, from {low:.1f} to {high:.1f} %. Numbers are in the table."
        parts.append(page.Chart("Accuracy of one block (%)", charts.grid(rows, "accuracy", low, high), says))
        parts.append(_table("Accuracies by block (%)", {line.label: line.blocks for line in lines}))
    found = [(line.label, block, value[0]) for line in lines for block, value in line.align.items()]
    found = [cell for cell in found if not math.isnan(cell[2])]
    if found:
        rows = [{"name": name, "block": block, "cosine": value} for name, block, value in found]
        says = "Cosine of every rule's update with backpropagation of its own last-layer loss, block by block."
        parts.append(page.Chart("Cosine with backpropagation", charts.grid(rows, "cosine", -1.0, 1.0), says))
        parts.append(_table("Cosines by block", {line.label: line.align for line in lines if line.align}))
    parts += [] if parts else [page.Missing("No row came to an end.")]
    return page.Section("blocks", "Block by block", parts)


def _table(title: str, values: Mapping[str, Mapping[str, Interval]]) -> page.Table:
    most = max(values.values(), key=len)
    rows = [[name, *(plus_minus(found.get(b)) for b in most)] for name, found in values.items()]
    return page.Table(title, ["rule", *(f"block {b}" for b in most)], rows)


def _costs(lines: Sequence[Line], study: Study) -> page.Section:
    header, rows = comparison.to_read(lines, study.labels)
    first = 1 + 2 * len(study.labels) + 1  # columns of how good it is
    shown = [[row[0], *row[first:]] for row in rows]
    return page.Section("cost", "Cost", [page.Table("What it took", [header[0], *header[first:]], shown, folded=False)])


def _ends(interval: Interval) -> dict[str, float | None]:
    _, low, high = interval
    return {"low": None, "high": None} if math.isnan(low) else {"low": low, "high": high}
