"""The sentences and tables about the engine that are made from results, of results that are there and that are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from localssl.experiments import cheap_b
from localssl.report import benchmark_tables, cheap_tables, memory_tables, profile_tables, step_tables

STEP: dict[str, Any] = {
    "rule": "clapp++",
    "against": "bp-clapp++",
    "engine": "hebbian",
    "layout": "ours",
    "views": False,
    "width": 0.25,
    "batch": 32,
    "ratio": 0.9,
    "low": 0.8,
    "high": 1.0,
    "n": 5,
    "milliseconds": 90.0,
    "milliseconds_against": 100.0,
}


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of benchmarks/results, empty."""
    monkeypatch.setattr(benchmark_tables, "RESULTS", tmp_path)
    return tmp_path


def write(results: Path, name: str, **found: Any) -> None:
    made_by = {"torch": "9", "threads": 2, "commit": "abc"}
    (results / f"{name}.json").write_text(json.dumps({**made_by, **found}))


def test_what_was_not_measured_says_how_it_would_be(results: Path) -> None:
    assert profile_tables.engines().startswith("Not measured yet: `python benchmarks/engines.py")
    assert profile_tables.gpu().startswith("Not measured here: `python benchmarks/gpu.py --device cuda")
    assert "--trained 300" in step_tables.trained()
    for make in (profile_tables.parts, profile_tables.throughput, memory_tables.crossovers):
        assert make().startswith("Not measured yet: ")


def test_load_is_a_column_where_it_was_noted(results: Path) -> None:
    write(results, "step", rows=[STEP, {**STEP, "milliseconds_against": 120.0}])
    text = step_tables.step()
    assert "load before" not in text
    assert "took 100 to 120 ms" in text
    assert "The load of the machine was not noted" in text
    assert "of 5 repeats 94 %" in text
    write(results, "step", rows=[{**STEP, "load": 0.3, "n": 21}])
    text = step_tables.step()
    assert "| 90 | 100 | 21 | 0.3 |" in text
    assert "not noted" not in text
    assert "few repeats" not in text


def test_no_goal_is_met_by_a_b_whose_accuracy_is_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cheap_tables, "STUDIES", tmp_path)
    kind = "low-rank-frozen"
    assert step_tables._met_if_accurate(0.6, 0.7, kind) == "not counted: accuracy not resolved"
    (tmp_path / "cheap-b-final").mkdir()
    final = tmp_path / "cheap-b-final" / "final.csv"
    header = "projection,accuracy,low,high,loss,loss_low,loss_high,verdict,seeds"
    final.write_text(f"# loses less than 0.3\n{header}\nfrozen 64,60,59,61,0.1,-0.5,0.7,not resolved,5\n")
    assert "loses: 0.1, -0.5 to 0.7, with `low-rank-frozen` (not resolved) (" in cheap_tables.cheap_sentence()
    assert cheap_tables.SHORT in cheap_tables.cheap_sentence()
    assert not cheap_tables.resolved(kind)
    final.write_text(f"{header}\nfrozen 64,60,59,61,0.1,0.0,0.2,loses less than 0.3,5\n")
    assert cheap_tables.SHORT in cheap_tables.cheap_sentence()  # of the other kind nothing is known
    assert step_tables._met_if_accurate(0.6, 0.7, kind) == "yes"
    assert step_tables._met_if_accurate(0.6, 0.7, "low-rank") == "not counted: accuracy not resolved"
    assert step_tables._met_if_accurate(0.8, 0.7, kind) == "no"
    assert [step_tables._met(r, 0.9, 1.0) for r in (0.9, 1.0, 1.1)] == ["yes", "the must alone", "no"]


@pytest.mark.parametrize(
    ("ratios", "said"),
    [
        ({1: 2.0, 2: 1.0, 4: 0.9, 8: 0.5}, "from 4"),
        ({1: 0.5, 2: 0.9, 4: 1.1}, "up to 2"),
        ({1: 0.5, 2: 0.9}, "everywhere measured"),
        ({1: 1.5}, "nowhere measured"),
        ({1: 1.5, 2: 0.9, 4: 1.1}, "2"),
    ],
)
def test_where_it_is_below(ratios: dict[float, float], said: str) -> None:
    assert memory_tables.below(ratios) == said


