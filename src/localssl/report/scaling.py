"""Data parallel steps of many processes, projected from those of two that ``parallel.json`` has.

seconds(N) = own work + waiting + bytes(N) / rate. Own work is what two processes measured outside of communication;
where changes of B are made of rows, every process multiplies those of all N, at the rate that one thread had there.
Waiting and rate are the line through the measured seconds of communication. Bytes are by formula, which
the measured ones are held against. "auto": what ``localssl.traffic`` chooses for so many processes, with the own work
of rows where it takes rows for any layer.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch

from localssl import encoders, engine, markdown, rules, traffic
from localssl.data.specs import default_patches
from localssl.report import arithmetic, benchmark_tables
from localssl.rules import ScoreRule

COUNTS = (8, 64, 512)
NUMBER = 4  # bytes
WIDTH = 0.25
Row = Mapping[str, Any]


def table() -> str:
    """Milliseconds a step; of the images a second that N times half of the pair would make, by formula, the share."""
    if benchmark_tables.record("parallel") is None:
        return benchmark_tables.missing("parallel")
    found = benchmark_tables.rows("parallel")
    waiting, rate, products = *fitted(found), product_rate()
    lines: list[list[str]] = []
    for r in with_auto([r for r in found if r["width"] == WIDTH]):
        pair = seconds(r, 2, waiting, rate, products)
        measured = "" if r["exchange"] == "auto" else f"{1e3 * r['seconds']:.0f}"
        line = [r["rule"], r["exchange"], measured, f"{1e3 * pair:.0f}"]
        for count in COUNTS:
            step = seconds(r, count, waiting, rate, products)
            line.append(f"{1e3 * step:,.0f} ({pair / step:.2f})")
        lines.append(line)
    head = ["rule", "exchange", "2, measured, ms", "2, by formula", *(f"{count}, ms (of 1)" for count in COUNTS)]
    off, here = (
        [abs(seconds(r, 2, waiting, rate, products) / r["seconds"] - 1) for r in found if r["width"] in widths]
        for widths in ({r["width"] for r in found}, {WIDTH})
    )
    bytes_off = max(abs(sent(r, 2) / r["bytes_sent"] - 1) for r in found)
    said = (
        f"Waiting {1e3 * waiting:.0f} ms a step and {rate / 1e9:.2f} GB a second (least squares of {len(found)} cases "
        f"of parallel.json), {products / 1e9:.0f} billion multiply-adds a second and thread. The "
        f"formula misses the measured seconds of two processes by {100 * statistics.median(off):.1f} % in the median, "
        f"{100 * max(off):.1f} % at most (of these {len(here)} cases by {100 * statistics.median(here):.1f} and "
        f"{100 * max(here):.1f} %), the bytes that the processes counted by {100 * bytes_off:.1f} % at most. That rate "
        "is the slope of a line, with all that grows with the bytes; the bare sum of 16 MiB goes at "
        f"{bare() / 1e9:.2f} GB a second, by which `auto` reckons."
    )
    return f"{markdown.table(head, lines)}\n\n{said}"


def fitted(found: Sequence[Row]) -> tuple[float, float]:
    """Seconds of waiting a step, and bytes a second, of the line through the measured communication."""
    took = [r["seconds"] * r["share_of_communication"] for r in found]
    slope, waiting = statistics.linear_regression([r["bytes_sent"] for r in found], took)
    return waiting, 1 / slope


def product_rate() -> float:
    """Multiply-adds a second of one thread, of B's products as the engine makes them, beside another process."""
    record = benchmark_tables.record("parallel")
    assert record is not None
    return record["pace"]["multiply_adds_a_second"]


def bare() -> float:
    """Bytes a second of a sum over the two processes alone."""
    record = benchmark_tables.record("parallel")
    assert record is not None
    return record["pace"]["bytes_a_second"]


def with_auto(found: Sequence[Row]) -> list[Row]:
    """The measured cases, and after each rule's one that chooses."""
    rows: list[Row] = []
    for rule in dict.fromkeys(r["rule"] for r in found):
        of_rule = [r for r in found if r["rule"] == rule]
        auto = {way: r for r in of_rule if (way := r["exchange"]) != "sharded"}
        rows += [*of_rule, {**auto["rows"], "exchange": "auto", "as matrices": auto["matrices"]}]
    return rows


def seconds(r: Row, count: int, waiting: float, rate: float, products: float) -> float:
    """Of a step of ``count`` processes, each with the images of the measured case ``r``."""
    layers, chosen = sizes_of(r, count).layers, matrices(r, count)
    if r["exchange"] == "auto" and len(chosen) == len(layers):
        return seconds(r["as matrices"], count, waiting, rate, products)
    own = r["seconds"] * (1 - r["share_of_communication"])
    more = 0.0
    if r["exchange"] != "sharded":  # two products, g and ΔB, with the samples of the processes beyond two
        rows = sum(layer.weights for i, layer in enumerate(layers) if i not in chosen)
        more = 2 * (count - 2) * 2 * r["batch_of_each"] * rows
    return own + more / products + waiting + sent(r, count) / rate


def matrices(r: Row, count: int) -> frozenset[int]:
    """The layers whose changes of B are summed as matrices."""
    found = sizes_of(r, count)
    return {
        "matrices": frozenset(range(len(found.layers))),
        "auto": traffic.choose(found._replace(pace=traffic.pace("cpu", 1))),
    }.get(r["exchange"], frozenset())


def sent(r: Row, count: int) -> float:
    """Bytes that each of ``count`` processes sends in a step."""
    found, others, images = sizes_of(r, count), count - 1, r["batch_of_each"]
    ring = 2 * others / count * encoder_weights(r["width"])
    lengths = sum(layer.d for layer in found.layers)
    if r["exchange"] == "sharded":
        of_scores = 4 * others * 2 * images * sum(len(layer.sources) for layer in found.layers)
        return NUMBER * (ring + others * 2 * images * lengths * (1 + 1 / count) + of_scores)
    return NUMBER * (ring + traffic.numbers(found, matrices(r, count)))


def sizes_of(r: Row, count: int) -> traffic.Sizes:
    """What the exchange of the case's changes of B depends on."""
    return _sizes(r["rule"], r["width"], r["batch_of_each"], count)


@cache
def _sizes(name: str, width: float, images: int, count: int) -> traffic.Sizes:
    rule = rules.get(name)
    assert isinstance(rule, ScoreRule)
    lengths = [layer.d for layer in _layers(name, width)]
    with torch.device("meta"):
        return engine.sizes(rule, rule.build(lengths), lengths, images, count)


@cache
def _layers(name: str, width: float) -> tuple[arithmetic.Layer, ...]:
    with torch.device("meta"):
        encoder = encoders.vgg6(width)
    return tuple(
        arithmetic.layers(encoder, (3, 32, 32), rules.get(name).patches(list(default_patches("vgg6", 32) or ())))
    )


@cache
def encoder_weights(width: float) -> int:
    """Numbers of the blocks, which are summed over processes in any case."""
    with torch.device("meta"):
        return sum(p.numel() for p in encoders.vgg6(width).parameters())
