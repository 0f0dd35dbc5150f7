"""Figures 3B, 4C, A2 and the study of accuracy, at a size that takes seconds."""

from __future__ import annotations

import csv
import dataclasses
import shutil
from pathlib import Path

import pytest

from localssl.experiments import EXPERIMENTS, Settings, fig3b, fig4c, prediction, settled


def table(path: Path) -> list[dict[str, str]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ")
    return list(csv.DictReader(lines[1:]))


@pytest.mark.long
def test_fig3b(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("EPOCHS", (0, 1)), ("WIDTHS", (24,) * 3), ("TEST_BATCHES", 3), ("FIT_BATCHES", 4)):
        monkeypatch.setattr(fig3b, name, value)
    EXPERIMENTS["fig3b"](Settings(tmp_path / "fig3b", seeds=2, threads=1))
    rows = table(tmp_path / "fig3b" / "fig3b.csv")
    assert {row["line"] for row in rows} == {*fig3b.LINES, fig3b.SOLVED}
    assert all(float(row["mean"]) == pytest.approx(1, abs=1e-4) for row in rows if row["layer"] == "3")
    assert {row["seeds"] for row in rows} == {"2"}
    limits = table(tmp_path / "fig3b" / "limits.csv")
    assert {row["line"] for row in limits} == {"local-SSL", "local-SSL DFB"}
    for line in {(row["line"], row["seed"], row["block"]) for row in limits}:
        parts = {row["part"]: float(row["mean"]) for row in limits if (row["line"], row["seed"], row["block"]) == line}
        assert parts["form"] + parts["objective"] + parts["lag"] == pytest.approx(parts["total"], abs=3e-5)
    assert (tmp_path / "fig3b" / "fig3b.png").stat().st_size > 10_000


@pytest.mark.long
def test_fig4c_fig_a2_and_accuracy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = dataclasses.replace(
        fig4c.CPU, data="digits", width=0.25, images=256, epochs=(0, 1), patches=(4, 4, 4, 2, 2), labels=300
    )
    monkeypatch.setattr(fig4c, "CPU", tiny)
    monkeypatch.setattr(fig4c, "BATCHES", 2)
    settings = Settings(tmp_path / "fig4c", threads=1)
    EXPERIMENTS["fig4c"](settings)
    rows = table(tmp_path / "fig4c" / "fig4c.csv")
    assert {row["line"] for row in rows} == set(fig4c.LINES.values())
    assert all(float(row["mean"]) == pytest.approx(1, abs=1e-4) for row in rows if row["layer"] == "5")
    made = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "fig4c" / "cells").iterdir()}
    EXPERIMENTS["figA2"](Settings(tmp_path / "figA2", threads=1))  # from the same cells
    assert made == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "fig4c" / "cells").iterdir()}
    assert {row["epochs"] for row in table(tmp_path / "figA2" / "figA2.csv")} == {"0", "1"}
    EXPERIMENTS["alignment-accuracy"](Settings(tmp_path / "accuracy", threads=1))
    points = table(tmp_path / "accuracy" / "points.csv")
    assert len(points) == 8  # four rules before and after one epoch; the optimum is no local rule
    found = table(tmp_path / "accuracy" / "correlation.csv")
    assert {row["n"] for row in found} == {"4"}
    for name in ("fig4c/fig4c.png", "figA2/figA2.png", "accuracy/accuracy.png"):
        assert (tmp_path / name).stat().st_size > 10_000


def test_the_correlation_across_ablations_follows_from_the_committed_cells(tmp_path: Path) -> None:
    committed = Path(__file__).parents[1] / "docs" / "results" / "better-rule"
    shutil.copytree(committed / "cells", tmp_path / "better-rule" / "cells")
    EXPERIMENTS["better-rule"](Settings(tmp_path / "better-rule", threads=1))
    for name in ("screen.csv", "correlation.csv"):
        assert (tmp_path / "better-rule" / name).read_text() == (committed / name).read_text()


def test_a_rank_correlation_per_column(tmp_path: Path) -> None:
    path = tmp_path / "correlation.csv"
    cosines = {"cosine_1": [0.1, 0.2, 0.3, 0.4], "cosine_2": [0.4, 0.3, 0.2, 0.1]}
    prediction.write(path, cosines, [50.0, 51.0, 60.0, 61.0], ["a", "a", "b", "b"], "runs")
    assert [(row["cosine"], row["correlation"], row["groups"]) for row in table(path)] == [
        ("cosine_1", "1.0", "2"),
        ("cosine_2", "-1.0", "2"),
    ]


@pytest.mark.long
def test_settled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("EPOCHS", (0, 1)), ("WIDTHS", (24,) * 3), ("TEST_BATCHES", 3), ("FIT_BATCHES", 4)):
        monkeypatch.setattr(fig3b, name, value)
    monkeypatch.setattr(settled, "PASSES", (1, 4))
    EXPERIMENTS["settled"](Settings(tmp_path / "settled", seeds=1, threads=1))
    rows = table(tmp_path / "settled" / "settled.csv")
    assert {row["passes"] for row in rows} == {"0", "1", "4"}
    by = {(row["line"], row["passes"], row["block"], row["part"]): row for row in rows}
    for (line, passes, block, part), row in by.items():
        if part == "form":  # the least-squares B does not depend on how long another was fitted
            assert row["mean"] == by[line, "0", block, "form"]["mean"]
        if part == "lag" and passes == "0":
            assert float(row["mean"]) == 0.0
    losses = [float(by["local-SSL", passes, "1", "lag"]["own_loss"]) for passes in ("0", "1", "4")]
    assert losses == sorted(losses, reverse=True)


def test_the_pages_table_of_figure_3b_is_that_of_its_files() -> None:
    docs = Path(__file__).parents[1] / "docs"

    def shown(values: list[str]) -> str:
        return " | ".join(f"{float(value):.3f}".replace("-", "−") for value in values)

    page = (docs / "alignment.md").read_text(encoding="utf-8")
    printed = page.partition("| | layer 1 | 2 | 3 | 4 | 5 |\n|---|---|---|---|---|---|\n")[2].partition("\n\n")[0]
    last = [row for row in table(docs / "results/fig3b/fig3b.csv") if row["epoch"] == "20" and row["layer"] != "6"]
    limits = table(docs / "results/fig3b/limits.csv")
    expected = []
    for line, name in (("local-SSL", "clapp++"), ("local-SSL DFB", "clapp++dfb")):
        expected.append(f"| {line} (`{name}`), cosine | {shown([r['mean'] for r in last if r['line'] == line])} |")
        for part in ("form", "objective", "lag"):
            found = [row["mean"] for row in limits if (row["line"], row["part"]) == (line, part)]
            expected.append(f"| {part} | {shown(found)} |")
    drawn = [row for row in last if row["line"] == "DFB, fixed random B"]
    expected.append(f"| DFB, fixed random B, cosine | {shown([row['mean'] for row in drawn])} |")
    expected.append(f"| its null | {shown([row['null'] for row in drawn])} |")
    for line, more in (
        ("optimum, encoder trained by it", " (rule `optimum`)"),
        ("optimum, solved at DFB's encoder and gates", ""),
    ):
        expected.append(f"| {line}{more}, cosine | {shown([r['mean'] for r in last if r['line'] == line])} |")
    assert printed.splitlines() == expected
