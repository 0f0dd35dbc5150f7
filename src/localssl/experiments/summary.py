"""From the cells of a comparison to its table and its picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from localssl import encoders, evaluate, own
from localssl.errors import RunError
from localssl.experiments import published
from localssl.experiments.cells import Settings
from localssl.experiments.comparison import Compared
from localssl.experiments.rows import Study, descends
from localssl.markdown import counted
from localssl.report import comparison, comparison_figure
from localssl.report.comparison import Interval, Line
from localssl.report.tables import show
from localssl.stats import t_interval

Record = dict[str, Any]


def accuracy(record: Record, layer: str, budget: str) -> float:
    """Linear accuracy of a cell in percent."""
    return next(float(r[3]) for r in record["probe"] if r[:3] == [layer, "linear", budget])


def summarise(compared: Sequence[Compared], study: Study) -> list[Line]:
    """Means and 95 % t intervals over seeds, and paired differences to the untrained encoder of the same seed."""
    by_label = {c.row.label: c for c in compared}
    return [_line(c, by_label[c.baseline].records if c.baseline else [], study) for c in compared]


def _line(c: Compared, baseline: Sequence[Record], study: Study) -> Line:
    if c.failed is not None or not c.records:
        return Line(c.row.label, budget=c.budget, failed=c.failed or "no seed")
    rs = c.records

    def mean(key: str) -> float | None:
        found = [float(r[key]) for r in rs if r[key] is not None]
        return sum(found) / len(found) if found else None

    gain = {
        b: t_interval([accuracy(r, "all", b) - accuracy(u, "all", b) for r, u in zip(rs, baseline, strict=True)])
        for b in study.labels
        if baseline
    }
    most = study.labels[-1]
    return Line(
        c.row.label,
        len(rs),
        {b: t_interval([accuracy(r, "all", b) for r in rs]) for b in study.labels},
        gain,
        {layer: t_interval([accuracy(r, layer, most) for r in rs]) for layer in blocks(rs[0])},
        _alignment(rs) if descends(c.row) else {},
        mean("images_per_second"),
        mean("peak_memory_mib"),
        mean("gpu_memory_mib"),
        rs[0]["parameters_encoder"],
        rs[0]["parameters_rule"] if c.baseline else None,
        rs[0]["config"]["lr"] if c.baseline else None,
        c.budget,
    )


def blocks(record: Record) -> list[str]:
    """The probe's layers one by one, "1" to "L"."""
    return list(dict.fromkeys(r[0] for r in record["probe"] if r[1] == "linear" and r[0] != "all"))


def _alignment(records: Sequence[Record]) -> dict[str, Interval]:
    if any(not r["align"] for r in records):
        return {}
    columns: dict[str, list[float]] = {}
    for record in records:
        for block, mean, *_ in record["align"]:
            columns.setdefault(str(block), []).append(float("nan") if mean == "" else float(mean))
    return {block: t_interval(values) for block, values in columns.items()}


def setting(compared: Sequence[Compared], study: Study) -> str:
    """What was trained on what and for how long, what was probed, and over what the intervals are."""
    record = compared[0].records[0]
    trained = [c.records[0]["config"] for c in compared if c.baseline and c.records]
    epochs = sorted({c["epochs"] for c in trained}) or [study.epochs or 0]
    seeds = len(compared[0].records)
    n = f"Mean of {seeds} seeds ± half of the 95 % t interval over seeds" if seeds > 1 else "One seed, no interval"
    probed = f" Probe: {'; '.join(record['facts'])}." if record["facts"] else ""
    passes = f"{' or '.join(map(str, epochs))} epoch{'' if epochs == [1] else 's'}"
    net = _net(record["config"]["encoder"]["name"], study)
    views = "" if study.views is None else f", views: {own.short_name(study.views)}"
    trained_on = (
        f"{study.data}: trained on {record['images']:,} images{views}, {net}, {passes}, batches of {study.batch_size}."
    )
    return f"{trained_on}{probed} {n}."


def _net(name: str, study: Study) -> str:
    """The encoder in a few words; others' networks have widths of their own."""
    words = [own.short_name(name), *([f"({', '.join(study.encoder_options)})"] if study.encoder_options else [])]
    if name in encoders.names() or study.width != 1:
        words.append(f"at width {study.width:g}")
    return " ".join(words)


