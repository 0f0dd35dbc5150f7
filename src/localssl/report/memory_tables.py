"""What docs/engine.md says of memory: goals, where the total falls below backpropagation's, the paper's claim."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from localssl import encoders, markdown, rules
from localssl.data.specs import default_patches
from localssl.report import arithmetic
from localssl.report.benchmark_tables import BASE, CHEAP, LOCAL, LOW_RANK, Row, missing, record, rows, source
from localssl.report.cheap_tables import cheap_sentence
from localssl.rules import ScoreRule


def memory_goals() -> str:
    """The two figures at full width and at width 0.25 against their goals."""
    of = {(r["rule"], r["engine"], r["projection"], r["width"]): r for r in rows("memory") if r["depth"] == 6}

    def each(engine: str, width: float, names: Sequence[str]) -> str:
        return ", ".join(f"`{n}` {of[n, engine, 'dense', width]['activity_ratio']:.3f}" for n in names)

    def judged(width: float) -> str:
        ratios = {n: of[n, "hebbian", "dense", width]["activity_ratio"] for n in LOCAL}
        missed = [f"`{n}`" for n, ratio in ratios.items() if ratio > (0.35 if n == LOCAL[0] else 0.45)]
        return f"missed by {' and '.join(missed)}" if missed else "reached by all three"

    cheap = [r["total_ratio"] for (_, _, kind, width), r in of.items() if kind in LOW_RANK and width == 1]
    dense = [r["total_ratio"] for r in rows("memory") if r["projection"] == "dense" and r["rule"] in LOCAL]
    return "\n\n".join(
        [
            "Aimed at, in activity at six blocks: at most 0.35 of backpropagation's for lateral rules and 0.45 for "
            f"`hebbian` with feedback. Measured at full width: {each('hebbian', 1, LOCAL)}: {judged(1)}; under "
            f"`hebbian-lean` {each('hebbian-lean', 1, LOCAL[1:])}. At width 0.25: {each('hebbian', 0.25, LOCAL)}: "
            f"{judged(0.25)}.",
            f"The *total* with a dense B is {min(dense):.2f} to {max(dense):.2f} of backpropagation's in the rows "
            "above, all of 32 images of 32 × 32. With the low-rank B it is at full width "
            f"{min(cheap):.2f} to {max(cheap):.2f} of it. {cheap_sentence()}",
        ]
    )


def crossovers() -> str:
    """Where the total falls below backpropagation's, along every axis that grows."""
    found = record("growth")
    if found is None:
        return missing("growth")
    base = {(r["axis"], r["x"]): r for r in found["rows"] if r["rule"] == BASE}
    kinds = {"dense": found["rows"], CHEAP: found.get("low_rank", {}).get("rows", [])}
    kinds[CHEAP] = [*kinds[CHEAP], *_of_memory()]
    lines: list[list[str]] = []
    for axis in dict.fromkeys(r["axis"] for r in found["rows"]):
        for kind, measured in kinds.items():
            for rule in LOCAL:
                mine = {r["x"]: _ratio(r, base) for r in measured if (r["axis"], r["rule"]) == (axis, rule)}
                if mine:
                    shown = ", ".join(f"{x:g}: {ratio:.2f}" for x, ratio in sorted(mine.items()))
                    lines.append([axis, rule, kind, shown, below(mine)])
    said = source("growth")
    if commit := found.get("low_rank", {}).get("commit"):
        there = {(r["axis"], r["x"]) for r in kinds[CHEAP]}
        absent = ", ".join(f"{axis} {x:g}" for axis, x in base if (axis, x) not in there)
        said += f" Low-rank rows: `--low-rank-only`, commit {commit}; along depth and width: memory.json."
        said += f" Not measured with it: {absent}." if absent else ""
    head = ["axis", "rule", "B", "total / backpropagation's at each place", "below it"]
    said = "\n\n".join(filter(None, [said, _two_runs(base, found["rows"])]))
    return "\n\n".join([markdown.table(head, lines), said, _at_full_width()])


