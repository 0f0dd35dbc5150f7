"""Rules side by side on the same data, encoder, views and probe; a cell a rule and seed, each in its own process."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from localssl import evaluate, own
from localssl.data.sources import check_name, shuffled
from localssl.data.specs import default_patches, spec_for
from localssl.data.views import by_name
from localssl.encoders import registry
from localssl.errors import UsageError
from localssl.experiments.apart import FAILED, run_apart
from localssl.experiments.apart import read as read_cell
from localssl.experiments.cells import Part, Settings
from localssl.experiments.rows import (
    Row,
    Study,
    descends,
    encoder_options,
    options_of_encoder,
    safe,
    tuples,
    untrained_row,
)
from localssl.probe import fast_probe, features
from localssl.runs.config import TrainConfig
from localssl.runs.limits import check
from localssl.runs.metrics import read
from localssl.runs.run import Run, get_rule, manifest_of, run_in, train_split
from localssl.system.devices import peak_gpu_memory, peak_memory
from localssl.system.files import write_text
from localssl.training.train import train

NOTES = ("failed_check", "align_note")  # of a record: what went wrong without being fatal
SEARCH_SEED = 1000  # no seed of a study
SEARCH_IMAGES, HELD_OUT = 10_000, 3_000  # at most

Record = dict[str, Any]


@dataclass(frozen=True)
class Compared:
    """One row's records, one a seed, or why there are none.

    Args:
        row: the row.
        records: by seed, see ``_measured``.
        baseline: label of the row with the same encoder untrained; None for such a row itself.
        budget: how many rates were tried, on what.
        failed: the reason, in one line, or None.
        notes: what went wrong without being fatal.
        edge: "smallest" or "largest" where the best of several rates is that one of the list, so that a longer list
            might have a better one.
    """

    row: Row
    records: list[Record]
    baseline: str | None
    budget: str
    failed: str | None = None
    notes: tuple[str, ...] = ()
    edge: str = ""


def compare(
    study: Study, rows: Sequence[Row], settings: Settings, seeds: int, begin: Callable[[], None] = lambda: None
) -> list[Compared]:
    """Train and measure all rows that are not there yet; the untrained encoders come first.

    Args:
        study: what all rows have in common.
        rows: the rows.
        settings: where and how.
        seeds: their number, counted from 0.
        begin: called before anything is trained, after the cells that are there were compared with what is asked for.

    Raises:
        UsageError: an unknown rule or option, a run's folder, before anything is trained; data that cannot be read; a
            folder with cells of other settings.
        KeyboardInterrupt: stopped; the same call goes on.
    """
    if there := run_in(settings.out):
        raise UsageError(f"--out {settings.out} is the folder of a run ({there}); name another one for the comparison")
    if len({row.label for row in rows}) < len(rows):
        raise UsageError(f"a rule is named twice: {', '.join(row.label for row in rows)}")
    check_name(study.data)
    for row in rows:
        check(_config(study, row, settings, settings.out))
    if study.encoder is not None:
        registry.check_name(study.encoder)
        registry.granted(study.encoder, {})  # what is wrong with a file of the user's is said at once
    if study.views is not None:
        by_name(study.views)
    plain = options_of_encoder(study.encoder_options)
    of_row = {row.label: encoder_options(row, study) for row in rows}
    untrained = {o: untrained_row(o, o == plain) for o in dict.fromkeys([plain, *of_row.values()])}
    first = {options: [_part(study, row, seed) for seed in range(seeds)] for options, row in untrained.items()}
    _check_cells([part for parts in first.values() for part in parts], settings)
    # rates may have to be searched first, and are compared then
    _check_cells([_part(study, row, seed) for row in rows for seed in range(seeds)], settings, rates=False)
    settings.out.mkdir(parents=True, exist_ok=True)
    begin()
    found = {options: _run(parts, settings) for options, parts in first.items()}
    if reason := _reason(found[plain]):  # every other row would fail for the same reason
        raise UsageError(reason)
    lacking = {options: reason for options, records in found.items() if (reason := _reason(records))}
    refused = {
        label: f"the rule asks for an encoder with {' '.join(o for o in options if o not in plain)}: {lacking[options]}"
        for label, options in of_row.items()
        if options in lacking
    }
    chosen = _search(study, [row for row in rows if row.label not in refused], settings, found[plain][0]["images"])
    chosen |= {label: _Chosen(None, "", reason) for label, reason in refused.items()}
    parts = {
        row.label: [_part(study, row, seed, chosen[row.label].lr) for seed in range(seeds)]
        for row in rows
        if chosen[row.label].failed is None
    }
    order = [parts[label][seed] for seed in range(seeds) for label in parts]  # a whole comparison of one seed first
    done = dict(zip([part.name for part in order], _run(order, settings), strict=True))
    result = [Compared(row, found[o], None, "") for o, row in untrained.items() if o not in lacking]
    for row in rows:
        tried = chosen[row.label]
        records = [done[part.name] for part in parts.get(row.label, [])]
        notes = dict.fromkeys(str(r[key]) for key in NOTES for r in records if r.get(key))
        reason = tried.failed or _reason(records)
        baseline = untrained[plain if row.label in refused else of_row[row.label]].label
        records = [] if reason else records
        result.append(Compared(row, records, baseline, tried.budget, reason, tuple(notes), tried.edge))
    return result


def _reason(records: Sequence[Record]) -> str | None:
    failures = [(seed, r[FAILED]) for seed, r in enumerate(records) if FAILED in r]
    if not failures:
        return None
    seed, reason = failures[0]
    return f"seed {seed}: {reason}" if len(failures) < len(records) else str(reason)


def _part(study: Study, row: Row, seed: int, lr: float | None = None, trial: int | None = None) -> Part:
    """The cell of a row and seed; with ``trial``, of a rate in the search, trained on that many images."""
    name = f"{safe(row.label)}-s{seed}" if trial is None else f"search-{safe(row.label)}-lr{lr:g}"
    rule = get_rule(row.rule, dict(row.options))
    task: Record = {
        "study": study.kept(),
        "row": dataclasses.asdict(row),
        "seed": seed,
        "lr": lr,
        "trial": trial,
        "source": own.fingerprint(row.rule) if own.is_path(row.rule) else None,
    }
    if study.encoder is not None and own.is_path(study.encoder):
        task["encoder_source"] = own.fingerprint(study.encoder)
    if study.views is not None and own.is_path(study.views):
        task["views_source"] = own.fingerprint(study.views)
    return Part(name, _cell, (json.loads(json.dumps(task)), type(rule).__module__))


def _run(parts: Sequence[Part], settings: Settings) -> list[Record]:
    """As ``run_apart``; cells that are there already must be of the same settings."""
    _check_cells(parts, settings)
    return run_apart(parts, settings)


def _check_cells(parts: Sequence[Part], settings: Settings, rates: bool = True) -> None:
    """Refuse cells that are there already and of other settings; without ``rates`` whatever their rates are."""
    for part in parts:
        file = settings.out / "cells" / f"{part.name}.json"
        if not file.is_file():
            continue
        record = read_cell(settings.out, part.name)
        if FAILED in record:
            continue
        asked, there = part.arguments[0], record["task"][0]
        try:
            mine, theirs = _flat(asked), _flat(there)
        except (KeyError, TypeError) as error:
            raise UsageError(f"{file} is no cell of a comparison; choose another --out") from error
        if not rates:
            mine["lr"] = theirs["lr"]
        if mine == theirs:
            continue
        if {**mine, "lr": None} == {**theirs, "lr": None}:
            raise UsageError(
                f"{file} was trained at a rate of {theirs['lr']}, and of these rates {mine['lr']} is the best; delete "
                f"the cell and {settings.out / 'runs' / part.name} to train it anew"
            )
        named = {"source": asked["row"]["rule"], **{f"{k}_source": mine[k] for k in ("encoder", "views")}}
        for key, name in named.items():
            if {**mine, key: None} == {**theirs, key: None}:
                raise UsageError(f"{name} has changed since {file} was made; use another --out, or delete cell and run")
        differences = [
            f"{k} {mine.get(k)!r} (there: {theirs.get(k)!r})" for k in mine | theirs if mine.get(k) != theirs.get(k)
        ]
        raise UsageError(f"{file} is of other settings: {'; '.join(differences)}; use those, or another --out")


def _flat(task: Record) -> Record:
    """The settings of a cell by name; what is younger than the cell, and is not in it, is as by default.

    Its own rate is among them, the list that it was chosen from is not: rates may be added to a comparison.
    """
    study = json.loads(json.dumps(dataclasses.asdict(Study("")))) | task["study"]
    if study["encoder"] is not None:
        study["encoder"] = own.full_name(study["encoder"])  # flags.yaml has the whole path of what was typed in part
    flat = {**study, **task["row"], **{k: v for k, v in task.items() if k not in ("study", "row")}}
    return {name: value for name, value in flat.items() if name != "search_lr"}


@dataclass(frozen=True)
class _Chosen:
    lr: float | None
    budget: str
    failed: str | None = None
    edge: str = ""


def _search(study: Study, rows: Sequence[Row], settings: Settings, images: int) -> dict[str, _Chosen]:
    """For every row the best rate of the common list, on held-out training images."""
    if not study.search_lr:
        return {row.label: _Chosen(None, "1 (default)") for row in rows}
    if len(study.search_lr) == 1:  # nothing to decide
        return {row.label: _Chosen(_rates(study, row)[0], "1 (given)") for row in rows}
    trial = min(SEARCH_IMAGES, 4 * images // 5)
    rates = {row.label: _rates(study, row) for row in rows}
    parts = {row.label: [_part(study, row, SEARCH_SEED, lr, trial) for lr in rates[row.label]] for row in rows}
    every = [part for mine in parts.values() for part in mine]
    done = dict(zip([part.name for part in every], _run(every, settings), strict=True))
    result: dict[str, _Chosen] = {}
    for label, mine in parts.items():
        records = [done[part.name] for part in mine]
        accuracies = [(r["accuracy"], lr) for r, lr in zip(records, rates[label], strict=True) if FAILED not in r]
        epochs = f"{study.search_epochs} epoch{'s' if study.search_epochs != 1 else ''}"
        budget = f"{len(study.search_lr)} rates × {epochs} on {trial:,} images"
        if accuracies:
            best = max(accuracies, key=lambda pair: pair[0])[1]
            edge = {min(rates[label]): "smallest", max(rates[label]): "largest"}.get(best, "")
            result[label] = _Chosen(best, budget, edge=edge)
        else:
            result[label] = _Chosen(None, budget, f"at every rate of the search: {records[0][FAILED]}")
    return result


def _rates(study: Study, row: Row) -> list[float]:
    """The common list; for a rule that declares a rate of its own, times that rate over the data set's default."""
    own = get_rule(row.rule, dict(row.options)).lr
    factor = 1.0 if own is None else own / spec_for(study.data).lr
    return [float(f"{factor * lr:.6g}") for lr in study.search_lr]


