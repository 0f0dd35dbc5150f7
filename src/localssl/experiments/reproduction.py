"""The record of what was reproduced: python -m localssl.experiments.reproduction docs writes docs/reproduction.md.

Numbers and commits are read from docs/results; what the paper claims, dates, and what the rest needs stand here.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from localssl import markdown
from localssl.experiments import published
from localssl.experiments.published import Number
from localssl.experiments.tables import TABLE2
from localssl.system.files import write_text

Finding = tuple[str, str]  # ours, verdict
GPU = "a GPU and the data set; [hours by machine](what-it-would-take.md)"


@dataclass(frozen=True)
class Entry:
    """A figure or a table of the paper.

    Args:
        name: in the paper.
        claim: what it shows there.
        command: that makes ours.
        scale: of ours.
        date: when ours was made; "": it was not.
        commit: from the cells of this folder of docs/results, or the commit itself.
        found: ours and the verdict, from docs/results.
        missing: what is needed for the rest; "": nothing.
    """

    name: str
    claim: str
    command: str
    scale: str = ""
    date: str = ""
    commit: str = ""
    found: Callable[[Path], Finding] = lambda results: ("", "not run")
    missing: str = ""


class Curves:
    """Means by line, layer and what else the first columns of a CSV of docs/results say."""

    def __init__(self, path: Path):
        self.rows = read(path)

    def of(self, line: str, layers: Iterable[int], **where: str) -> list[float]:
        """The means of a line in these layers."""
        found = {
            int(row["layer"]): float(row["mean"])
            for row in self.rows
            if row["line"] == line and all(row[key] == value for key, value in where.items())
        }
        return [found[layer] for layer in layers]


def read(path: Path) -> list[dict[str, str]]:
    """A CSV of docs/results, without its first line, which says what was measured."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return list(csv.DictReader(line for line in lines if not line.startswith("#")))


def fig2(results: Path) -> Finding:
    """Theorem 3.1 and its conditions dropped."""
    curves, panel = Curves(results / "theory" / "fig2.csv"), {"panel": "6 layers of 128 units"}
    optimal = curves.of("optimal B, orthonormal W", range(1, 7), **panel)
    dropped = {
        name: curves.of(line, range(1, 6), **panel)
        for name, line in (
            ("default W", "optimal B, default W"),
            ("ReLU", "optimal B, ReLU, orthonormal W"),
            ("fixed random B", "fixed random B, orthonormal W"),
        )
    }
    holds = min(optimal) == 1 and all(max(line) < 1 for line in dropped.values())
    rest = "; ".join(f"{name} {_range(line)}" for name, line in dropped.items())
    return f"optimal B {_range(optimal)} in every layer; below the last layer {rest}", _verdict(holds)


def fig3a(results: Path) -> Finding:
    """Theorem 3.3."""
    curves, layers = Curves(results / "theory" / "fig3a.csv"), range(1, 6)
    parts, holds = [], True
    for f in ("linear", "softplus"):
        own, last = (curves.of(line, layers, panel=f"f {f}") for line in ("layerwise", "direct feedback"))
        holds = holds and above(last, own) == 5
        parts.append(f"{f}: {_range(last)} with, {_range(own)} without, above in {above(last, own)} of 5 layers")
    return "; ".join(parts), _verdict(holds)


def fig3b(results: Path) -> Finding:
    """A ReLU network that is trained."""
    curves, layers = Curves(results / "fig3b" / "fig3b.csv"), range(1, 6)
    own, last, fixed, best = (
        curves.of(line, layers, epoch="20")
        for line in ("local-SSL", "local-SSL DFB", "DFB, fixed random B", "optimum, solved at DFB's encoder and gates")
    )
    nearer = above(last, own)
    said = (
        f"direct feedback {_range(last)}, above layerwise in {nearer} of 5 layers, above a fixed random B in "
        f"{above(last, fixed)}; the solved optimum above it in {above(best, last)}, by {_range(_minus(best, last))}"
    )
    return said, _verdict(nearer == 5, f"in part: direct feedback is nearer in {nearer} of 5 layers; one seed")