def notes(compared: Sequence[Compared], study: Study, settings: Settings) -> list[str]:
    """What stands below the table."""
    record = compared[0].records[0]
    aligned = next((r for c in compared for r in c.records if "align_protocol" in r), None)
    side = f"{settings.jobs} side by side, {counted(settings.threads_per_job(), 'thread')} each"
    nulls = [float(v) for c in compared for r in c.records for v in r.get("nulls", ()) if v != ""]
    null = f" Null: {min(nulls):.2f} to {max(nulls):.2f} over all rules, seeds and blocks." if nulls else ""
    texts = [
        setting(compared, study),
        f"Accuracy: linear probe on all blocks together. {record['protocol']}",
        "Above untrained: paired differences to the untrained encoder of the same seed, with the encoder options that "
        "the rule asks for.",
        "Cosine: each rule's update against backpropagation of its own last-layer loss; "
        f"{aligned['align_protocol']}.{null}"
        if aligned
        else "",
        f"Images/s: of whole training steps (views, losses, update), {side} by the command that wrote this. Peak "
        f"memory: largest resident set of the run's own process until training ended (VmHWM); what Python, PyTorch "
        f"and the data set take is in the row untrained. Parameters: encoder, and what the rule adds to train or keeps "
        f"fixed.",
        *(f"{c.row.label}: {note}" for c in compared for note in c.notes),
        _no_cosine(compared) if study.align_batches else "",
        *(f"{rule} elsewhere: {number}, {number.how}; not comparable." for rule, number in elsewhere(compared, study)),
        *(f"{c.row.label} failed: {c.failed}" for c in compared if c.failed),
    ]
    if len(study.search_lr) > 1:
        rates = ", ".join(f"{lr:g}" for lr in study.search_lr)
        texts.insert(
            3,
            f"Learning rate: the best of {rates} on held-out training images, never on test images; for a rule that "
            "declares a rate of its own, of that list times its rate over the data set's default. "
            + " ".join(_edges(compared)),
        )
    return [text for text in texts if text]


def _no_cosine(compared: Sequence[Compared]) -> str:
    """For which rows there is none, and why."""
    labels = [c.row.label for c in compared if c.baseline and c.records and not descends(c.row)]
    why = "updates that descend no loss have none whose backpropagation they could be held against"
    return f"No cosine for {', '.join(labels)}: {why}." if labels else ""


def _edges(compared: Sequence[Compared]) -> Iterator[str]:
    for edge in ("smallest", "largest"):
        if labels := [c.row.label for c in compared if c.edge == edge]:
            yield f"The {edge} was the best for {', '.join(labels)}: one beyond it may be better."


def elsewhere(compared: Sequence[Compared], study: Study) -> list[tuple[str, published.Number]]:
    """The rules' own publications on these data."""
    rules = [c.row.rule for c in compared if c.baseline and study.data in published.PEERS.get(c.row.rule, {})]
    return [(rule, published.PEERS[rule][study.data]) for rule in dict.fromkeys(rules)]


def write(compared: Sequence[Compared], study: Study, settings: Settings) -> list[Line]:
    """Show the table, and write it as CSV, Markdown and LaTeX, with the accuracies of every seed and the picture."""
    lines = summarise(compared, study)
    below = notes(compared, study, settings)
    header, rows = comparison.to_read(lines, study.labels)
    out = settings.out
    first = 1 + 2 * len(study.labels) + 1  # columns of how good it is; what it costs comes below
    narrow = [name.replace(", ", ",\n") for name in header]
    show(f"{study.data}: rules side by side", narrow[:first], [row[:first] for row in rows])
    costs = [[row[0], *row[first:]] for row in rows]
    show("What they cost", [narrow[0], *narrow[first:]], costs, "\n".join(below))
    names, values = comparison.numbers(lines, study.labels)
    evaluate.to_csv(out / "table.csv", names, values, " ".join(below[:3]))
    comparison.to_markdown(out / "table.md", header, rows, below)
    comparison.to_latex(out / "table.tex", header, rows, below)
    seeds: list[list[object]] = [
        [c.row.label, r["seed"], *found[:4]] for c in compared for r in c.records for found in r["probe"]
    ]
    evaluate.to_csv(out / "seeds.csv", ["rule", "seed", "layer", "method", "labels", "accuracy"], seeds, below[1])
    side = "; b: mean over seeds" if len(compared[0].records) > 1 else ""
    caption = f"{setting(compared, study)} Linear probe, {study.protocol} protocol{side}."
    figure = comparison_figure.draw(lines, study.labels[-1], caption, out / "table.png")
    files = ", ".join(str(out / name) for name in ("table.csv", "table.md", "table.tex", "seeds.csv"))
    print(f"written: {files}, {figure}")
    return lines


def check(lines: Sequence[Line], out: Path) -> None:
    """After everything is written.

    Raises:
        RunError: a row failed.
    """
    if failed := [line for line in lines if line.failed]:
        rows = "1 row" if len(failed) == 1 else f"{len(failed)} rows"
        raise RunError(f"{rows} failed; {failed[0].label}: {failed[0].failed}; logs are in {out / 'runs'}")
