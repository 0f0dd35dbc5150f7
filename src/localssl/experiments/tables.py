"""Table 2, Table A3 and Figure 5: the published number beside ours, and whether the two can be compared."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from localssl import evaluate
from localssl.data.sources import open_images
from localssl.data.specs import default_patches, spec_for
from localssl.data.views import PATCHES
from localssl.errors import UsageError
from localssl.experiments import published, summary, table_a4
from localssl.experiments.cells import Settings
from localssl.experiments.comparison import Compared, compare
from localssl.experiments.rows import Row, Study, of_rule
from localssl.report import ablation_figure, comparison
from localssl.report.comparison import Interval, plus_minus
from localssl.report.tables import show
from localssl.runs.run import get_rule, train_split
from localssl.stats import t_interval

CPU = Study("cifar10", epochs=2, width=0.25, probe_images=20_000)
PAPER = Study("", epochs=published.EPOCHS, batch_size=published.BATCH, protocol="paper")
SEEDS = {"cpu": 2, "kept": 2, "paper": 4}
PAPER_LR = {"lr": published.LR}
OF_FIG5 = "stl10"  # the data of the paper's Figures 5 and 1E
TABLE2 = {  # the paper's row: the rule
    "BP-CLAPP++": ("bp-clapp++", {}),
    "BP-InfoNCE": ("bp-infonce", {}),
    "Naive CLAPP DFA": ("dfa", {}),
    "Naive CLAPP Predictive Coding": ("ipc", {}),
    "CLAPP": ("clapp-illing", {}),
    "LPL": ("lpl", {}),
    "Stochastic FF": ("stochastic-ff", {}),
    "SCFF": ("scff", {}),
    "CLAPP++ (no 2D spatial dependence)": ("clapp", {}),
    "CLAPP++": ("clapp++", {}),
    "CLAPP++DFB": ("clapp++dfb", {}),
    "CLAPP++both": ("clapp++both", {}),
}
_CE, _CLAPP, _LPL = (  # Table A4
    {
        "epochs": epochs,
        "batch_size": batch,
        "lr": lr,
        "weight_decay": decay,
        "optimizer": "adam-l2" if decay else "adam",
    }
    for (epochs, batch, lr), decay in (
        (published.A4_CE, published.A4_DECAY),
        (published.A4_CLAPP, 0.0),
        (published.A4_LPL, published.A4_DECAY),
    )
)
TABLE_A3: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "cross-entropy, BP": ("bp", {}, _CE),
    "cross-entropy, PC": ("ipc", {"objective": "ce"}, _CE),
    "CLAPP objective, BP": ("bp-clapp++", {}, _CLAPP),
    "CLAPP objective, PC": ("ipc", {}, _CLAPP),
    "LPL objective, BP": ("bp-lpl", {}, _LPL),
    "LPL objective, PC": ("ipc", {"objective": "lpl", "eta_h": 0.01}, _LPL),  # at 0.1, the others', it ends in NaN
}


def table2(settings: Settings) -> None:
    """Table 2: every rule's accuracy beside the published one (CIFAR-10 at width 0.25; --scale paper: all three)."""
    changes = PAPER_LR if settings.scale == "paper" else {}
    rows = {name: of_rule(rule, options, changes) for name, (rule, options) in TABLE2.items()}
    _beside("table2", rows, published.TABLE2, ("cifar10", "stl10", "tiny-imagenet"), settings)


def table_a3(settings: Settings) -> None:
    """Table A3: backpropagation and predictive coding of three objectives, beside the published accuracies.

    T and eta_h are the rule's own (of LPL's objective eta_h 0.01, of Table A4's grid), or those that tableA4 found
    best, where its grid lies in the folder beside.
    """
    paper, best = settings.scale == "paper", table_a4.winners(settings.out.parent / "tableA4")
    rows: dict[str, Row] = {}
    for name, (rule, options, own) in TABLE_A3.items():
        searched = best.get(options.get("objective", "clapp"), {}) if rule == "ipc" else {}
        rows[name] = of_rule(rule, options | searched, own if paper else {})
    _beside("tableA3", rows, published.TABLE_A3, ("cifar10", "stl10"), settings)


