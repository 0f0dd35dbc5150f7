"""The record of what was reproduced: python -m localssl.experiments.reproduction docs writes docs/reproduction.md.

Numbers and commits are read from docs/results; what the paper claims, dates, and what the rest needs stand here. In
docs/paper.md it writes where each number is.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from localssl import markdown
from localssl.experiments import findings, recorded, table_a4
from localssl.experiments.findings import GPU, NOT_RUN, Finding
from localssl.system.files import write_text

ONLY, RECORD = "command only", "[the record](reproduction.md#figures-and-tables)"  # in paper.md: not run; run


@dataclass(frozen=True)
class Entry:
    """A figure or a table of the paper.

    Args:
        name: in the paper.
        claim: what it shows there.
        command: that makes ours.
        scale: of ours; "": as the cells of the folder ``commit`` say.
        date: when ours was made.
        commit: from the cells of this folder of docs/results, or the commit itself.
        found: ours and the verdict, from docs/results. Where it says that nothing was run, scale, date and commit are
            not shown.
        missing: what is needed for the rest; "": nothing.
    """

    name: str
    claim: str
    command: str
    scale: str = ""
    date: str = ""
    commit: str = ""
    found: Callable[[Path], Finding] = lambda results: NOT_RUN
    missing: str = ""


ENTRIES = (
    Entry(
        "Figure 1E",
        "a summary: on STL-10 the theory's changes improve local SSL; `fig5` draws of it what Figure 5 has",
        "reproduce fig5 --scale kept --seeds 4",
        "",
        "2026-11-30",
        "fig5",
        findings.fig1e,
        f"`localssl reproduce fig5 --scale paper`: {GPU}",
    ),
    Entry(
        "Figure 2",
        "at the optimal B an orthonormal linear network's updates are backpropagation's; with a condition dropped not",
        "reproduce fig2",
        "the paper's",
        "2026-11-25",
        "b4af4a3",
        findings.fig2,
    ),
    Entry(
        "Figure 3A",
        "direct feedback raises alignment in a shrinking linear network, f linear and softplus",
        "reproduce fig3a",
        "the paper's",
        "2026-11-25",
        "b4af4a3",
        findings.fig3a,
    ),
    Entry(
        "Figure 3B",
        "in a ReLU network that is trained, direct feedback is nearer than layerwise, near the optimum, and far above "
        "a fixed random B",
        "reproduce fig3b --seeds 1",
        "the paper's sizes, one seed",
        "2026-11-25",
        "fig3b",
        findings.fig3b,
        "more seeds: an hour a cell on one core",
    ),
    Entry(
        "Figure 4B",
        "in linear convolutions spatial dependence raises alignment, direct feedback further",
        "reproduce fig4b",
        "the paper's",
        "2026-11-25",
        "2f9d435",
        findings.fig4b,
    ),
    Entry(
        "Figure 4C",
        "the same in the VGG on STL-10 after 100 epochs",
        "reproduce fig4c --seeds 1",
        "CIFAR-10, width 0.125, 8 epochs, one seed",
        "2026-11-25",
        "fig4c",
        findings.fig4c,
        f"`--scale paper`: {GPU}",
    ),
    Entry(
        "Figure 5",
        "from CLAPP to CLAPP++, change by change, on STL-10",
        "reproduce fig5 --scale kept --seeds 4",
        "",
        "2026-11-30",
        "fig5",
        findings.fig5,
        f"`localssl reproduce fig5 --scale paper`: {GPU}",
    ),
    Entry(
        "Figure A1",
        "alignment falls with the rank of B",
        "reproduce figA1",
        "the paper's",
        "2026-11-25",
        "79a4d7e",
        findings.fig_a1,
    ),
    Entry(
        "Figure A2",
        "direct feedback raises alignment at all stages of training",
        "reproduce figA2 --seeds 1",
        "as Figure 4C, 1 to 8 epochs",
        "2026-11-25",
        "fig4c",
        findings.fig_a2,
        f"`--scale paper`: {GPU}",
    ),
    Entry(
        "Table 2",
        "accuracy of every rule",
        "reproduce table2 --scale kept",
        "CIFAR-10, two seeds: all at width 0.125, four epochs of 10,000 images; the family at 0.25, two to four "
        "epochs. Tiny ImageNet, two seeds: the family at width 0.125, three epochs of 10,000 images",
        "2026-11-29",
        "compare-cifar10",
        lambda results: ("by row below", findings.TOO_SMALL),
        f"`localssl reproduce table2 --scale paper`: {GPU}",
    ),
    Entry(
        "Table A3",
        "predictive coding beside backpropagation",
        "reproduce tableA3 --scale kept",
        "",
        "2026-11-30",
        "tableA3",
        findings.table_a3,
        f"`localssl reproduce tableA3 --scale paper`: {GPU}",
    ),
    Entry(
        "Table A4",
        "T and η_h of predictive coding, searched",
        "reproduce tableA4",
        f"CIFAR-10, width 0.125, {table_a4.EPOCHS} epochs of {table_a4.IMAGES:,} images, one seed",
        commit="tableA4",
        found=findings.table_a4_grid,
        missing="8 core-hours, by count",
    ),
)


def overview(results: Path) -> str:
    """Every figure and table in a row."""
    head = ("paper", "what it shows", "ours", "verdict", "for the rest", "scale of ours", "command", "date", "commit")
    rows: list[tuple[str, ...]] = []
    for e in ENTRIES:
        ours, verdict = found = e.found(results)
        scale, date, commit = "", "", ""
        if found != NOT_RUN:
            scale, date = e.scale or findings.scale(results, e.commit), e.date
            commit = findings.commit(results, e.commit)
        rows.append((e.name, e.claim, ours, verdict, e.missing, scale, f"`localssl {e.command}`", date, commit))
    return markdown.table(head, rows)


def in_short(results: Path) -> str:
    """How many figures and tables have which verdict, and which they are."""
    found: dict[str, list[str]] = {}
    for e in ENTRIES:
        found.setdefault(e.found(results)[1].partition(":")[0], []).append(e.name)
    kinds = sorted(found.items(), key=lambda kind: kind[0].startswith("not"))
    said = "; ".join(f"{verdict} {len(names)} ({', '.join(names)})" for verdict, names in kinds)
    return f"In short, of {len(ENTRIES)} figures and tables with numbers: {said}."


def page(results: Path) -> str:
    """The whole page."""
    return f"""# Reproduction record

