"""Sections of a run's page from the files that training, probe and align left."""

from __future__ import annotations

import json
from typing import Any

import torch

from localssl import evaluate, own
from localssl.alignment import refusal
from localssl.errors import in_shell
from localssl.markdown import counted
from localssl.report import charts, measured, page
from localssl.report.measured import number
from localssl.runs.checkpoint import existing
from localssl.runs.config import program
from localssl.runs.run import Run, build, get_rule, manifest_of

IN_TABLE = 10  # measurements of a curve
QUANTITIES = ("cosine", "relative_error", "norm_ratio", "sign_agreement", "bias", "noise")


def what_was_run(run: Run) -> page.Section:
    """The command that repeats the run, its settings, versions and data."""
    begun = manifest_of(run.path, "begun")
    environment, data = manifest_of(run.path, "environment"), manifest_of(run.path, "data")
    parts: list[page.Part] = []
    if lines := begun.get("commands"):
        parts += [page.Text("To repeat it, with the versions below:"), page.Code("\n".join(map(str, lines)))]
    else:
        parts.append(page.Missing("This run is older than the record of its command; config.yaml holds its settings."))
    facts: list[tuple[str, object]] = [
        ("begun", begun.get("date")),
        ("data", "; ".join(map(str, data.get("notes", ())))),
        ("fingerprint of the data", data.get("fingerprint")),
        ("localssl", " at ".join(str(environment[k]) for k in ("localssl", "git") if environment.get(k))),
        ("Python, PyTorch", ", ".join(str(environment[k]) for k in ("python", "torch") if environment.get(k))),
        ("machine", ", ".join(str(environment[k]) for k in ("machine", "cuda") if environment.get(k))),
        ("threads", environment.get("threads")),
    ]
    shown = [[name, value] for name, value in facts if value not in (None, "")]
    parts.append(page.Table("Where and with what", ["", "value"], shown, folded=False))
    settings = [[name, _plain(value)] for name, value in run.config.flat().items()]
    parts.append(page.Table("All settings (config.yaml)", ["setting", "value"], settings))
    return page.Section("run", "What was run", parts)