def test_crossovers_of_both_kinds_of_b(results: Path) -> None:
    base = {"axis": "batch", "rule": "bp-clapp++", "batch": 32}
    mine = {**base, "rule": "clapp++"}
    places = [{**base, "x": 8.0, "total": 10}, {**base, "x": 16.0, "total": 20}]
    dense = [{**mine, "x": 8.0, "total": 30}, {**mine, "x": 16.0, "total": 10}]
    write(results, "growth", rows=[*places, *dense])
    assert "| batch | clapp++ | dense | 8: 3.00, 16: 0.50 | from 16 |" in memory_tables.crossovers()
    assert "low-rank-frozen" not in memory_tables.crossovers()
    low_rank = {"commit": "def", "rows": [{**mine, "x": 8.0, "total": 5}]}
    write(results, "growth", rows=[*places, *dense], low_rank=low_rank)
    text = memory_tables.crossovers()
    assert "| batch | clapp++ | low-rank-frozen | 8: 0.50 | everywhere measured |" in text
    assert "commit def; along depth and width: memory.json. Not measured with it: batch 16." in text


def test_shares_are_those_of_the_study() -> None:
    lines = [line.split(" | ") for line in cheap_tables.cheap_b().splitlines() if line.startswith("| ")]
    found = {line[0].removeprefix("| "): [float(line[4]), float(line[5])] for line in lines[2:]}
    assert found.keys() == cheap_b.TRIED.keys()
    for name, shares in found.items():
        assert shares == cheap_b.shares(name, 1)[2:]


def test_musts_are_said_of_every_record(results: Path) -> None:
    write(results, "step", rows=[{**STEP, "ratio": 0.99}, {**STEP, "width": 1, "ratio": 0.5}])
    write(results, "step-as-it-is", processor="EPYC", rows=[{**STEP, "ratio": 0.98}])
    text = step_tables.goals()
    head, _, first = text.splitlines()[:3]
    assert head.endswith("| against BP that pools first | step-epyc.json | step-as-it-is.json |")
    assert first == "| clapp++ | 0.25 | 0.90 | 0.98 | 0.990 (0.800 to 1.000) | no |  |  | 0.980 (0.800 to 1.000) |"
    assert "missed by `clapp++` at width 0.25 (0.990 of 0.98)" in text
    assert (
        "In step-as-it-is.json (EPYC, commit abc) the must is met by `clapp++` at width 0.25 (0.980 of 0.98)." in text
    )
    assert "In step-epyc.json" not in text
    assert "pools first and makes" not in text
    write(
        results,
        "step-epyc",
        processor="EPYC",
        rows=[{**STEP, "ratio": 0.9}, {**STEP, "against": step_tables.FIRST, "ratio": 1.1}],
    )
    text = step_tables.goals()
    head, _, first = text.splitlines()[:3]
    assert head.endswith("| step-epyc.json | step-epyc.json, pools first | step-as-it-is.json |")
    assert first.endswith("| 0.900 (0.800 to 1.000) | 1.100 (0.800 to 1.000) | 0.980 (0.800 to 1.000) |")
    assert f"In step-epyc.json against {step_tables.SHARED} the must is missed by `clapp++` at width 0.25" in text


def test_the_loop_says_what_was_left_out(results: Path) -> None:
    row = {"rule": "clapp++", "width": 0.25, "batch": 32, "images_per_second": 1.0, "of_step": 0.9}
    row |= {"views_share": 0.1, "n": 3}
    row |= {f"{name}{end}": 0.95 for name in ("of_step_and_views", "ahead_of_step") for end in ("", "_low", "_high")}
    write(results, "throughput", data="noise", rows=[row, {**row, "width": 1, "of_step": 0.95}])
    text = profile_tables.throughput()
    assert "at width 0.25 it is missed (0.900 to 0.900); at width 1 it is met (0.950 to 0.950)." in text
    assert "`clapp++dfb` and `clapp++both`: not measured yet" in text