def fig4b(results: Path) -> Finding:
    """Linear convolutions."""
    curves, layers = Curves(results / "theory" / "fig4b.csv"), range(1, 4)
    shared, spatial, further = [], [], []
    for panel in ("default weights", "orthonormal weights"):
        shared += curves.of("layerwise, one B for all positions", layers, panel=panel)
        spatial += curves.of("layerwise, spatially dependent B", layers, panel=panel)
        further += curves.of("direct feedback, spatially dependent B", layers, panel=panel)
    gains = _minus(further, spatial)
    said = (
        f"spatial dependence {_range(spatial)} against {_range(shared)}, above in {above(spatial, shared)} of 6 "
        f"(3 layers, 2 kinds of weights); direct feedback on top {_range(gains)}"
    )
    some = sum(gain > 0.01 for gain in gains)
    return said, _verdict(some == 6, f"in part: direct feedback adds more than 0.01 in {some} of 6")


def fig4c(results: Path) -> Finding:
    """A VGG that is trained."""
    curves, layers = Curves(results / "fig4c" / "fig4c.csv"), range(1, 6)
    shared, own, last = (curves.of(line, layers) for line in ("no spatial dependence (clapp)", "clapp++", "clapp++dfb"))
    spatial, feedback = above(own, shared), above(last, own)
    said = (
        f"`clapp` {_range(shared)}, `clapp++` {_range(own)}, above it in {spatial} of 5 layers; `clapp++dfb` "
        f"{_range(last)}, above `clapp++` in {feedback} of 5"
    )
    return said, _verdict(spatial == feedback == 5, "not seen at this scale")


def fig_a2(results: Path) -> Finding:
    """The same at several stages."""
    curves, layers = Curves(results / "figA2" / "figA2.csv"), range(1, 6)
    counts = {
        epoch: above(*(curves.of(line, layers, epochs=epoch) for line in ("clapp++dfb", "clapp++")))
        for epoch in ("1", "2", "4", "8")
    }
    said = ", ".join(f"{count} after {epoch}" for epoch, count in counts.items())
    verdict = _verdict(all(count == 5 for count in counts.values()), "not seen at this scale")
    return f"layers of 5 in which `clapp++dfb` is above `clapp++`: {said} epochs", verdict


def fig_a1(results: Path) -> Finding:
    """B of restricted rank."""
    curves = Curves(results / "theory" / "figA1.csv")
    means = [
        sum(curves.of(f"rank {rank}", range(1, 6), panel="five random starts")) / 5 for rank in (1, 2, 4, 8, 16, 32)
    ]
    holds = all(low <= high for low, high in pairwise(means))
    said = " ".join(f"{mean:.2f}" for mean in means)
    return f"mean of layers 1 to 5 at ranks 1, 2, 4, 8, 16, 32: {said}", _verdict(holds)


ENTRIES = (
    Entry("Figure 1E", "accuracy of the family beside others' rules", "reproduce fig5", missing=GPU),
    Entry(
        "Figure 2",
        "at the optimal B an orthonormal linear network's updates are backpropagation's; with a condition dropped not",
        "reproduce fig2",
        "the paper's",
        "2026-11-25",
        "b4af4a3",
        fig2,
    ),
    Entry(
        "Figure 3A",
        "direct feedback raises alignment in a shrinking linear network, f linear and softplus",
        "reproduce fig3a",
        "the paper's",
        "2026-11-25",
        "b4af4a3",
        fig3a,
    ),
    Entry(
        "Figure 3B",
        "in a ReLU network that is trained, direct feedback is nearer than layerwise, near the optimum, and far above "
        "a fixed random B",
        "reproduce fig3b --seeds 1",
        "the paper's sizes, one seed",
        "2026-11-25",
        "fig3b",
        fig3b,
        "more seeds: an hour a cell on one core",
    ),
    Entry(
        "Figure 4B",
        "in linear convolutions spatial dependence raises alignment, direct feedback further",
        "reproduce fig4b",
        "the paper's",
        "2026-11-25",
        "2f9d435",
        fig4b,
    ),
    Entry(
        "Figure 4C",
        "the same in the VGG on STL-10 after 100 epochs",
        "reproduce fig4c --seeds 1",
        "CIFAR-10, width 0.125, 8 epochs, one seed",
        "2026-11-25",
        "fig4c",
        fig4c,
        f"`--scale paper`: {GPU}",
    ),
    Entry("Figure 5", "from CLAPP to CLAPP++, change by change, on STL-10", "reproduce fig5", missing=GPU),
    Entry(
        "Figure A1",
        "alignment falls with the rank of B",
        "reproduce figA1",
        "the paper's",
        "2026-11-25",
        "79a4d7e",
        fig_a1,
    ),
    Entry(
        "Figure A2",
        "direct feedback raises alignment at all stages of training",
        "reproduce figA2 --seeds 1",
        "as Figure 4C, 1 to 8 epochs",
        "2026-11-25",
        "fig4c",
        fig_a2,
        f"`--scale paper`: {GPU}",
    ),
    Entry(
        "Table 2",
        "accuracy of every rule",
        "reproduce table2 --scale kept",
        "CIFAR-10, two seeds: all at width 0.125, four epochs of 10,000 images; the family at 0.25, two to four epochs",
        "2026-11-29",
        "compare-cifar10",
        lambda results: ("by row below", "not comparable at this scale"),
        f"`localssl reproduce table2 --scale paper`: {GPU}",
    ),
    Entry("Table A3", "predictive coding beside backpropagation", "reproduce tableA3", missing=GPU),
    Entry(
        "Table A4", "T and η_h of predictive coding, searched", "reproduce tableA4", missing="8 core-hours, by count"
    ),
)