def _two_runs(base: Mapping[tuple[str, float], Row], grown: Sequence[Row]) -> str:
    """How far two measurements of the same totals are apart, where they are farthest."""
    plain = [r for r in rows("memory") if (r["projection"], r["engine"]) == ("dense", "hebbian")]
    there = {(r["axis"], r["x"], r["rule"]): _ratio(r, base) for r in grown}
    pairs: list[tuple[float, float, str]] = []
    cases = set[tuple[str, float, int]]()
    for r in plain:
        places = [("width", r["width"])] if r["depth"] == 6 else []
        places += [("depth", float(r["depth"]))] if r["width"] == 0.25 else []
        for axis, x in places:
            if (axis, x, r["rule"]) in there:
                cases.add((r["rule"], r["width"], r["depth"]))
                pairs.append((r["total_ratio"], there[axis, x, r["rule"]], f"`{r['rule']}` at {axis} {x:g}"))
    if not pairs:
        return ""
    one, other, where = max(pairs, key=lambda pair: max(pair[0] / pair[1], pair[1] / pair[0]))
    return (
        "A total is the peak of one process, and this table and the one above are of different ones: of their "
        f"{len(cases)} common cases they are farthest apart for {where}, {one:.2f} above and {other:.2f} here "
        "(growth.json is of an earlier engine)."
    )


def below(ratios: Mapping[float, float]) -> str:
    """Where ratios by place are below one, in words."""
    places = sorted(ratios)
    under = [x for x in places if ratios[x] < 1]
    if not under or len(under) == len(places):
        return "everywhere measured" if under else "nowhere measured"
    if under == places[-len(under) :]:
        return f"from {under[0]:g}"
    return f"up to {under[-1]:g}" if under == places[: len(under)] else ", ".join(f"{x:g}" for x in under)


def _of_memory() -> list[dict[str, Any]]:
    """memory.json's rows with the low-rank B, as places of the axes depth and width."""
    mine = [r for r in rows("memory") if r["projection"] == CHEAP]
    depths = [{"axis": "depth", "x": float(r["depth"]), **r} for r in mine if r["width"] == 0.25]
    return [*depths, *({"axis": "width", "x": r["width"], **r} for r in mine if r["depth"] == 6)]


def _ratio(r: Row, base: Mapping[tuple[str, float], Row]) -> float:
    return r["total_ratio"] if "total_ratio" in r else r["total"] / base[r["axis"], r["x"]]["total"]


def _at_full_width() -> str:
    """By arithmetic, where measuring it would take many GiB."""
    batches = [2**k for k in range(3, 13)]
    sizes = [2**k for k in range(5, 11)]
    said: list[str] = []
    for rule in LOCAL:
        batch = _first(batches, lambda n, rule=rule: _costs(rule, n, 32))
        size = _first(sizes, lambda s, rule=rule: _costs(rule, 32, s))
        said.append(f"`{rule}` from a batch of {batch} or images of {size} pixels a side")
    return (
        "By arithmetic, at full width with a dense B, the total falls below backpropagation's, doubling the one and "
        f"leaving the other at 32: {'; '.join(said)}. Depth does not help it: every block brings its own B."
    )


def _first(places: Sequence[int], costs: Callable[[int], tuple[int, int]]) -> str:
    return next((f"{x:,}" for x in places if costs(x)[0] < costs(x)[1]), f"more than {places[-1]:,}")


def _costs(rule: str, batch: int, size: int) -> tuple[int, int]:
    """Numbers in all, of the rule and of backpropagation, at full width; patches as large as their number stays."""
    patches = [max(1, p * size // 32) if p else None for p in default_patches("vgg6", 32) or ()]
    with torch.device("meta"):
        net = encoders.vgg6()
        mine, base = (arithmetic.step(net, rules.get(r), (3, size, size), patches, batch).total for r in (rule, BASE))
    return mine, base


def temporal() -> str:
    """The paper's claim about memory (section 5), counted: between the views, and in a batch."""
    with torch.device("meta"):
        net = encoders.vgg6()
        found = arithmetic.layers(net, (3, 32, 32), default_patches("vgg6", 32) or ())
    lines: list[list[str]] = []
    for name in LOCAL:
        rule = rules.get(name)
        assert isinstance(rule, ScoreRule)
        numbers = arithmetic.between_views(found, rule), arithmetic.in_batch(found, rule)
        lines.append([name, *(f"{n:,}" for n in numbers)])
    head = ["rule", "numbers between view a and view b", "numbers a sample and view in a batch, `hebbian`"]
    return f"{markdown.table(head, lines)}\n\nvgg6 at full width on 3 × 32 × 32, counted by `make docs`."
