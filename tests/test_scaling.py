"""Projected steps of many processes: by formula as by hand, and for two as measured."""

from __future__ import annotations

from typing import Any

import pytest

from localssl import traffic
from localssl.report import benchmark_tables, scaling


def case(exchange: str, rule: str = "clapp++") -> dict[str, Any]:
    """A measured row, half of whose 0.2 seconds are communication."""
    return {
        "rule": rule,
        "width": 0.25,
        "batch_of_each": 16,
        "exchange": exchange,
        "seconds": 0.2,
        "share_of_communication": 0.5,
    }


def test_bytes_are_those_that_were_counted() -> None:
    for row in benchmark_tables.rows("parallel"):
        assert scaling.sent(row, 2) == pytest.approx(row["bytes_sent"], rel=1e-3), row


def test_a_line_is_found() -> None:
    found = [
        case("rows") | {"bytes_sent": b, "seconds": 2 * (0.03 + b / 5e8), "share_of_communication": 0.5}
        for b in (1e6, 5e6, 2e7)
    ]
    waiting, rate = scaling.fitted(found)
    assert (waiting, rate) == (pytest.approx(0.03), pytest.approx(5e8))


def test_seconds_by_hand() -> None:
    """Own work and waiting stay; the products of rows grow with the others' samples, the sum of matrices is bounded."""
    b = 12_582_912  # numbers of the lateral B at width 0.25
    assert sum(layer.weights for layer in scaling.sizes_of(case("rows"), 8).layers) == b
    for exchange, more in (("rows", 2 * 6 * 32 * b / 5e10), ("matrices", 0), ("sharded", 0)):
        expected = 0.1 + more + 0.04 + scaling.sent(case(exchange), 8) / 1e9
        assert scaling.seconds(case(exchange), 8, 0.04, 1e9, 5e10) == pytest.approx(expected)
    most = 4 * 2 * (b + scaling.encoder_weights(0.25))
    assert scaling.sent(case("matrices"), 512) == pytest.approx(most, rel=0.01)
    rows = [scaling.sent(case("rows"), n) - 8 * (n - 1) / n * scaling.encoder_weights(0.25) for n in (2, 512)]
    assert rows[1] == pytest.approx(511 * rows[0])


def test_what_is_chosen_is_not_far_from_the_best() -> None:
    """For every rule and number of processes, of the projected seconds."""
    found = [r for r in benchmark_tables.rows("parallel") if r["width"] == scaling.WIDTH]
    waiting, rate, products = *scaling.fitted(benchmark_tables.rows("parallel")), scaling.product_rate()
    for auto in (r for r in scaling.with_auto(found) if r["exchange"] == "auto"):
        others = [r for r in found if r["rule"] == auto["rule"] and r["exchange"] in ("rows", "matrices")]
        for count in (2, *scaling.COUNTS):
            best = min(scaling.seconds(r, count, waiting, rate, products) for r in others)
            assert scaling.seconds(auto, count, waiting, rate, products) < 1.1 * best, (auto["rule"], count)


def test_the_pace_is_what_was_measured() -> None:
    record = benchmark_tables.record("parallel")
    assert record is not None
    pace = record["pace"]
    numbers = pace["bytes_a_second"] / 4
    assert traffic.THREAD.products == pytest.approx(pace["multiply_adds_a_second"] / numbers, rel=0.05)
    assert traffic.THREAD.message == pytest.approx(pace["message_seconds"] * numbers, rel=0.05)


def test_what_auto_takes_is_in_the_record() -> None:
    """The choice by the present pace, which the page describes."""
    for r in benchmark_tables.rows("parallel"):
        chosen = traffic.choose(scaling.sizes_of(r, 2)._replace(pace=traffic.pace("cpu", 1)))
        assert r["auto"] == [layer + 1 for layer in sorted(chosen)], r