# What follows runs in a cell's own process.


def _cell(settings: Settings, task: Record, module: str) -> Record:
    with suppress(ImportError):  # a rule that a program registered, where that program can be imported
        importlib.import_module(module)
    study = Study.of(task["study"])
    row = Row(**task["row"])
    part = _part(study, row, task["seed"], task["lr"], task["trial"])
    config = _config(study, row, settings, settings.out / "runs" / part.name)
    config = replace(config, seed=task["seed"])
    if task["lr"] is not None:
        config = replace(config, lr=task["lr"])
    if task["trial"] is None:
        run = train(config, print)
        return _measured(run, study, row)
    run = train(replace(config, epochs=study.search_epochs, limit_images=task["trial"]), print)
    return _held_out(run, study)


def _config(study: Study, row: Row, settings: Settings, out: Path) -> TrainConfig:
    given: Record = {
        "rule": row.rule,
        "rule_options": tuple(f"{k}={json.dumps(v)}" for k, v in row.options.items()),
        "data": study.data,
        "data_root": settings.data_root,
        "epochs": study.epochs,
        "width": study.width,
        "encoder": study.encoder,
        "encoder_options": study.encoder_options,
        "views": study.views,
        "limit_images": study.limit_images,
        "batch_size": study.batch_size,
        "patches": study.patches,
        "precision": study.precision,
        "image_size": study.image_size,
        "skip_bad": study.skip_bad,
        "threads": settings.threads_per_job(),
        "out": out,
        "resume": True,
        "probe_every": 0,
    }
    return TrainConfig(**(given | tuples(row.changes)))