def _studies(data: Sequence[str], settings: Settings) -> dict[str, tuple[Study, Settings]]:
    """What to run where: by data set at the paper's scale, else on CIFAR-10 or as the comparison that is there.

    Raises:
        UsageError: the folder holds a comparison of other settings, or, where it is asked for, none; a data set of the
            paper's scale is missing.
    """
    if settings.scale == "paper":
        studies = {d: (replace(PAPER, data=d), replace(settings, out=settings.out / "paper" / d)) for d in data}
        for study, where in studies.values():
            _open(study, where)
        return studies
    found = _stored(settings.out)
    if settings.scale == "kept" and found is None:
        raise UsageError(f"--scale kept: {settings.out} holds no comparison; make one with localssl compare --out")
    if settings.scale == "cpu" and found not in (None, CPU):
        mine, theirs = asdict(CPU), asdict(found)
        differences = ", ".join(f"{k} {theirs[k]!r} for {mine[k]!r}" for k in mine if mine[k] != theirs[k])
        raise UsageError(
            f"{settings.out} holds a comparison of other settings ({differences}); use another --out, or --scale kept "
            f"to go on with those"
        )
    study = found or CPU
    return {study.data: (study, settings)}


def _open(study: Study, where: Settings) -> None:
    """See that every part of a data set is there, unless cells are, for which it was: one data set may take days.

    Raises:
        UsageError: it is missing or damaged.
    """
    if not any((where.out / "cells").glob("*.json")):
        for split in dict.fromkeys((train_split(study.data), "train", "test")):
            open_images(study.data, split, root=where.data_root, limit=1)


def _stored(out: Path) -> Study | None:
    """The settings of the comparison in a folder; rates may have been added to it, the longest list counts."""
    texts = (file.read_text(encoding="utf-8") for file in sorted((out / "cells").glob("*.json")))
    found = [Study.of(json.loads(text)["task"][0]["study"]) for text in texts]
    return max(found, key=lambda study: len(study.search_lr), default=None)


def _known(rows: Mapping[str, Row]) -> dict[str, Row]:
    """The rows whose rule is there; the others are said."""
    found: dict[str, Row] = {}
    for name, row in rows.items():
        try:
            get_rule(row.rule, dict(row.options))
        except UsageError as error:
            print(f"row {name!r} left out: {str(error).split(':')[0]}", flush=True)
        else:
            found[name] = row
    return found


def _compared(
    rows: Mapping[str, Mapping[str, Row]], data: Sequence[str], settings: Settings
) -> dict[str, tuple[Study, Settings, list[Compared]]]:
    """By data set; ``rows[data]``, or where it has none ``rows[""]``."""
    studies = _studies(data, settings)
    seeds = settings.seeds or SEEDS[settings.scale]
    for study, where in studies.values():  # the untrained encoders first: images that are damaged are met early
        compare(study, [], where, seeds)
    return {
        d: (study, where, compare(study, _unique(rows.get(d, rows[""]).values()), where, seeds))
        for d, (study, where) in studies.items()
    }


def _unique(rows: Any) -> list[Row]:
    return list({row.label: row for row in rows}.values())


def _beside(
    name: str,
    rows: Mapping[str, Row],
    numbers: Mapping[str, Mapping[str, published.Number]],
    data: Sequence[str],
    settings: Settings,
) -> None:
    known = _known(rows)
    with_number = {d: {n: row for n, row in known.items() if d in numbers[n]} for d in data}
    wanted = {"": known, **(with_number if settings.scale == "paper" else {})}
    shown: list[list[str]] = []
    hows: dict[str, str] = {}
    failed: list[comparison.Line] = []
    for d, (study, where, compared) in _compared(wanted, data, settings).items():
        failed += [line for line in summary.write(compared, study, where) if line.failed]
        by_label = {c.row.label: c for c in compared}
        for n in wanted.get(d, known):
            c = by_label[known[n].label]
            number = numbers[n].get(d)
            values = [summary.accuracy(r, "all", study.labels[-1]) for r in c.records]
            mark = verdict(number, values, c, study)
            ours = "failed" if c.failed else plus_minus(t_interval(values))
            shown.append([n, c.row.label, d, "" if number is None else str(number), ours, mark])
            if number is not None:
                hows.setdefault(n, number.how)
        for c in compared:  # without their controls, accuracies say little of what was learnt
            if not c.baseline:
                values = [summary.accuracy(r, "all", study.labels[-1]) for r in c.records]
                shown.append(["", c.row.label, d, "", plus_minus(t_interval(values)), "control"])
    header = ["published as", "rule", "data", "published (%)", "ours (%)", "mark"]
    below = [
        "Ours: linear probe on all blocks, mean ± half of the 95 % t interval over seeds. Reproduced: each mean lies "
        "inside the other's interval.",
        published.BATCHES,
        *(f"{n}: {how}." for n, how in hows.items()),
    ]
    _finish(name, header, shown, below, settings)
    summary.check(failed, settings.out)


