"""Tables of the documentation that are made from benchmarks/results of this checkout."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from localssl import markdown

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"
BASE, CHEAP = "bp-clapp++", "low-rank-frozen"
LOW_RANK = (CHEAP, "low-rank")  # of rank 64, wherever a step or its memory is measured with a cheap B
LOCAL = ("clapp++", "clapp++dfb", "clapp++both")
Row = Mapping[str, Any]


def memory() -> str:
    """Peak memory of a training step against backpropagation's."""
    lines: list[list[object]] = []
    for r in rows("memory"):
        line = [r["rule"], r["engine"], r["projection"], f"{r['width']:g}", r["depth"]]
        line += [f"{r['activity']:,.1f}", f"{r['activity_ratio']:.2f}"]
        lines.append([*line, f"{r['total']:,.0f}", f"{r['total_ratio']:.2f}"])
    head = ["rule", "engine", "B", "width", "blocks", "activity, MiB", "of BP's", "total, MiB", "of BP's"]
    return f"{markdown.table(head, lines)}\n\n{source('memory')}"


def pipeline() -> str:
    """Throughput of layer-parallel training against one process."""
    if record("pipeline") is None:
        return missing("pipeline")
    lines: list[list[object]] = []
    for r in rows("pipeline"):
        line = [r["rule"], r["staleness"], r["processes"], " + ".join(map(str, r["split"])), f"{r['width']:g}"]
        line += [f"{r['images_per_second']:.0f}", f"{r['images_per_second_alone']:.0f}"]
        line += [f"{r['ratio']:.2f}", f"{r['low']:.2f} to {r['high']:.2f}", r["n"]]
        lines.append([*line, *_against_threads(r)])
    head = ["rule", "staleness", "processes", "blocks of each", "width", "images/s", "of one", "times", "95 %"]
    head += ["repeats", "of one with all threads", "times", "95 %"]
    said = source("pipeline").replace(" 1 threads", " one thread a process")
    repeats = rows("pipeline")[0]["n"]
    said = said.replace("pipeline.json`", f"pipeline.json --repeats {repeats}`")
    return f"{markdown.table(head, lines)}\n\n{said}"


def _against_threads(r: Row) -> list[str]:
    """Where it was measured: that process's images a second, and how many times as many the pipeline's are."""
    if "against_threads" not in r:
        return ["not measured", "", ""]
    low, high = r["against_threads_low"], r["against_threads_high"]
    return [f"{r['images_per_second_threads']:.0f}", f"{r['against_threads']:.2f}", f"{low:.2f} to {high:.2f}"]


def parallel() -> str:
    """Seconds and bytes of a step in several processes, by what they exchange."""
    if record("parallel") is None:
        return missing("parallel")
    lines: list[list[object]] = []
    widest = max(r["width"] for r in rows("parallel"))
    for r in (r for r in rows("parallel") if r["exchange"] != "sharded" or r["width"] == widest):
        line = [r["rule"], f"{r['width']:g}", r["batch_of_each"], r["exchange"]]
        of = f"{r['of_matrices']:.2f} ({r['low']:.2f} to {r['high']:.2f})" if r["exchange"] != "matrices" else "1"
        line += [f"{1e3 * r['seconds']:.1f}", of, f"{1e3 * r['one']:.1f}", f"{r['speedup']:.2f}"]
        lines.append([*line, f"{r['bytes_sent'] / 1e6:.2f}", f"{r['share_of_communication']:.2f}"])
    head = ["rule", "width", "images of each", "exchange", "ms a step", "of matrices' (95 %)"]
    head += ["ms of one with the whole batch"]
    head += ["times as fast", "MB sent by each (counted)", "share of communication"]
    said = source("parallel").replace(" 1 threads", " one thread a process")
    said = re.sub(", batches of [^,]*", "", said)  # they stand in the rows
    return f"{markdown.table(head, lines)}\n\n{said}"


def large_data() -> str:
    """Training from disk against training in memory, and what was seen on the way."""
    found = record("large_data")
    command = "python benchmarks/large_data.py --folder /tmp --out benchmarks/results/large_data.json"
    if found is None:
        return f"Not measured yet: `{command}`."
    lines: list[list[object]] = []
    for r in found["rows"]:
        rates = [f"{r['images_per_second']:,.0f}", f"{r['in_memory']:,.0f}", f"{r['ratio']:.3f}"]
        lines.append([r["size"], *rates, f"{r['low']:.3f} to {r['high']:.3f}", r["n"]])
    first, seen = found["rows"][0], found["order"]
    right = "in the order of seed and epoch" if seen["as_ordered"] and seen["each_once"] else "NOT as ordered"
    told = (
        f"`{first['rule']}`, width {first['width']:g}; {found['images']:,} JPEGs of 128 × 128, {found['mib']:,} MiB "
        f"in shards. An epoch of {seen['steps']:,} batches, stopped after {seen['stopped_at']:,} and resumed in "
        f"another process, brought every image {right}; resident memory grew by {seen['growth_mib']:.0f} MiB "
        f"from the tenth batch on."
    )
    made_by = source("large_data").partition(";")[2]
    head = ["image size", "from disk, images/s", "in memory", "ratio", "95 %", "repeats"]
    return f"{markdown.table(head, lines)}\n\n{told} `{command}`;{made_by}"


