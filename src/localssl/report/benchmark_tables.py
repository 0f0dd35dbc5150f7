"""Tables of the documentation that are made from benchmarks/results of this checkout."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"
BASE, CHEAP = "bp-clapp++", "low-rank-frozen"
LOCAL = ("clapp++", "clapp++dfb", "clapp++both")
Row = Mapping[str, Any]


def memory() -> str:
    """Peak memory of a training step against backpropagation's."""
    lines = [
        "| rule | engine | B | width | blocks | activity, MiB | of BP's | total, MiB | of BP's |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['rule']} | {r['engine']} | {r['projection']} | {r['width']:g} | {r['depth']} | {r['activity']:,.1f} "
        f"| {r['activity_ratio']:.2f} | {r['total']:,.0f} | {r['total_ratio']:.2f} |"
        for r in rows("memory")
    ]
    return "\n".join([*lines, "", source("memory")])


def pipeline() -> str:
    """Throughput of layer-parallel training against one process."""
    if record("pipeline") is None:
        return missing("pipeline")
    lines = [
        "| rule | staleness | processes | blocks of each | width | images/s | of one | times | 95 % | repeats "
        "| of one with all threads | times | 95 % |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['rule']} | {r['staleness']} | {r['processes']} | {' + '.join(map(str, r['split']))} | {r['width']:g} "
        f"| {r['images_per_second']:.0f} | {r['images_per_second_alone']:.0f} | {r['ratio']:.2f} "
        f"| {r['low']:.2f} to {r['high']:.2f} | {r['n']} | {_against_threads(r)} |"
        for r in rows("pipeline")
    ]
    said = source("pipeline").replace(" 1 threads", " one thread a process")
    repeats = rows("pipeline")[0]["n"]
    return "\n".join([*lines, "", said.replace("pipeline.json`", f"pipeline.json --repeats {repeats}`")])


def _against_threads(r: Row) -> str:
    """Where it was measured: that process's images a second, and how many times as many the pipeline's are."""
    if "against_threads" not in r:
        return "not measured | | "
    low, high = r["against_threads_low"], r["against_threads_high"]
    return f"{r['images_per_second_threads']:.0f} | {r['against_threads']:.2f} | {low:.2f} to {high:.2f}"


def parallel() -> str:
    """Seconds and bytes of a step in several processes, by what they exchange."""
    if record("parallel") is None:
        return missing("parallel")
    lines = [
        "| rule | width | processes | images of each | exchange | ms a step | ms of one with the whole batch "
        "| times as fast | MB sent by each | share of communication |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['rule']} | {r['width']:g} | {r['processes']} | {r['batch_of_each']} | {r['exchange']} "
        f"| {1e3 * r['seconds']:.1f} | {1e3 * r['one']:.1f} | {r['speedup']:.2f} | {r['bytes_sent'] / 1e6:.2f} "
        f"| {r['share_of_communication']:.2f} |"
        for r in rows("parallel")
    ]
    said = source("parallel").replace(" 1 threads", " one thread a process")
    return "\n".join([*lines, "", re.sub(", batches of [^,]*", "", said)])  # they stand in the rows


def large_data() -> str:
    """Training from disk against training in memory, and what was seen on the way."""
    found = record("large_data")
    command = "python benchmarks/large_data.py --folder /tmp --out benchmarks/results/large_data.json"
    if found is None:
        return f"Not measured yet: `{command}`."
    lines = ["| image size | from disk, images/s | in memory | ratio | 95 % | repeats |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {r['size']} | {r['images_per_second']:,.0f} | {r['in_memory']:,.0f} | {r['ratio']:.3f} "
        f"| {r['low']:.3f} to {r['high']:.3f} | {r['n']} |"
        for r in found["rows"]
    ]
    first, seen = found["rows"][0], found["order"]
    right = "in the order of seed and epoch" if seen["as_ordered"] and seen["each_once"] else "NOT as ordered"
    told = (
        f"`{first['rule']}`, width {first['width']:g}; {found['images']:,} JPEGs of 128 × 128, {found['mib']:,} MiB "
        f"in shards. An epoch of {seen['steps']:,} batches, stopped after {seen['stopped_at']:,} and resumed in "
        f"another process, brought every image {right}; resident memory grew by {seen['growth_mib']:.0f} MiB "
        f"from the tenth batch on."
    )
    made_by = source("large_data").partition(";")[2]
    return "\n".join([*lines, "", f"{told} `{command}`;{made_by}"])


def growth() -> str:
    """Exponents of time and memory along every axis, beside those of the arithmetic."""
    found = record("growth")
    if found is None:
        return missing("growth")
    lines = ["| axis | rule | time | by products | by parameters | activity | arithmetic | total | arithmetic |"]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for axis, rule in dict.fromkeys((e["axis"], e["rule"]) for e in found["exponents"]):
        by = {e["quantity"]: e for e in found["exponents"] if (e["axis"], e["rule"]) == (axis, rule)}
        time = by["seconds"]
        cells = [time["exponent"], time["arithmetic"]["products"], time["arithmetic"]["parameters"]]
        for quantity in ("activity", "total"):
            cells += [by[quantity]["exponent"], by[quantity]["arithmetic"][quantity]]
        lines.append(f"| {axis} | {rule} | {' | '.join(f'{c:.2f}' for c in cells)} |")
    return "\n".join([*lines, "", source("growth")])


def inactive() -> str:
    """Shares of inactive samples as training goes on."""
    found = record("inactive")
    if found is None:
        return missing("inactive")
    lines = ["| rule | steps | own γ are 0 | leaves no ΔW | by block |", "|---|---|---|---|---|"]
    lines += [
        f"| {r['rule']} | {r['step']:,} | {r['own_mean']:.3f} | {r['none_mean']:.3f} "
        f"| {' '.join(f'{v:.2f}' for v in r['none'])} |"
        for r in found["rows"]
    ]
    return "\n".join([*lines, "", f"{found['data']}. {source('inactive')}"])


def compiled() -> str:
    """A step with one part compiled against the same step without."""
    found = record("compiled")
    if found is None:
        return missing("compiled")
    lines = ["| rule | compiled | width | ratio (95 %) | n | seconds to compile |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {r['rule']} | {r['compiled']} | {r['width']:g} | {r['ratio']:.3f} ({r['low']:.3f} to {r['high']:.3f}) "
        f"| {r['n']} | {r['seconds_to_compile']:.1f} |"
        for r in found["rows"]
    ]
    return "\n".join([*lines, "", source("compiled")])


def record(name: str) -> dict[str, Any] | None:
    """What a benchmark wrote; None where it was not run."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def rows(name: str) -> list[dict[str, Any]]:
    """The rows that a benchmark wrote."""
    found = record(name)
    return [] if found is None else found["rows"]


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    found = [f"| {' | '.join(line)} |" for line in (head, *lines)]
    return [found[0], "|" + "---|" * len(head), *found[1:]]


def missing(name: str) -> str:
    """What stands in place of a table whose benchmark was not run."""
    return f"Not measured yet: `python benchmarks/{name}.py --out benchmarks/results/{name}.json`."


def source(name: str) -> str:
    """The command, and what it was run with."""
    found = record(name)
    assert found is not None
    first = found["rows"][0]
    batch = first["batch"] if "batch" in first else f"{first['batch_of_each']} a process"
    return (
        f"`python benchmarks/{name}.py --out benchmarks/results/{name}.json`; torch {found['torch']}, "
        f"{found['threads']} threads, batches of {batch}, commit {found['commit']}."
    )
