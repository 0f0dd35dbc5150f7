"""What docs/results say of each figure and table of the paper: ours in a few words, and the verdict."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from localssl.experiments import table_a4
from localssl.experiments.rows import Study

Finding = tuple[str, str]  # ours, verdict
NOT_RUN: Finding = ("", "not run")
TOO_SMALL = "not comparable at this scale"
GPU = "a GPU and the data set; [hours by machine](what-it-would-take.md)"


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


def fig5(results: Path) -> Finding:
    """The ablation: which of its steps, paired by seed, are clear of zero."""
    rows = _made(results, "fig5")
    if not rows:
        return NOT_RUN
    steps = [(row["step"], row["against"], row["step (points)"]) for row in rows if row["step (points)"]]
    clear = [f"{step} {points} (against {other})" for step, other, points in steps if _clear_of_zero(points)]
    said = f"of {len(steps)} steps, paired by seed, {len(clear)} with an interval clear of zero"
    return f"{': '.join([said, *(['; '.join(clear)] if clear else [])])}; [table](results/fig5/fig5.md)", _overall(rows)


def fig1e(results: Path) -> Finding:
    """The rows that Figure 5 has of it."""
    rows = _made(results, "fig5")
    if not rows:
        return NOT_RUN
    means = [float(row["ours (%)"].split()[0]) for row in rows if row["ours (%)"] not in ("", "failed")]
    said = f"the {len(means)} rows of Figure 5, no others: means from {min(means):.2f} to {max(means):.2f} %"
    return f"{said}; [table](results/fig5/fig5.md)", _overall(rows)


def table_a3(results: Path) -> Finding:
    """Predictive coding and backpropagation, objective by objective; the numbers stand in the second table."""
    rows = _made(results, "tableA3")
    return ("by row below", _overall(rows)) if rows else NOT_RUN


def table_a4_grid(results: Path) -> Finding:
    """The best of the grid."""
    best = table_a4.winners(results / "tableA4")
    if not best:
        return NOT_RUN
    said = [
        f"{objective} T = {found['steps']}" + (f", η_h = {found['eta_h']:g}" if "eta_h" in found else "")
        for objective, found in best.items()
    ]
    return f"best of the grid: {'; '.join(said)}", TOO_SMALL


def scale(results: Path, folder: str) -> str:
    """What the cells of a comparison, trials apart, were trained on: data, width, epochs, images, seeds."""
    tasks = [record(file)["task"][0] for file in cells(results, folder)]
    tasks = [task for task in tasks if task["trial"] is None]
    study = Study.of(tasks[0]["study"])
    of = f" of {study.limit_images:,} images" if study.limit_images else ""
    return f"{study.data}, width {study.width:g}, {study.epochs} epochs{of}, {seeds({t['seed'] for t in tasks})}"


def cells(results: Path, folder: str, names: str = "*") -> list[Path]:
    """The cells of a study, those whose names match."""
    return sorted((results / folder / "cells").glob(f"{names}.json"))


def record(file: Path) -> dict[str, Any]:
    """What a cell says."""
    return json.loads(file.read_text(encoding="utf-8"))


def commit(results: Path, name: str) -> str:
    """Commits that a folder's cells noted, or the commit itself."""
    states = (str(record(file)["environment"]["git"]) for file in cells(results, name))
    noted = {state[:7] + "-dirty" * state.endswith("-dirty") for state in states}
    return ", ".join(sorted(noted)) or name


def seeds(found: Iterable[object]) -> str:
    """How many there are, in words."""
    n = len(list(found))
    return {1: "one seed", 2: "two seeds", 3: "three seeds", 4: "four seeds"}.get(n, f"{n} seeds")


def _made(results: Path, name: str) -> list[dict[str, str]]:
    """The rows of a table that ``localssl reproduce`` made; none where it was not run."""
    file = results / name / f"{name}.csv"
    return read(file) if file.is_file() else []


def _overall(rows: Sequence[dict[str, str]]) -> str:
    """The verdict of a table from its rows' marks."""
    marks = [row["mark"] for row in rows if row["mark"].startswith(("reproduced", "off", "not comparable"))]
    good, judged = (sum(m.startswith(start) for m in marks) for start in ("reproduced", ("reproduced", "off")))
    if not judged:
        return TOO_SMALL
    return _verdict(good == len(marks), f"in part: {good} of {len(marks)} numbers reproduced")


def _clear_of_zero(points: str) -> bool:
    """Whether "+1.20 ± 0.30" excludes zero; without an interval nothing does."""
    found = re.fullmatch(r"([+-]?[\d.]+) ± ([\d.]+)", points.replace("−", "-"))
    return found is not None and abs(float(found[1])) > float(found[2])


def above(ones: list[float], others: list[float]) -> int:
    """In how many places the first is larger."""
    return sum(one > other for one, other in zip(ones, others, strict=True))


def _verdict(holds: bool, otherwise: str = "not reproduced") -> str:
    return "reproduced" if holds else otherwise


def _minus(ones: list[float], others: list[float]) -> list[float]:
    return [one - other for one, other in zip(ones, others, strict=True)]


def _range(values: list[float]) -> str:
    low, high = (f"{round(value, 2) + 0:.2f}".replace("-", "−") for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"