def verdict(number: published.Number | None, values: Sequence[float], c: Compared, study: Study) -> str:
    """Whether a row reproduces a published number, in a few words.

    Args:
        number: the published one, or None.
        values: ours, one a seed.
        c, study: the row and the study they are from.
    """
    if c.failed:
        return c.failed
    if number is None:
        return "no published number on these data"
    record = c.records[0]
    budget = study.labels[-1]
    found = published.differences(number, record["config"], study.protocol, record["facts"], budget)
    return published.mark(number, values, found)


def _finish(name: str, header: list[str], rows: list[list[str]], below: list[str], settings: Settings) -> None:
    show(name, header, rows, "\n".join(below), left=2)
    evaluate.to_csv(settings.out / f"{name}.csv", header, [list[object](row) for row in rows], below[0])
    comparison.to_markdown(settings.out / f"{name}.md", header, rows, below)
    print(f"written: {settings.out / name}.csv, {settings.out / name}.md")


@dataclass(frozen=True)
class Bar:
    """One bar of Figure 5: a row of the comparison, which layers are read out, and the bars it is held against."""

    name: str
    row: Row
    layers: str = "all"  # or "last"
    against: tuple[str, ...] = ()
    guided: bool = False  # by the theory: the paper's orange bars


def _bars(study: Study, changes: Mapping[str, Any]) -> list[Bar]:
    spec = spec_for(study.data)
    patches = study.patches or default_patches(study.encoder or spec.encoder, spec.image_size or 32)
    averaged = {"patches": [*patches[:-1], 1000]} if patches else {}  # larger than the map: as large as the map
    illing, clapp = of_rule("clapp-illing", {}, changes), of_rule("clapp", {}, changes)
    pp, dfb, both, bp = (of_rule(rule, {}, changes) for rule in ("clapp++", "clapp++dfb", "clapp++both", "bp-clapp++"))
    patched = replace(clapp, label=f"{clapp.label} {PATCHES}", changes={**changes, "views": PATCHES})
    first, every = "CLAPP, last layer", "CLAPP, all layers"
    last_patches, all_patches = "clapp, patches, last layer", "clapp, patches, all layers"
    last_views, views = "+ SimCLR views, last layer", "+ SimCLR views, all layers"
    spatial, feedback, end = (
        "+ spatial dependence (CLAPP++)",
        "+ direct feedback (CLAPP++DFB)",
        "end to end (BP-CLAPP++)",
    )

    def last(row: Row) -> Row:
        return replace(row, label=f"{row.label} last-averaged", changes={**changes, **averaged})

    return [
        Bar(first, illing, "last"),
        Bar(every, illing, "all", (first,)),
        Bar(last_patches, patched, "last"),
        Bar(all_patches, patched, "all", (last_patches,)),
        Bar(last_views, clapp, "last", (last_patches, first)),
        Bar(views, clapp, "all", (last_views, all_patches, every)),  # both ways in the square of section 4
        Bar(spatial, pp, "all", (views,), True),
        Bar(feedback, dfb, "all", (spatial,), True),
        Bar("both references (CLAPP++both)", both, "all", (spatial,), True),
        Bar(end, bp, "all", (spatial,)),
        Bar("end to end, spatial dependence", of_rule("bp-clapp++", {"spatial": True}, changes), "all", (end,)),
        Bar("CLAPP++, last layer averaged", last(pp), "all", (spatial,)),
        Bar("CLAPP++DFB, last layer averaged", last(dfb), "all", (feedback,)),
    ]


def _steps(mine: Sequence[float], against: Mapping[str, Sequence[float]]) -> list[list[str]]:
    """Differences to other bars, paired by seed, each beside that bar's name; one empty pair where there are none."""
    found = [
        [plus_minus(t_interval([a - b for a, b in zip(mine, theirs, strict=True)]), sign=True), name]
        for name, theirs in against.items()
        if mine and theirs
    ]
    return found or [["", ""]]


