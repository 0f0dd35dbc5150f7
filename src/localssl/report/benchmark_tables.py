"""Tables of the documentation that are made from benchmarks/results of this checkout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"


def step() -> str:
    """Time of a training step against backpropagation's."""
    rows = _rows("step")
    lines = ["| rule | engine | layout | views | width | ratio | 95 % | repeats |", "|---|---|---|---|---|---|---|---|"]
    for r in rows:
        views = "included" if r["views"] else "given"
        lines.append(
            f"| {r['rule']} | {r['engine']} | {r['layout']} | {views} | {r['width']:g} | {r['ratio']:.3f} "
            f"| {r['low']:.3f} to {r['high']:.3f} | {r['n']} |"
        )
    return "\n".join([*lines, "", _source("step")])


def memory() -> str:
    """Peak memory of a training step against backpropagation's."""
    lines = [
        "| rule | engine | B | width | blocks | activity, MiB | of BP's | total, MiB | of BP's |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['rule']} | {r['engine']} | {r['projection']} | {r['width']:g} | {r['depth']} | {r['activity']:,.1f} "
        f"| {r['activity_ratio']:.2f} | {r['total']:,.0f} | {r['total_ratio']:.2f} |"
        for r in _rows("memory")
    ]
    return "\n".join([*lines, "", _source("memory")])


def pipeline() -> str:
    """Throughput of layer-parallel training against one process."""
    if not (RESULTS / "pipeline.json").is_file():
        return "Not measured yet: `python benchmarks/pipeline.py --out benchmarks/results/pipeline.json`, idle machine."
    lines = [
        "| rule | staleness | processes | blocks of each | width | images/s | of one | times | 95 % | repeats |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['rule']} | {r['staleness']} | {r['processes']} | {' + '.join(map(str, r['split']))} | {r['width']:g} "
        f"| {r['images_per_second']:.0f} | {r['images_per_second_alone']:.0f} | {r['ratio']:.2f} "
        f"| {r['low']:.2f} to {r['high']:.2f} | {r['n']} |"
        for r in _rows("pipeline")
    ]
    return "\n".join([*lines, "", _source("pipeline").replace(" 1 threads", " one thread a process")])


def _record(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def _rows(name: str) -> list[dict[str, Any]]:
    return _record(name)["rows"]


def _source(name: str) -> str:
    record = _record(name)
    return (
        f"`python benchmarks/{name}.py --out benchmarks/results/{name}.json`; torch {record['torch']}, "
        f"{record['threads']} threads, batches of {_rows(name)[0]['batch']}, commit {record['commit']}."
    )