def _measured(run: Run, study: Study, row: Row) -> Record:
    facts = _training_facts(run)
    probed = replace(run, config=replace(run.config, patches=_probe_patches(run, study)))
    images, test = run.images("train", limit=study.probe_images), run.images("test")
    options = evaluate.ProbeOptions(study.protocol, study.labels, device="auto")
    result = evaluate.probe_encoder(probed, run.encoder(), images, test, options, row.label)
    record: Record = {
        "row": row.label,
        "seed": run.config.seed,
        **facts,
        "probe": [r[1:] for r in evaluate.probe_rows({row.label: result})],
        "protocol": result.protocol,
        "facts": list(dict.fromkeys([*images.facts, *test.facts])),
        "align": [],
        "config": json.loads(json.dumps(dataclasses.asdict(run.config))),
    }
    if failed := manifest_of(run.path, "rule").get("failed_check"):
        record["failed_check"] = f"{failed}; it was trained all the same"
    if study.align_batches and run.config.epochs and descends(row):
        try:
            align = evaluate.align_run(run, evaluate.AlignOptions(batches=study.align_batches))
        except UsageError as error:  # a rule without a last-layer loss, say: no fault of its accuracy
            record["align_note"] = f"no alignment: {error}"
        else:
            rows = [r for r in evaluate.align_rows(align) if r[-1] == "weights" and r[3] == "cosine"]
            record |= {
                "align": [[r[2], *r[4:7]] for r in rows],
                "nulls": [r[8] for r in rows],
                "align_protocol": align.protocol.removeprefix(evaluate.with_facts("", test)),
            }
    return record