def fig5(settings: Settings) -> None:
    """Figures 5 and 1E: from CLAPP to CLAPP++both step by step, paired (CIFAR-10, width 0.25; paper scale: STL-10)."""
    paper = settings.scale == "paper"
    (study, where), *_ = _studies((OF_FIG5,), settings).values()
    bars = _bars(study, PAPER_LR if paper else {})
    known = _known({bar.name: bar.row for bar in bars})
    bars = [bar for bar in bars if bar.name in known]
    compared = compare(study, _unique(known.values()), where, settings.seeds or SEEDS[settings.scale])
    lines = summary.write(compared, study, where)
    by_label = {c.row.label: c for c in compared}
    elsewhere = study.data != OF_FIG5
    control = [summary.accuracy(r, "all", study.labels[-1]) for r in compared[0].records]
    values: dict[str, list[float]] = {}
    rows: list[list[str]] = []
    drawn: list[ablation_figure.Bar] = []
    for bar in bars:
        c = by_label[bar.row.label]
        layer = "all" if bar.layers == "all" or not c.records else summary.blocks(c.records[0])[-1]
        mine = values[bar.name] = [summary.accuracy(r, layer, study.labels[-1]) for r in c.records]
        steps = _steps(mine, {name: values.get(name, []) for name in bar.against})
        numbers = published.FIG5.get(bar.name, {})
        number, other = numbers.get(study.data), numbers.get(OF_FIG5) if elsewhere else None
        ours: Interval | None = t_interval(mine) if mine else None
        mark = "" if number is None else verdict(number, mine, c, study)
        papers = ["" if n is None else str(n) for n in (number, *([other] if elsewhere else []))]
        shown = plus_minus(ours) if ours else "failed"
        rate = f"{c.records[0]['config']['lr']:g}" if c.records else ""
        rows.append([bar.name, c.row.label, rate, *papers, shown, *steps[0], mark])
        rows += [[bar.name, c.row.label, "", *([""] * len(papers)), "", *step, ""] for step in steps[1:]]
        here, there = (None if n is None else (n.accuracy, n.half) for n in (number, other))
        drawn.append(ablation_figure.Bar(bar.name, ours, here, there, bar.guided))
    below = [
        "Ours: linear probe, mean ± half of the 95 % t interval over seeds; step: paired differences, seed by seed, to "
        "the row named beside it.",
        "Last layer, all layers: what the probe reads. Last layer averaged: no spatial dependence in the last layer. "
        f"Control, the encoder left untrained, all layers: {plus_minus(t_interval(control))} %.",
        "Section 4's two changes, patches to SimCLR views and last layer to all layers, are the square of the four "
        "rows of clapp: one rule, its B and negatives (the next sample), the same seeds and budget of rates; only what "
        "the two views of an image are differs, and which layers are read out.",
        "clapp, patches (train --views patches): two patches of an image, one right below the other, a quarter of its "
        "area each, enlarged to its size; they may be mirrored together, colours are left as they are. The original's "
        "are grey and are not enlarged.",
        "CLAPP: clapp-illing, the original's loss, here on patches of SimCLR's colour views; the paper's is on patches "
        "of grey crops. So the step from it to SimCLR views is not from weak to strong ones, and changes the loss, "
        "too: clapp-illing predicts the patch k + 1 rows down its column and, through a matrix of its own, back up; "
        "its negatives are random images, and a coin says whether an image gets the positive or the negative term. "
        "clapp compares an image with its other view; every sample gets both terms.",
        "The paper's Figure 5 prints no numbers: those here stand in its Table 2, two in the text of Appendix B; it "
        "found no effect of spatial dependence in the end-to-end loss nor of its removal from the last layer. CLAPP's "
        "is quoted from Illing 2021.",
        "Paper, STL-10: the paper's numbers on the data of its Figures 5 and 1E; other data than here, so nothing "
        "follows from them for ours."
        if elsewhere
        else "",
        published.BATCHES,
        summary.setting(compared, study),
    ]
    papers = ["published (%)", *(["paper, STL-10: other data (%)"] if elsewhere else [])]
    header = ["step", "rule", "learning rate", *papers, "ours (%)", "step (points)", "against", "mark"]
    _finish("fig5", header, rows, list(filter(None, below)), settings)
    caption = f"{summary.setting(compared, study)} Linear probe, {study.protocol} protocol."
    print(f"written: {ablation_figure.draw(drawn, caption, settings.out / 'fig5.png')}")
    summary.check([line for line in lines if line.failed], where.out)