def growth() -> str:
    """Exponents of time and memory along every axis, beside those of the arithmetic."""
    found = record("growth")
    if found is None:
        return missing("growth")
    lines: list[list[str]] = []
    for axis, rule in dict.fromkeys((e["axis"], e["rule"]) for e in found["exponents"]):
        by = {e["quantity"]: e for e in found["exponents"] if (e["axis"], e["rule"]) == (axis, rule)}
        time = by["seconds"]
        cells = [time["exponent"], time["arithmetic"]["products"], time["arithmetic"]["parameters"]]
        for quantity in ("activity", "total"):
            cells += [by[quantity]["exponent"], by[quantity]["arithmetic"][quantity]]
        lines.append([axis, rule, *(f"{c:.2f}" for c in cells)])
    head = ["axis", "rule", "time", "by products", "by parameters", "activity", "arithmetic", "total", "arithmetic"]
    return f"{markdown.table(head, lines)}\n\n{source('growth')}"


def inactive() -> str:
    """Shares of inactive samples as training goes on."""
    found = record("inactive")
    if found is None:
        return missing("inactive")
    lines: list[list[str]] = []
    for r in found["rows"]:
        by_block = " ".join(f"{v:.2f}" for v in r["none"])
        lines.append([r["rule"], f"{r['step']:,}", f"{r['own_mean']:.3f}", f"{r['none_mean']:.3f}", by_block])
    table = markdown.table(["rule", "steps", "own γ are 0", "leaves no ΔW", "by block"], lines)
    return f"{table}\n\n{found['data']}. {source('inactive')}"


def pc_states() -> str:
    """Predictive coding's update against backpropagation's, by the steps of inference."""
    found = record("pc_states")
    if found is None:
        return missing("pc_states")
    lines: list[list[object]] = []
    for r in found["rows"]:
        cosines = ["" if c is None else f"{c:.2f}".replace("-", "−") for c in r["cosines"]]
        lines.append([r["step"], r["T"], f"{r['loss_at_0']:.2f}", f"{r['loss']:.2f}", *cosines])
    blocks = [f"block {i + 1}" for i in range(len(found["rows"][0]["cosines"]))]
    table = markdown.table(["after training steps", "T", "loss, forward pass", "loss after T", *blocks], lines)
    return f"{table}\n\n{found['data']}, width {found['width']:g}, {found['batches']} batches. {source('pc_states')}"


def compiled() -> str:
    """A step with one part compiled against the same step without."""
    found = record("compiled")
    if found is None:
        return missing("compiled")
    lines: list[list[object]] = []
    for r in found["rows"]:
        ratio = f"{r['ratio']:.3f} ({r['low']:.3f} to {r['high']:.3f})"
        lines.append([r["rule"], r["compiled"], f"{r['width']:g}", ratio, r["n"], f"{r['seconds_to_compile']:.1f}"])
    table = markdown.table(["rule", "compiled", "width", "ratio (95 %)", "n", "seconds to compile"], lines)
    return f"{table}\n\n{source('compiled')}"


def record(name: str) -> dict[str, Any] | None:
    """What a benchmark wrote; None where it was not run."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def rows(name: str) -> list[dict[str, Any]]:
    """The rows that a benchmark wrote."""
    found = record(name)
    return [] if found is None else found["rows"]


def missing(name: str) -> str:
    """What stands in place of a table whose benchmark was not run."""
    return f"Not measured yet: `python benchmarks/{name}.py --out benchmarks/results/{name}.json`."


def ratio(r: Row) -> str:
    """A row's ratio with its interval."""
    return f"{r['ratio']:.3f} ({r['low']:.3f} to {r['high']:.3f})"


def source(name: str, command: str | None = None) -> str:
    """The command, which is named as its record unless it is given, and what it was run with."""
    found = record(name)
    assert found is not None
    first = found["rows"][0]
    batch = f"batches of {first['batch']}" if "batch" in first else f"batches of {first['batch_of_each']} a process"
    if len({r.get("batch") for r in found["rows"]}) > 1:
        batch = "batches as given"
    processor = "" if found.get("processor", "x86_64") == "x86_64" else f"{found['processor']}, "  # which says nothing
    return (
        f"`{command or f'python benchmarks/{name}.py --out benchmarks/results/{name}.json'}`; torch {found['torch']}, "
        f"{found['threads']} threads, {processor}{batch}, commit {found['commit']}."
    )