def overview(results: Path) -> str:
    """Every figure and table in a row."""
    head = ("paper", "what it shows", "ours", "scale of ours", "command", "date", "commit", "verdict", "for the rest")
    rows: list[tuple[str, ...]] = []
    for e in ENTRIES:
        ours, verdict = e.found(results)
        command = f"`localssl {e.command}`"
        rows.append((e.name, e.claim, ours, e.scale, command, e.date, _commit(results, e.commit), verdict, e.missing))
    return markdown.table(head, rows)


def in_short(results: Path) -> str:
    """How many figures and tables have which verdict, and which they are."""
    found: dict[str, list[str]] = {}
    for e in ENTRIES:
        found.setdefault(e.found(results)[1].partition(":")[0], []).append(e.name)
    kinds = sorted(found.items(), key=lambda kind: kind[0].startswith("not"))
    said = "; ".join(f"{verdict} {len(names)} ({', '.join(names)})" for verdict, names in kinds)
    return f"In short, of {len(ENTRIES)} figures and tables with numbers: {said}."


def accuracies(results: Path) -> str:
    """Tables 2 and A3, number by number: ours of docs/results/cifar10, else of docs/results/table2 and tableA3."""
    rows: list[tuple[str, ...]] = []
    for title, numbers in (("Table 2", published.TABLE2), ("Table A3", published.TABLE_A3)):
        kept = _kept(results, title.replace("Table ", "table"))
        for row, by_data in numbers.items():
            rule = TABLE2[row][0] if title == "Table 2" else ""
            for data, number in by_data.items():
                longest = _beside(results, rule, data, number)
                found = longest if longest[0] else kept.get((row, data), longest)
                rows.append((title, row, data, str(number), *found))
    return markdown.table(("table", "row", "data", "paper", "ours", "verdict"), rows)


def peers(results: Path) -> str:
    """Other rules in their own publications' settings."""
    ff = 100 - float(read(results / "ff-mnist" / "ff-mnist.csv")[0]["error_test"])
    scff = float(read(results / "scff-mnist" / "scff-mnist.csv")[0]["accuracy"])
    rows: list[tuple[str, ...]] = []
    for rule, ours, name, scale in (
        ("ff-supervised", ff, "ff-mnist", "the published sizes (50,000 images, 100 epochs), one seed"),
        ("scff", scff, "scff-mnist", "the published sizes (20 + 9 epochs), one seed"),
    ):
        number, command, commit = published.PEERS[rule]["mnist"], f"`localssl reproduce {name}`", _commit(results, name)
        verdict = f"{ours - number.accuracy:+.2f} points, one seed".replace("-", "−")
        rows.append((f"`{rule}`", "mnist", str(number), f"{ours:.2f}", scale, command, "2026-11-25", commit, verdict))
    head = ("rule", "data", "published", "ours", "scale of ours", "command", "date", "commit", "verdict")
    return markdown.table(head, rows)