Made by `make docs` (`python -m localssl.experiments.reproduction docs`) from [the results](results.md) that lie beside
it; a test makes it again and compares.

{in_short(results)}

Verdicts: *reproduced*, the paper's claim holds in every number that was measured; *in part*, where it does not is
said; *not seen at this scale* and *not comparable at this scale*, the runs here are too small to confirm or to refute
it; *not run*. Cosines are with backpropagation's update. Commit: the one that the runs noted (-dirty: the checkout
held files that were not committed then, for instance cells finished before; which, was not noted), or, for the
theory's figures, that the numbers came with. Where each thing is in the code: [from the paper to the code](paper.md).
`--data-root` says where the data are; where MNIST is not found, figures 2, 3A, 3B and 4B take the embedded digits,
and say so first and in what they write: those are other numbers.

## Figures and tables

{overview(results)}

Equations, theorems and Table 1 are checked by tests and by `localssl theory`: [the theory](theory.md), [the
rules](rules.md). Table A1 (the encoder) and Table A2 (patches) are settings, and the library's defaults. What
the paper's section 5 says of memory, one context vector in place of one a layer between the two views, is
[counted](engine.md#memory), beside what a batch holds; the peaks that were measured are those of batches.

## Accuracies, number by number

Ours: fast probe, mean ± half of the 95 % t interval over seeds (no interval: one seed). On CIFAR-10 the longest of the
runs of [the results](results.md#cifar-10-width-025-two-and-four-epochs); what is not among them from [the
comparisons](compare.md#every-rule-on-mnist-and-cifar-10). The verdict says in what a run differs from the paper's;
where it does, the two numbers cannot be compared. When they were made, and what the paper's scale takes: in the rows of
Table 2 and Table A3 above.

{recorded.accuracies(results)}

## Other rules in their own settings

On MNIST the aim was to come within {recorded.WITHIN:g} points of the published number.

{recorded.peers(results)}

{recorded.not_run(results)}
"""


def in_paper(text: str, results: Path) -> str:
    """docs/paper.md as the results have it: "command only" where nothing was run, and nowhere else."""
    for e in ENTRIES:
        run = e.found(results) != NOT_RUN

        def cell(found: re.Match[str], run: bool = run) -> str:
            said = (RECORD if found[2] == ONLY else found[2]) if run else ONLY
            return f"{found[1]}{said} |"

        text = re.sub(rf"^(\| {e.name} \| [^|]+ \| )([^|]+) \|$", cell, text, flags=re.MULTILINE)
    return text


def main(folder: Path) -> None:
    """Write the page into the documentation's folder, and in paper.md where the numbers are."""
    write_text(folder / "reproduction.md", page(folder / "results"))
    write_text(folder / "paper.md", in_paper((folder / "paper.md").read_text(encoding="utf-8"), folder / "results"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