def losses(run: Run) -> page.Section:
    """Losses of every block, and the online monitors, over the epochs."""
    rows = measured.curves(run.path)
    if not rows:
        why = "There is no metrics.csv with a finished step yet."
        if run.config.trained_by is not None:
            why = f"{run.config.trained_by} trained this network and keeps its losses in its cells."
        return page.Section("losses", "Losses", [page.Missing(why)])
    every = -(-len(rows) // charts.POINTS)
    caption = "From metrics.csv" + (f"; every point is the mean of {every} rows." if every > 1 else ".")
    parts = _curve(rows, "loss", "Loss by block", "loss", caption)
    monitors = [row for row in rows if row.get("rank_1") is not None]
    note = "On a fixed sample of the training images, up to 512 of them, without augmentation, while training."
    for kind, title, axis in (
        ("rank", "Effective rank of every block's readout", "effective rank"),
        ("dead", "Channels that are zero for every image", "share of channels"),
        ("active", "Hinges with a gradient", "share of hinges"),
    ):
        if measured.blocks(monitors, kind):
            parts += _curve(monitors, kind, title, axis, note)
    if measured.blocks(rows, "saturated"):
        note = "metrics.csv: of all numbers of a layer, weights included, since the row before."
        parts += _curve(rows, "saturated", "Numbers that were clipped", "share of numbers", note)
    return page.Section("losses", "Losses", parts)


def accuracy(run: Run) -> page.Section:
    """Accuracy by layer of every probe that was made, beside the untrained encoder, with its protocol."""
    parts: list[page.Part] = []
    for probe in measured.found(run.path, measured.PROBES):
        for budget in dict.fromkeys(row["labels"] for row in probe.rows):
            rows = [row for row in probe.rows if row["labels"] == budget and row["method"] == "linear"]
            of = "all labels" if budget == "all" else f"{budget} label{'' if budget == '1' else 's'} per class"
            title = f"Linear probe, {of} ({probe.name})"
            shown = [
                {"layer": r["layer"], "accuracy (%)": number(r["accuracy"]), "encoder": r["encoder"], **_ends(r)}
                for r in rows
                if number(r["accuracy"]) is not None
            ]
            says = (
                f"{title}. " + "; ".join(f"{r['encoder']}, layer {r['layer']}: {r['accuracy']} %" for r in rows) + "."
            )
            few = any(row["low"] for row in rows)
            note = "Bars: 95 % interval over draws of the labels." if few else "One draw of the labels: no interval."
            spec = charts.intervals(shown, "layer", "accuracy (%)", "encoder")
            parts.append(page.Chart(title, spec, says, note))
        parts.append(page.Note(probe.protocol))
        measurable = [row for row in probe.rows if number(row["accuracy"]) is not None]
        title = f"Trained and untrained side by side, {probe.name} (%)"
        parts.append(page.Table(title, *evaluate.beside_untrained(measurable)))
        header = list(probe.rows[0]) if probe.rows else []
        parts.append(page.Table(f"All numbers of {probe.name}", header, [list(r.values()) for r in probe.rows]))
    parts += [] if parts else [page.Missing(f"Not probed yet: {_command(run, 'probe')}")]
    return page.Section("accuracy", "Accuracy by layer", parts)


def alignment(run: Run) -> page.Section:
    """Cosine with backpropagation over the epochs, where training measured it, and every measurement afterwards."""
    why = refusal(get_rule(run.config.rule, run.config.rule_options))
    rows = [row for row in measured.curves(run.path) if row.get("align_1") is not None]
    files = measured.found(run.path, measured.ALIGNMENTS)
    parts: list[page.Part] = []
    if why:  # earlier versions measured it all the same
        parts.append(page.Missing(f"No cosine with backpropagation of its own loss: {why}."))
        files = [a for a in files if not any(r["reference"].endswith("own last-layer loss") for r in a.rows)]
    elif rows:
        note = "Cosine of the update with backpropagation's, on four fixed batches of training images."
        parts += _curve(rows, "align", "Alignment while training", "cosine", note)
    else:
        parts.append(page.Missing("Alignment was not measured while training: train --align-every N does it."))
    for align in files:
        whole = [row for row in align.rows if row["parameter"] == "weights" and row["quantity"] == "cosine"]
        shown = [
            {"block": r["block"], "cosine": number(r["mean"]), "against": r["reference"], **_ends(r)}
            | {"mark": number(r["null"])}
            for r in whole
            if number(r["mean"]) is not None
        ]
        title = f"Cosine by block, last checkpoint ({align.name})"
        if shown:
            says = f"{title}. " + "; ".join(f"block {r['block']}: {r['cosine']}" for r in shown) + "."
            spec = charts.intervals(shown, "block", "cosine", "against")
            parts.append(page.Chart(title, spec, says, "Bars: 95 % interval over batches. Grey tick: the null."))
        parts.append(page.Note(align.protocol))
        table = [
            [r[k] for k in ("block", "quantity", "mean", "low", "high", "batches", "null")]
            for r in align.rows
            if r["parameter"] == "weights" and r["quantity"] in QUANTITIES
        ]
        header = ["block", "quantity", "mean", "low", "high", "batches", "null"]
        parts.append(page.Table(f"More quantities of {align.name}", header, table))
    if not files:
        reference = evaluate.first_reference(run)
        against = [] if reference == "own" else ["--reference", reference]
        parts.append(page.Missing(f"Not measured at the last checkpoint yet: {_command(run, 'align', *against)}"))
    return page.Section("alignment", "Alignment with backpropagation", parts)


def cost(run: Run) -> page.Section:
    """Time, memory, parameters and bytes."""
    rows = measured.curves(run.path)
    with torch.device("meta"):  # sizes only
        learner = build(run.config)
    last = rows[-1] if rows else {}
    seconds, step = last.get("seconds") or 0.0, last.get("step") or 0.0
    facts: list[tuple[str, object]] = [
        ("training steps", f"{step:,.0f}" if rows else None),
        ("time of the training steps", f"{seconds:,.1f} s" if rows else None),
        ("images per second", f"{step * run.config.batch_size / seconds:,.0f}" if seconds else None),
    ]
    spent = _cost_file(run)
    if spent.get("peak_memory_mib"):
        facts.append(("peak memory of the process", f"{spent['peak_memory_mib']:,.0f} MiB, Python and data included"))
    if spent.get("gpu_memory_mib"):
        facts.append(("peak memory of the GPU", f"{spent['gpu_memory_mib']:,.0f} MiB"))
    facts += [
        ("parameters of the encoder", f"{sum(p.numel() for p in learner.encoder.parameters()):,}"),
        ("parameters of the rule", f"{sum(p.numel() for p in learner.projections.parameters()):,}"),
    ]
    file = run.path / "encoder.safetensors"
    if file.is_file():
        facts.append(("bytes of the encoder", f"{file.stat().st_size:,}"))
    if kept := existing(run.path):
        facts.append(("bytes of a checkpoint", f"{kept[-1].stat().st_size:,}"))
    shown = [[name, value] for name, value in facts if value is not None]
    note = page.Text("Time is that of the steps alone (views, update), measured by the clock of the machine it ran on.")
    return page.Section("cost", "Cost", [page.Table("What it took", ["", "value"], shown, folded=False), note])


def _cost_file(run: Run) -> dict[str, Any]:
    try:
        spent = json.loads((run.path / "cost.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return spent if isinstance(spent, dict) else {}


def _curve(rows: list[dict[str, float | None]], kind: str, title: str, axis: str, caption: str) -> list[page.Part]:
    """Values of every block over the epochs, and a few of them in a table."""
    blocks = measured.blocks(rows, kind)
    keys = [f"{kind}_{block}" for block in blocks]
    thin = charts.thinned(rows, ["epoch", *keys])
    points = [
        {"epoch": row["epoch"], axis: row[key], "block": block}
        for block, key in zip(blocks, keys, strict=True)
        for row in thin
    ]
    ends: list[str] = []
    for block, key in zip(blocks, keys, strict=True):
        values = [row[key] for row in rows if row.get(key) is not None]
        ends.append(f"block {block}: from {_digits(values[0])} to {_digits(values[-1])}")
    says = f"{title} over {counted(rows[-1]['epoch'] or 0, 'epoch')}. {'; '.join(ends)}."
    return [page.Chart(title, charts.lines(points, "epoch", axis, "block"), says, caption), _some(rows, kind, title)]


def _some(rows: list[dict[str, float | None]], kind: str, title: str) -> page.Table:
    """Measurements of a curve, evenly spaced, the first and the last among them."""
    blocks = measured.blocks(rows, kind)
    full = [row for row in rows if any(row.get(f"{kind}_{block}") is not None for block in blocks)]
    last, steps = len(full) - 1, max(1, min(len(full), IN_TABLE) - 1)
    shown = [full[round(i * last / steps)] for i in range(min(len(full), IN_TABLE))]
    values = [[block, *(_digits(row.get(f"{kind}_{block}")) for row in shown)] for block in blocks]
    header = ["block", *(f"epoch {_digits(row['epoch'])}" for row in shown)]
    return page.Table(f"{title}: {len(shown)} of {len(full):,} measurements", header, values)


def _ends(row: dict[str, str]) -> dict[str, float | None]:
    return {"low": number(row["low"]), "high": number(row["high"])}


def _digits(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _plain(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _command(run: Run, name: str, *flags: str) -> str:
    """A command on the run's folder that names the user's own files, too: without them it is refused."""
    files = list(dict.fromkeys(own.file_of(named) for named in run.config.own_files().values()))
    return f"{program()} {in_shell([name, str(run.path), *flags, *(['--own', *files] if files else [])])}"
