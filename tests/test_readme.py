"""The README: two commands, one figure, and claims that are the results' numbers."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

from localssl.report import step_tables

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
FIRST = step_tables.FIRST
LINES = 47  # one screen, which ends at 60
CLAIMS = " ".join(re.findall(r"^- (\*\*.*?)(?=\n- |\n\n)", TEXT, re.MULTILINE | re.DOTALL)).replace("\n ", "")


def only(name: str, **wanted: Any) -> dict[str, Any]:
    """The one row of a benchmark's results that has these values."""
    rows = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))["rows"]
    (found,) = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    return found


def with_interval(row: dict[str, Any]) -> str:
    return f"{row['ratio']:.3f} ({row['low']:.3f} to {row['high']:.3f})"


def test_two_commands_and_one_figure() -> None:
    assert re.findall(r"^make \w+", TEXT, re.MULTILINE) == ["make demo", "make test"]
    (figure,) = re.findall(r"^!\[[^]]+\]\(([^)]+)\)", TEXT, re.MULTILINE)
    assert (ROOT / figure).is_file()
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", TEXT)
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_one_screen() -> None:
    """What is added takes the place of something else."""
    assert len(TEXT.splitlines()) <= LINES <= 60


def test_three_claims_with_their_commands() -> None:
    assert CLAIMS.count("**") == 2 * 3
    drawn = "`localssl reproduce fig3b --seeds 1 --data-root PATH`"
    for command in ("`make bench`", "`python benchmarks/pipeline.py --repeats 6 --out FILE`", drawn):
        assert f"({command};" in CLAIMS


def test_a_step_is_as_fast_and_as_small_as_measured() -> None:
    rule = {"rule": "clapp++dfb", "width": 0.25, "engine": "hebbian"}
    against = {"layout": "ours", "views": False, "against": "bp-clapp++"}
    wide = only("step", **rule | {"width": 1.0}, **against)
    assert f"takes {with_interval(wide)} of the time of backpropagation at width 1" in CLAIMS
    assert f"and {with_interval(only('step', **rule, **against))} at width 0.25" in CLAIMS
    assert (
        f"on two Xeon cores ({only('step-epyc', **rule | {'width': 1.0}, **against)['ratio']:.3f} on an EPYC, "
        f"{only('step-epyc', **rule | {'width': 1.0}, **against | {'against': FIRST})['ratio']:.3f} of one with "
        "the engine's ΔW)" in CLAIMS
    )
    small = only("memory", **rule, depth=6, projection="low-rank-frozen")["total_ratio"]
    dense = only("memory", **rule, depth=6, projection="dense")["total_ratio"]
    assert f"but {dense:.2f} of its whole memory there (`make bench-memory`)" in CLAIMS
    lines = (ROOT / "docs/results/cheap-b-final/final.csv").read_text(encoding="utf-8").splitlines()
    (cheap,) = (r for r in csv.DictReader(line for line in lines if line[0] != "#") if r["projection"] == "frozen 64")
    assert cheap["verdict"] == "not resolved"
    lost = f"{cheap['loss']} points ({cheap['loss_low']} to {cheap['loss_high']})"
    assert f"that is {small:.2f}; its cost in accuracy, not resolved by five seeds of `clapp++both`: {lost}" in CLAIMS


def test_two_processes_are_as_fast_as_measured() -> None:
    plain, feedback = (only("pipeline", rule=f"clapp++{end}", staleness=0, processes=2) for end in ("", "dfb"))
    assert f"of one thread each that train the blocks at the same time reach {with_interval(plain)} times" in CLAIMS
    assert f"[with feedback {feedback['ratio']:.2f}]" in CLAIMS
    low, high = plain["against_threads_low"], plain["against_threads_high"]
    assert f"and {plain['against_threads']:.3f} ({low:.3f} to {high:.3f}) that of one of two (EPYC)." in CLAIMS


def test_updates_are_as_close_as_measured() -> None:
    lines = (ROOT / "docs/results/fig3b/fig3b.csv").read_text(encoding="utf-8").splitlines()
    rows = [row for row in csv.DictReader(line for line in lines if line[0] != "#") if int(row["layer"]) < 6]
    last = max(rows, key=lambda row: int(row["epoch"]))["epoch"]

    def span(name: str) -> str:
        found = [float(row["mean"]) for row in rows if (row["epoch"], row["line"]) == (last, name)]
        return f"{min(found):.2f} to {max(found):.2f}"

    assert f"a cosine of {span('local-SSL DFB')} with" in CLAIMS
    assert f"`clapp++`, without feedback, {span('local-SSL')}," in CLAIMS
    assert f"with feedback that stays random {span('DFB, fixed random B')}" in CLAIMS
