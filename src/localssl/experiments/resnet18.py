"""resnet18 in four blocks against vgg6 of the same cost: local rules and end to end, CIFAR-10 at a CPU's scale.

Two comparisons, each in a folder of its own, and one table of both. vgg6 is so wide that a forward pass of either takes
37 million multiply-adds; a readout has the patches that Table A2 has for maps of that size, in both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from localssl import evaluate
from localssl.experiments import summary
from localssl.experiments.cells import Settings
from localssl.experiments.comparison import Compared, compare
from localssl.experiments.rows import Study, named
from localssl.report.comparison import Interval, Line, count, plus_minus, to_markdown
from localssl.report.tables import show
from localssl.stats import t_interval

END_TO_END = "bp-clapp++"
RULES = ("clapp++", "clapp++dfb", END_TO_END)
SHARED = Study("cifar10", epochs=3, limit_images=20_000, probe_images=10_000, align_batches=4)
STUDIES = {
    "resnet18": replace(SHARED, encoder="torchvision:resnet18", encoder_options=("blocks=4",), patches=(2, 2, 1, 1)),
    "vgg6": replace(SHARED, width=0.175),
}
HEADER = ["encoder", "rule", "quantity", "block", "mean", "low", "high", "seeds"]


def run(settings: Settings) -> None:
    """resnet18 in 4 blocks against vgg6 of its cost, local and end to end (CIFAR-10; 64 core-minutes, by count)."""
    rows: list[list[str]] = []
    long: list[list[object]] = []
    below: list[str] = []
    failed: list[Line] = []
    for name, study in STUDIES.items():
        where = replace(settings, out=settings.out / name)
        compared = compare(study, named(RULES, study.data), where, settings.seeds or 2)
        lines = summary.write(compared, study, where)
        against = _against(compared)
        rows += [_row(name, line, against) for line in lines]
        long += [line for found in lines for line in _long(name, found, against)]
        notes = summary.notes(compared, study, where)
        below += [f"{name}: {notes[0]}", f"{name}: {notes[1]}"]
        failed += [line for line in lines if line.failed]
    below.append(
        f"Above untrained, beside {END_TO_END}: paired differences, same encoder and seed. Batch norms of an untrained "
        f"resnet18 take the statistics of training images. Costs: docs/networks.md."
    )
    header = ["encoder", "rule", "accuracy (%)", "above untrained (points)", f"beside {END_TO_END} (points)"]
    header += ["accuracy of block 1, 2, … (%)", "cosine with BP", "parameters of the encoder", "of the rule"]
    show("resnet18 in 4 blocks against vgg6", header, rows, "\n".join(below), left=2)
    evaluate.to_csv(settings.out / "resnet18.csv", HEADER, long, " ".join(below))
    to_markdown(settings.out / "resnet18.md", header, rows, below)
    print(f"written: {settings.out / 'resnet18.csv'}, {settings.out / 'resnet18.md'}")
    summary.check(failed, settings.out)


def _against(compared: Sequence[Compared]) -> dict[str, Interval]:
    """By rule the differences to end to end, seed by seed."""
    values = {c.row.label: [summary.accuracy(r, "all", "all") for r in c.records] for c in compared}
    other = values.pop(END_TO_END)
    return {
        label: t_interval([a - b for a, b in zip(mine, other, strict=True)])
        for label, mine in values.items()
        if mine and other
    }


def _row(name: str, line: Line, against: dict[str, Interval]) -> list[str]:
    """A line of the table to read."""
    accuracy = "failed" if line.failed else plus_minus(line.accuracy["all"])
    blocks = " ".join(f"{mean:.1f}" for mean, _, _ in line.blocks.values())
    cosines = " ".join(f"{mean:.2f}".replace("-", "−") for mean, _, _ in line.align.values())
    gains = [plus_minus(found, sign=True) for found in (line.gain.get("all"), against.get(line.label))]
    return [
        name,
        line.label,
        accuracy,
        *gains,
        blocks,
        cosines,
        count(line.parameters_encoder),
        count(line.parameters_rule),
    ]


def _long(name: str, line: Line, against: dict[str, Interval]) -> list[list[object]]:
    """The same for programs, a line a quantity and block; nothing of a row that failed."""
    found: list[tuple[str, str, Interval | None]] = [
        ("accuracy", "all", line.accuracy.get("all")),
        ("above untrained", "all", line.gain.get("all")),
        (f"beside {END_TO_END}", "all", against.get(line.label)),
        *(("accuracy", block, value) for block, value in line.blocks.items()),
        *(("cosine", block, value) for block, value in line.align.items()),
    ]
    return [
        [name, line.label, quantity, block, *("" if math.isnan(v) else round(v, 4) for v in value), line.seeds]
        for quantity, block, value in found
        if value is not None
    ]
