"""What training would take: the arithmetic by hand, and the tables of benchmarks that were run or were not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from localssl.report import benchmark_tables, profile_tables
from localssl.report import what_it_takes as takes


def test_sizes_of_the_published_nets() -> None:
    assert [layer.d for layer in takes.layers("ImageNet", "clapp++")] == [8192, 4096, *[8192] * 2, *[4096] * 3, 1024]
    assert takes.cost("STL-10", "clapp++", "dense").b == sum(d * d for d in (8192, 4096, 4096, 8192, 4096, 4096))
    assert takes.cost("STL-10", "clapp++dfb", "dense").b == 32768 * 4096
    first = takes.layers("ImageNet", "clapp++")[0]
    assert first.products == 224 * 224 * 128 * 3 * 9
    assert first.weights == 128 * 3 * 9 + 128


def test_exchange_by_hand() -> None:
    """Two processes: a ring sends each gradient once; of rows, every readout once, of the context for all layers."""
    name, rule, kind = "ImageNet", "clapp++dfb", "dense"
    need, lengths = takes.cost(name, rule, kind), (8192, 4096, 8192, 8192, 4096, 4096, 4096, 1024)
    asked = 2 * 2 * sum(lengths)  # two negatives are another process's, and want their signals back
    assert takes.exchanged(name, rule, kind, 2, "matrices") == 4 * (need.parameters + asked)
    sent = takes.exchanged(name, rule, kind, 3, "rows")
    assert sent == pytest.approx(2 * (2 / 3) * 4 * need.encoder + 2 * 128 * 4 * sum(lengths))
    assert takes.exchanged(name, rule, kind, 2) == takes.exchanged(name, rule, kind, 2, "rows")
    ways = [takes.exchanged(name, "clapp++", kind, 64, way) for way in ("auto", "rows", "matrices")]
    assert ways[1] < ways[0] == ways[2]  # rows are fewer bytes there, and their products take longer
    backprop = need.encoder + 1024 * 1024
    assert takes.exchanged(name, "bp-clapp++", kind, 2) == 4 * backprop


def test_seconds_by_hand() -> None:
    name, rule, kind = "ImageNet", "clapp++dfb", "dense"
    need = takes.cost(name, rule, kind)
    alone, both = (takes.seconds(name, rule, kind, "H100", k, 1.0, "rows") for k in (1, 2))
    assert alone.link == 0
    assert both.link == pytest.approx(takes.exchanged(name, rule, kind, 2, "rows") / 450e9)
    assert both.products - alone.products == pytest.approx(2 * 2 * 2 * 64 * need.b / 989e12)  # g and ΔB
    summed = takes.seconds(name, rule, kind, "H100", 2, 1.0, "matrices")
    assert summed.products == alone.products
    far, near = (takes.seconds(name, rule, kind, "H100", k, way="matrices") for k in (9, 8))
    assert far.link > 8 * near.link  # beyond a server


def test_the_published_run_takes_its_own_hours() -> None:
    name, card, cards, took = takes.PUBLISHED
    need = takes.cost(name, "clapp++", "dense")
    step = 2 * need.products / (takes.CARDS[card].peak * takes.published_efficiency())
    assert takes.hours(name, step, cards) == pytest.approx(took)


def test_traffic_by_hand() -> None:
    """One bf16 pass over input, drive twice and output, two or three times; weights, moments, gradients in float32."""
    need = takes.cost("STL-10", "clapp++", "dense")
    sides, channels = (96, 96, 48, 48, 24, 12), (128, 256, 256, 512, 1024, 1024)
    x = [3 * 96 * 96, 128 * 96 * 96, 256 * 48 * 48, 256 * 48 * 48, 512 * 24 * 24, 1024 * 12 * 12]
    a = [c * m * m for c, m in zip(channels, sides, strict=True)]
    z = [*x[1:], 1024 * 6 * 6]
    units = sum(x) + 2 * sum(a) + sum(z)
    weights = need.b + 6 * (need.b + need.encoder) + 2 * need.encoder
    assert takes.moved("STL-10", "clapp++", "dense") == 2 * 64 * 2 * units + 4 * weights


def test_tables_say_what_was_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_tables, "RESULTS", tmp_path)
    for name in ("growth", "inactive"):
        assert getattr(benchmark_tables, name)().startswith("Not measured yet: `python benchmarks/")
    assert "has not been run yet" in takes._days()


def test_tables_of_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_tables, "RESULTS", tmp_path)
    made_by = {"torch": "2", "threads": 2, "processor": "x", "commit": "abc"}
    exponents = [
        {"axis": "width", "rule": "clapp++", "quantity": q, "exponent": e, "arithmetic": a}
        for q, e, a in (
            ("seconds", 1.9, {"products": 2.0, "parameters": 2.1}),
            ("activity", 1.0, {"activity": 1.1}),
            ("total", 1.2, {"total": 1.3}),
        )
    ]
    rates = dict.fromkeys(("seconds_a_product", "seconds_a_product_of_b", "seconds_a_parameter", "seconds_a_step"), 0.0)
    rates |= {"median_error": 0.065, "largest_error": 0.325}
    rates["seconds_a_step"] = 86400 / (50 * 1_281_167 / 64)  # a day for all of ImageNet's steps
    share = {
        f"{n}{e}": 0.5
        for n in ("of_step_and_views", "of_step", "ahead_of_step", "views_share")
        for e in ("", "_low", "_high")
    }
    written = {
        "growth": {"rates": rates, "exponents": exponents, "rows": [{"batch": 32, "size": 128}]},
        "throughput": {
            "data": "CIFAR-10",
            "rows": [
                {"rule": "clapp++", "width": 0.25, "batch": 32, "images_per_second": 300.0, "n": 3, **share},
            ],
        },
        "inactive": {
            "data": "CIFAR-10",
            "rows": [{"rule": "clapp++", "batch": 32, "step": 9, "own_mean": 0.1, "none_mean": 0.2, "none": [0.25]}],
        },
    }
    for name, found in written.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({**made_by, **found}), encoding="utf-8")
    assert "| width | clapp++ | 1.90 | 2.00 | 2.10 | 1.00 | 1.10 | 1.20 | 1.30 |" in benchmark_tables.growth()
    assert (
        "| clapp++ | 0.25 | 300 | 0.500 | 0.500 to 0.500 | 0.500 | 0.500 (0.500 to 0.500) | 0.500 | 3 |"
        in profile_tables.throughput()
    )
    assert "| clapp++ | 9 | 0.100 | 0.200 | 0.25 |" in benchmark_tables.inactive()
    assert "| ImageNet | bp-clapp++ | dense | 1 |" in takes._days()
    said = takes._days()
    assert "6.5 % in the median, 32.5 % at most" in said
    assert "at most 128 pixels a side" in said
    assert "224 pixels are an extrapolation" in said


def test_the_page_begins_with_its_tables_numbers() -> None:
    page = Path(__file__).resolve().parents[1] / "docs" / "what-it-would-take.md"
    short, _, tables = page.read_text(encoding="utf-8").partition("\n## ")
    rows = [[cell.strip() for cell in line.split("|")] for line in tables.splitlines() if line.startswith("| ")]
    hours = {(row[1], row[2]): row[4:6] for row in rows if row[3] == "dense" and " / " in row[4]}
    for data, join in (("STL-10", " on one card and {} on eight"), ("ImageNet", " and {}")):
        one, eight = (cell.split(" / ")[1] for cell in hours[data, "clapp++dfb"])
        bp, bp_eight = (cell.split(" / ")[1] for cell in hours[data, "bp-clapp++"])
        assert f"- {data}: `clapp++dfb` {one}{join.format(eight)}, `bp-clapp++` {bp} and {bp_eight}" in short
    stl, imagenet = (row[4] for row in rows if row[2:4] == ["clapp++dfb", "dense"] and len(row) == 6)
    assert f"`clapp++dfb` takes {stl} and {imagenet} days" in short


def test_every_kind_of_b_is_reckoned_as_what_it_is() -> None:
    lines = [line.split(" | ") for line in takes.measured_table().splitlines() if line.startswith("| clapp")]
    of = {(line[0].removeprefix("| "), line[1]): float(line[3]) for line in lines}
    for rule in ("clapp++", "clapp++dfb", "clapp++both"):
        for kind in ("low-rank-frozen", "low-rank"):
            assert of[f"{rule}, B {kind} 64", "1"] < of[rule, "1"] - 0.01