def test_the_page_begins_with_what_was_measured() -> None:
    root = Path(__file__).resolve().parents[1]
    page = (root / "docs" / "engine.md").read_text(encoding="utf-8")
    whole, short = (" ".join(text.split()) for text in (page, page.partition("\n## ")[0]))

    def rows(name: str) -> list[dict[str, Any]]:
        text = (root / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8")
        return json.loads(text)["rows"]

    def ratios(name: str) -> dict[tuple[str, float], str]:
        return {
            (row["rule"], row["width"]): f"{row['ratio']:.3f}"
            for row in rows(name)
            if (row["engine"], row["layout"], row["views"], row["against"]) == ("hebbian", "ours", False, "bp-clapp++")
        }

    step, epyc, given_back = (ratios(name) for name in ("step", "step-epyc", "step-as-it-is"))
    narrow, wide = step["clapp++dfb", 0.25], step["clapp++dfb", 1.0]
    assert f"`clapp++dfb` takes {narrow} of backpropagation's at width 0.25 and {wide} at width 1" in short
    for rule in ("clapp++", "clapp++both"):
        assert f"`{rule}` {step[rule, 0.25]} and {step[rule, 1.0]}" in short
    rules = ("clapp++dfb", "clapp++", "clapp++both")
    there = ", ".join(f"{epyc[rule, 0.25]} and {epyc[rule, 1.0]}" for rule in rules)
    assert f"on an EPYC {there}." in short
    assert "at width 0.25 on the EPYC, {}, {} and {}.".format(*(given_back[rule, 0.25] for rule in rules)) in short
    held = [row["activity_ratio"] for row in rows("memory") if row["depth"] == 6 and "hebbian" in row["engine"]]
    assert f"is {min(held):.2f} to {max(held):.2f} of backpropagation's with six blocks" in short
    given = {(row["rule"], row["width"]): row for row in rows("step-epyc") if row["against"] == step_tables.FIRST}
    known = "{}, {} and {} at width 1.".format(*(f"{given[rule, 1.0]['ratio']:.3f}" for rule in rules))
    assert f"against a backpropagation that is given it, it is {known}" in short
    times = [row["ratio"] for row in rows("pipeline")]
    assert f"are {min(times):.2f} to {max(times):.2f} times as fast as one of one thread" in short
    threads = [row["against_threads"] for row in rows("pipeline")]
    assert f"the pipeline is worth {min(threads):.2f} to {max(threads):.2f} times on this machine" in whole
    (plain,) = (row for row in rows("pipeline") if (row["rule"], row["staleness"]) == ("clapp++dfb", 0))
    assert [row for row in rows("pipeline") if row["against_threads_low"] <= 1] == [plain]


def test_what_b_costs_is_as_the_page_says() -> None:
    """Of the convolutions that it saves a quarter to two thirds at width 1."""
    file = Path(__file__).resolve().parents[1] / "benchmarks" / "results" / "parts.json"
    of = {(part["rule"], part["width"]): part for part in json.loads(file.read_text(encoding="utf-8"))["parts"]}
    text = profile_tables.parts()
    for (rule, width), part in of.items():
        base = of["bp-clapp++", width]
        saved = base["convolutions"] - part["convolutions"]
        paid = sum(part[key] - base[key] for key in ("g and ΔB", "optimiser"))
        if rule != "bp-clapp++":
            assert f"`{rule}` at width {width:g} {saved:,.0f} and {paid:,.0f}" in text
            assert width != 1 or 0.22 < paid / saved < 0.67


def test_what_auto_lost_is_said(results: Path) -> None:
    base = {"encoder": "mlp", "width": 8, "batch": 2, "rule": "clapp++", "low": 0.9, "high": 1.2, "n": 5, "load": 0.1}
    base |= {"milliseconds": 1.0, "milliseconds_autograd": 1.0}
    fine = [{**base, "auto": "hebbian", "ratio": 0.95}, {**base, "auto": "autograd", "ratio": 1.1}]
    write(results, "engines", rows=fine)
    assert "takes the faster engine, by medians, in all 2 rows" in profile_tables.engines()
    worse = [{**base, "auto": "hebbian", "ratio": 1.1}, {**base, "auto": "autograd", "ratio": 0.8, "high": 0.9}]
    write(results, "engines", rows=[*fine, *worse])
    text = profile_tables.engines()
    assert "slower engine, by medians, in 2 of 4 rows, in 1 of them by more than the interval" in text
    assert "25.0 % longer than the other's" in text


def test_the_usual_chunk_is_held_against_the_best() -> None:
    ratios = {
        (rule, 1.0, "tiled", float(chunk)): {"ratio": ratio, "low": low}
        for rule, chunk, ratio, low in (("a", 4, 1.0, 0.9), ("a", 8, 0.95, 0.9), ("b", 4, 1.0, 0.9), ("b", 8, 0.8, 0.7))
    }
    said = profile_tables._usual(ratios)
    assert said.endswith("of `a` at width 1; not of `b` at width 1.")


def test_what_is_said_of_growth_is_so() -> None:
    """Under "How cost grows", of exponents against those of the arithmetic."""
    file = Path(__file__).resolve().parents[1] / "benchmarks" / "results" / "growth.json"
    found = json.loads(file.read_text(encoding="utf-8"))
    places = {(e["axis"], e["rule"], e["quantity"]): e for e in found["exponents"]}
    apart = {
        place: round(e["exponent"] - e["arithmetic"].get("products", e["arithmetic"].get(place[2], 0)), 2)
        for place, e in places.items()
    }
    rules = ("bp-clapp++", "clapp++", "clapp++dfb", "clapp++both")
    assert abs(apart["width", "bp-clapp++", "seconds"]) <= 0.02
    assert all(apart["width", rule, "seconds"] < -0.1 for rule in rules[1:])
    assert all(abs(apart["depth", rule, "seconds"]) <= 0.1 for rule in rules)
    assert all(places["batch", rule, "seconds"]["exponent"] < 1 for rule in rules)
    assert all(apart["image size", rule, "seconds"] > 0.2 for rule in rules)
    assert all(abs(apart["patches", rule, "seconds"]) <= 0.03 for rule in rules)
    above = {place[:2] for place, by in apart.items() if place[2] == "activity" and by > 0}
    assert above == {("width", "bp-clapp++"), ("image size", "bp-clapp++"), ("image size", "clapp++")}
    assert max(by for place, by in apart.items() if place[2] == "activity") == 0.08
    above = {place[:2] for place, by in apart.items() if place[2] == "total" and by > 0.01}
    larger = {("image size", "bp-clapp++"), ("image size", "clapp++")}
    assert above == {*larger, ("batch", "clapp++"), ("batch", "clapp++both")}


def test_what_is_said_of_the_gradient_of_weights_is_so() -> None:
    root = Path(__file__).resolve().parents[1]
    found = json.loads((root / "benchmarks" / "results" / "weights.json").read_text(encoding="utf-8"))["rows"]
    slower = [r["ms_onednn"] / r["ms_forward"] for r in found]
    page = " ".join((root / "docs" / "engine.md").read_text(encoding="utf-8").split())
    assert f"takes {min(slower):.1f} to {max(slower):.0f} times its forward pass" in page
    pairs = [(r["channels"][0] * r["channels"][1], r) for r in found]
    assert all(r["ratio"] > 1 for n, r in pairs if n <= 2**14 and r["size"] == 32)
    between = [r for n, r in pairs if n == 2**15]
    assert (len(between), sum(r["high"] >= 1 for r in between)) == (4, 1)
    assert all(r["ratio"] < 1 for r in between)
    assert all(r["high"] < 1 and r["taken"] for n, r in pairs if n >= 2**16)