def _probe_patches(run: Run, study: Study) -> tuple[int | None, ...] | None:
    """The common ones, whatever patches the row's training had."""
    c = run.config
    return study.patches or default_patches(str(c.encoder["name"]), c.image_size)


def _training_facts(run: Run) -> Record:
    """Speed, memory and sizes; kept, because a cell that was stopped later measures them no more."""
    file = run.path / "facts.json"
    if file.is_file():
        return json.loads(file.read_text(encoding="utf-8"))
    peak = peak_memory()
    gpu = peak_gpu_memory()
    learner = run.learner()
    last = (read(run.path) or [{}])[-1]
    seconds, step = float(last.get("seconds") or 0), int(last.get("step") or 0)
    manifest = json.loads((run.path / "manifest.json").read_text(encoding="utf-8"))
    facts: Record = {
        "images": manifest["data"]["images"],
        "images_per_second": round(step * run.config.batch_size / seconds, 1) if seconds else None,
        "seconds": seconds,
        "peak_memory_mib": round(peak, 1),
        "gpu_memory_mib": round(gpu, 1),
        "parameters_encoder": sum(p.numel() for p in learner.encoder.parameters()),
        "parameters_rule": sum(p.numel() for p in learner.projections.parameters()),
    }
    if clipped := [float(value) for name, value in last.items() if name.startswith("saturated_") and value]:
        facts["saturated"] = sum(clipped) / len(clipped)
    write_text(file, json.dumps(facts) + "\n")
    return facts


def _held_out(run: Run, study: Study) -> Record:
    """Accuracy on training images that were not trained on; labels of a rule that uses them are not judged on."""
    images = run.images("train")
    order = shuffled(len(images))
    if train_split(study.data) == "train":
        n = run.config.limit_images or 0
        fit, held = order[:n], order[n : min(n + HELD_OUT, study.limit_images or len(order))]
    else:  # what is trained on lies apart and has no labels
        n = 4 * len(order) // 5
        fit, held = order[:n], order[n:]
    fit = fit[: study.probe_images]
    patches, normalise = _probe_patches(run, study), run.normalise()
    parts = [images.subset(torch.as_tensor(np.sort(index))) for index in (fit, held)]
    z = [features(run.encoder(), part, patches=patches, normalise=normalise) for part in parts]
    result = fast_probe(z[0], parts[0].labels, z[1], parts[1].labels, layers=("all",), knn=False)
    return {
        "accuracy": round(result.rows[0].accuracy, 3),
        "lr": run.config.lr,
        "seconds": float((read(run.path) or [{}])[-1].get("seconds") or 0),
        "protocol": f"{len(held):,} held-out training images, no test image. {result.protocol}",
    }