def page(results: Path) -> str:
    """The whole page."""
    return f"""# Reproduction record

Made by `make docs` (`python -m localssl.experiments.reproduction docs`) from [the results](results.md) that lie beside
it; a test makes it again and compares.

{in_short(results)}

Verdicts: *reproduced*, the paper's claim holds in every number that was measured; *in part*, where it does not is
said; *not seen at this scale* and *not comparable at this scale*, the runs here are too small to confirm or to refute
it; *not run*. Cosines are with backpropagation's update. Commit: the one that the runs noted, or, for the theory's
figures, that the numbers came with. Where each thing is in the code: [from the paper to the
code](paper.md). `--data-root` says where the data are; where MNIST is not found, figures 2, 3A, 3B and 4B take the
embedded digits, and say so first and in what they write: those are other numbers.

## Figures and tables

{overview(results)}

Equations, theorems and Table 1 are checked by tests and by `localssl theory`: [the theory](theory.md), [the
rules](rules.md). Table A1 (the encoder) and Table A2 (patches) are settings, and the library's defaults. What
the paper's section 5 says of memory, one context vector in place of one a layer between the two views, is
[counted](engine.md#memory), beside what a batch holds; the peaks that were measured are those of batches.

## Accuracies, number by number

Ours: CIFAR-10, the longest of the runs of [the results](results.md#cifar-10-width-025-two-and-four-epochs), mean of the
seeds, fast probe; a rule that is not among them from [the comparison of
all](compare.md#every-rule-on-mnist-and-cifar-10), mean ± half of the 95 % interval over two seeds. The verdict says in
what a run differs from the paper's; where it does, the two numbers cannot be compared.

{accuracies(results)}

## Other rules in their own settings

{peers(results)}

The others' own settings (`localssl reproduce` lists them) were not run: they need {GPU}.
"""


def above(ones: list[float], others: list[float]) -> int:
    """In how many places the first is larger."""
    return sum(one > other for one, other in zip(ones, others, strict=True))


def _beside(results: Path, rule: str, data: str, number: Number) -> Finding:
    """Our accuracies of a rule where there are any, and how they may be compared."""
    cells = sorted((results / data / "cells").glob(f"{rule}-s*-e*.json")) if rule else []
    if not cells:
        return "", f"not run; {number.never}" if number.never else "not run"
    last = cells[-1].stem.rpartition("-e")[2]
    kept = [json.loads(cell.read_text(encoding="utf-8")) for cell in cells if cell.stem.endswith(f"-e{last}")]
    ours = [cell["linear"]["all"] for cell in kept]
    found = published.differences(number, kept[0]["config"], "fast", kept[0]["notes"])
    return f"{sum(ours) / len(ours):.2f} ({len(ours)} seeds)", published.mark(number, ours, found)


def _kept(results: Path, name: str) -> dict[tuple[str, str], Finding]:
    """Ours and the mark by row and data, of a table that ``localssl reproduce`` made; none where it was not."""
    file = results / name / f"{name}.csv"
    if not file.is_file():
        return {}
    return {(row["published as"], row["data"]): (row["ours (%)"], row["mark"]) for row in read(file)}


def _commit(results: Path, commit: str) -> str:
    """Commits that a folder's cells noted, or the commit itself."""
    files = (results / commit / "cells").glob("*.json") if commit else []
    noted = {str(json.loads(file.read_text(encoding="utf-8"))["environment"]["git"]) for file in files}
    return ", ".join(name[:7] for name in sorted(noted)) or commit


def _verdict(holds: bool, otherwise: str = "not reproduced") -> str:
    return "reproduced" if holds else otherwise


def _minus(ones: list[float], others: list[float]) -> list[float]:
    return [one - other for one, other in zip(ones, others, strict=True)]


def _range(values: list[float]) -> str:
    low, high = (f"{round(value, 2) + 0:.2f}".replace("-", "−") for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def main(folder: Path) -> None:
    """Write the page into the documentation's folder."""
    write_text(folder / "reproduction.md", page(folder / "results"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
