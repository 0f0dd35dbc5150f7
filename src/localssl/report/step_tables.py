"""What docs/engine.md says of time: a step's, its parts, its goals, the whole loop's, and other engines and devices."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from localssl import markdown
from localssl.report.benchmark_tables import BASE, LOCAL, LOW_RANK, Row, missing, record, rows, source
from localssl.report.cheap_tables import cheap_sentence, resolved

AIMS = {  # ratio to backpropagation's step, by width: the aim, and for a dense B the least that was asked for
    "clapp++": {0.25: (0.90, 0.98), 1: (0.85, 1.00)},
    "clapp++dfb": {0.25: (0.88, 0.88), 1: (0.82, 0.93)},
    "clapp++both": {0.25: (0.97, 1.20), 1: (0.93, 1.20)},
    **{f"{rule}, B {kind} 64": {0.25: (0.72, None), 1: (0.67, None)} for kind in LOW_RANK for rule in LOCAL[:2]},
}
FASTER = {"clapp++": 2.5, "clapp++dfb": 1.9}  # times as fast as the published code's layout
OTHERS = ("step-epyc", "step-as-it-is")  # records of step.py beside step.json
PUBLISHED = {"clapp++": 2.2, "clapp++dfb": 1.6}  # of backpropagation's step at width 1, by which those were set


def step() -> str:
    """Time of a training step against backpropagation's."""
    found = [r for r in rows("step") if r["against"] == BASE]
    seconds = (record("step") or {}).get("seconds")
    took = f" The run took {seconds / 60:.0f} minutes." if seconds else ""
    return "\n".join([_step_table(found), "", *_about(found), source("step") + took])


def trained() -> str:
    """The same of networks that have learnt for a while."""
    name = "step-trained"
    if record(name) is None:
        command = (
            f"python benchmarks/step.py --trained 300 --widths 0.25 --repeats 21 --out benchmarks/results/{name}.json"
        )
        return f"Not measured yet: `{command}`."
    return "\n".join([_step_table(rows(name)), "", *_about(rows(name))])


def _step_table(found: Sequence[Row]) -> str:
    has_load = any("load" in r for r in found)
    lines: list[list[str]] = []
    for r in found:
        line = [r["rule"], r["engine"], r["layout"], "included" if r["views"] else "given", f"{r['width']:g}"]
        line += [f"{r['ratio']:.3f}", f"{r['low']:.3f} to {r['high']:.3f}"]
        line += [f"{r['milliseconds']:,.0f}", f"{r['milliseconds_against']:,.0f}", str(r["n"])]
        lines.append([*line, f"{r['load']:.1f}"] if has_load else line)
    head = ["rule", "engine", "layout", "views", "width", "ratio", "95 %", "ms", "BP's ms", "repeats"]
    return markdown.table([*head, "load before"] if has_load else head, lines)


def _about(found: Sequence[Row]) -> list[str]:
    """What the interval of few repeats is, and how far the rows' times of one and the same step are apart."""
    few = sorted({r["n"] for r in found if r["n"] < 6}, reverse=True)
    covered = ", ".join(f"of {n} repeats {100 * (1 - 2 ** (1 - n)):.0f} %" for n in few)
    lines = [f"An interval of few repeats is their range, which covers less than 95 %: {covered}."] if few else []
    for width in dict.fromkeys(r["width"] for r in found):
        same = [r["milliseconds_against"] for r in found if r["width"] == width and not r["views"]]
        lines.append(
            f"One and the same step of `{BASE}` at width {width:g} took {min(same):,.0f} to {max(same):,.0f} ms from "
            f"row to row (medians){_elsewhere(width)}."
        )
    if not any("load" in r for r in found):
        lines.append(
            "The load of the machine was not noted in this run: it was slower then, or did other things. Both steps "
            "of a pair meet that, but not alike, so these rows are to be measured again."
        )
    return ["\n".join(lines), ""]


def _elsewhere(width: float) -> str:
    """The same step in another record, where that is of the same processor."""
    one, other = ((record(name) or {}).get("processor") for name in ("step", "growth"))
    same = rows("growth") if one == other else []
    others = [r for r in same if r["axis"] == "width" and r["rule"] == BASE and r["width"] == width]
    return f"; in growth.json {1e3 * others[0]['seconds']:,.0f} ms" if others else ""


def goals() -> str:
    """What was aimed at beside what was measured."""
    found = _ratios("step")
    plain = [r for r in rows("step") if r["layout"] == "ours" and _plain(r)]
    first = {(r["rule"], r["width"]): _ratio(r) for r in plain if r["against"] != BASE}
    others = [_ratios(name) for name in OTHERS]
    lines: list[list[str]] = []
    for rule, by_width in AIMS.items():
        for width, (aim, least) in by_width.items():
            if (rule, width) not in found:
                continue
            r = found[rule, width]
            kind = rule.partition(", B ")[2].removesuffix(" 64")
            said = _met(r["ratio"], aim, least) if least is not None else _met_if_accurate(r["ratio"], aim, kind)
            shown = [f"{aim:.2f}", "" if least is None else f"{least:.2f}"]
            lines.append([rule, f"{width:g}", *shown, _ratio(r), said])
            lines[-1].append(first.get((rule, width), ""))
            lines[-1] += [_ratio(other[rule, width]) if (rule, width) in other else "" for other in others]
    head = ["rule", "width", "aim", "must", "measured", "met", "against BP that pools first"]
    head += [f"{name}.json" for name in OTHERS]
    table = markdown.table(head, lines)
    quotients = [f"`{rule}` {' and '.join(_published(rule))}" for rule in FASTER]
    widths = " and ".join(f"{w:g}" for w in dict.fromkeys(r["width"] for r in rows("step")))
    aims = " and ".join(f"{times:g}" for times in FASTER.values())
    reached = all(float(x) >= times for rule, times in FASTER.items() for x in _published(rule))
    said = (
        f"Times as fast as the published layout, in one process, views included, at widths {widths}: "
        f"{'; '.join(quotients)}. {aims} were aimed at: {'reached' if reached else 'missed'}."
    )
    theirs = [r for r in rows("step") if (r["layout"], r["width"]) == ("published", 1)]
    of = " and ".join(f"{r['ratio']:.2f} for `{r['rule']}`" for r in theirs)
    said += (
        f" The aims were set by a measurement of that layout elsewhere, {PUBLISHED['clapp++']:g} and "
        f"{PUBLISHED['clapp++dfb']:g} of backpropagation's step at width 1; in one process that keeps freed memory it "
        f"takes {of} here. What it takes as its users have it: [below](#the-published-layout)."
    )
    records = [("By medians", found)]
    for name, other in zip(OTHERS, others, strict=True):
        made_by = record(name) or {}
        records.append((f"In {name}.json ({made_by.get('processor')}, commit {made_by.get('commit')})", other))
    musts = [_musts(how, {place: r["ratio"] for place, r in of.items()}) for how, of in records if of]
    return "\n\n".join([table, *musts, said, cheap_sentence()])


def _ratios(name: str) -> dict[tuple[str, float], Row]:
    """Rows of our layout against backpropagation's step, by rule and width."""
    found = [r for r in rows(name) if r["layout"] == "ours" and _plain(r) and r["against"] == BASE]
    return {(r["rule"], r["width"]): r for r in found}


def _musts(how: str, ratios: Mapping[tuple[str, float], float]) -> str:
    """Which of the musts these ratios, by rule and width, meet."""
    met: dict[bool, list[str]] = {True: [], False: []}
    for rule, by_width in AIMS.items():
        for width, (_, least) in by_width.items():
            if least is not None and (rule, width) in ratios:
                ratio = ratios[rule, width]
                met[ratio <= least].append(f"`{rule}` at width {width:g} ({ratio:.3f} of {least:.2f})")
    said = [
        f"the must is {word} by {', '.join(met[key])}" for key, word in ((True, "met"), (False, "missed")) if met[key]
    ]
    return f"{how} {'; '.join(said)}."


def _ratio(r: Row) -> str:
    return f"{r['ratio']:.3f} ({r['low']:.3f} to {r['high']:.3f})"


def _plain(r: Row) -> bool:
    return not r["views"] and r["engine"] == "hebbian"


def _met(ratio: float, aim: float, least: float) -> str:
    return "yes" if ratio <= aim else "the must alone" if ratio <= least else "no"


def _met_if_accurate(ratio: float, aim: float, kind: str) -> str:
    if ratio > aim:
        return "no"
    return "yes" if resolved(kind) else "not counted: accuracy not resolved"


def _published(rule: str) -> list[str]:
    mine = [r for r in rows("step") if r["rule"] == rule and r["views"]]
    ours, theirs = ([r for r in mine if r["layout"] == layout] for layout in ("ours", "published"))
    return [f"{t['ratio'] / o['ratio']:.2f}" for o, t in zip(ours, theirs, strict=True)]


def parts() -> str:
    """Where a step's time goes, and what other chunks take."""
    found = record("parts")
    command = "python benchmarks/parts.py --out benchmarks/results/parts.json"
    if found is None:
        return f"Not measured yet: `{command}`."
    names = {
        "convolutions": "convolutions",
        "g and ΔB": "g = cBᵀ and ΔB",
        "optimiser": "optimiser",
        "pool, gate, spreading": "ReLU, pool, gate, spreading",
        "other": "other operations",
        "outside": "outside of operations",
        "step": "step",
    }
    of = {(p["rule"], p["width"]): p for p in found["parts"]}
    lines = [[rule, f"{width:g}", *(f"{p[key]:,.1f}" for key in names)] for (rule, width), p in of.items()]
    shares = [
        f"{statistics.mean(of[rule, w]['convolutions'] for rule in LOCAL) / of[BASE, w]['convolutions']:.2f}"
        for w in dict.fromkeys(width for _, width in of)
    ]
    tried = found["variants"]
    kinds = [(b, chunk) for chunk in dict.fromkeys(v["chunk_mib"] for v in tried) for b in ("tiled", "dense")]
    ratios = {(v["rule"], v["width"], v["b"], v["chunk_mib"]): v for v in tried}
    names_of = [f"{'none' if chunk > 100 else chunk}, {b}" for b, chunk in kinds]
    variants = [
        [rule, f"{width:g}", *(_ratio(ratios[rule, width, b, chunk]) for b, chunk in kinds)]
        for rule, width in dict.fromkeys((v["rule"], v["width"]) for v in tried)
    ]
    made_by = (
        f"torch {found['torch']}, {found['threads']} threads, {found.get('processor', 'processor not noted')}, "
        f"batches of {found['batch']}, commit {found['commit']}"
    )
    return "\n\n".join(
        [
            markdown.table(["rule", "width", *names.values()], lines),
            f"The local rules' convolutions, on average, are {' and '.join(shares)} of backpropagation's.",
            "Ratio to backpropagation's step by MiB of drive a chunk (usual: 4) and by ΔB in tiles (usual) or whole:",
            markdown.table(["rule", "width", *names_of], variants),
            f"`{command}`; {made_by}.",
        ]
    )


def products() -> str:
    """The two products of B by two libraries, on two processors."""
    names = [name for name in ("products", "products-epyc") if rows(name)]
    if not names:
        return missing("products")
    lines: list[list[str]] = []
    for name in names:
        for r in rows(name):
            line = [f"{name}.json", r["product"], f"{r['d']:,}", r["library"], f"{r['ms']:.1f}"]
            lines.append([*line, f"{r['low']:.1f} to {r['high']:.1f}", f"{r['billion_a_second']:.0f}", str(r["n"])])
    head = ["record", "product", "d", "library", "ms", "95 %", "billion multiply-adds a second", "repeats"]
    said = ", ".join(f"{name}.json commit {found['commit']}" for name in names if (found := record(name)))
    return f"{markdown.table(head, lines)}\n\n{source(names[0])} {said}."


def published() -> str:
    """The published code's layout, each case in a process of its own."""
    found = rows("published")
    if not found:
        return missing("published")
    lines: list[list[str]] = []
    for r in found:
        line = [r["rule"], r["layout"], "kept" if r["kept"] else "as it is", f"{r['width']:g}"]
        line += [f"{r['milliseconds']:,.0f}", f"{r['faults']:,}"]
        line += [_three(r, name) if name in r else "" for name in ("of_bp", "of_ours_alike", "of_ours")]
        lines.append([*line, str(r["n"])])
    head = ["rule", "layout", "freed memory", "width", "ms", "page faults", "of BP's", "of the engine's"]
    head += ["of the engine's, kept", "rounds"]
    said: list[str] = []
    for r in found:
        if (r["layout"], r["kept"]) == ("published", False):
            aim = FASTER[r["rule"]]
            verdict = "reached" if r["of_ours"] >= aim else "missed"
            said.append(
                f"`{r['rule']}`, which keeps freed memory, is {_three(r, 'of_ours')} times as fast as that layout with "
                f"the allocator as it is (aim {aim:g}: {verdict}), and {_three(r, 'of_ours_alike')} times where "
                "neither keeps it."
            )
    return "\n\n".join([markdown.table(head, lines), source("published"), " ".join(said)])


def _three(r: Row, name: str) -> str:
    value, low, high = (r[f"{name}{end}"] for end in ("", "_low", "_high"))
    return f"{value:.2f} ({low:.2f} to {high:.2f})"


def allocator() -> str:
    """Steps with the C library's allocator as it is, and told to keep what is freed."""
    found = rows("allocator")
    if not found:
        return missing("allocator")
    lines: list[list[str]] = []
    base = {(r["width"], r["kept"]): r["milliseconds"] for r in found if r["rule"] == BASE}
    for before, after in zip(found[::2], found[1::2], strict=True):
        assert (before["kept"], after["kept"]) == (False, True)
        line = [before["rule"], f"{before['width']:g}"]
        for r in (before, after):
            line += [f"{r['milliseconds']:,.0f} ({r['low']:,.0f} to {r['high']:,.0f})", f"{r['faults']:,}"]
        ratio = after["milliseconds"] / base[after["width"], True]
        lines.append([*line, f"{ratio:.2f}", f"{before['peak_mib']:,}", f"{after['peak_mib']:,}", str(after["n"])])
    head = ["rule", "width", "ms", "page faults", "ms, kept", "page faults", "of BP's, kept", "peak, MiB", "peak, kept"]
    head.append("repeats")
    kept = {(r["rule"], r["width"]): r["milliseconds"] / base[r["width"], True] for r in found if r["kept"]}
    return "\n\n".join([markdown.table(head, lines), source("allocator"), _musts("Alone and with kept memory", kept)])


def engines() -> str:
    """The engine without autograd against autograd by network, batch and rule, and what ``auto`` takes."""
    found = rows("engines")
    if not found:
        return missing("engines")
    lines = [
        [
            r["encoder"],
            f"{r['width']:g}",
            str(r["batch"]),
            r["rule"],
            f"{r['ratio']:.3f}",
            f"{r['low']:.3f} to {r['high']:.3f}",
            f"{r['milliseconds']:.1f}",
            f"{r['milliseconds_autograd']:.1f}",
            r["auto"],
            str(r["n"]),
            f"{r['load']:.1f}",
        ]
        for r in found
    ]
    head = ["network", "width", "batch", "rule", "hebbian / autograd", "95 %", "ms", "autograd's ms", "auto takes"]
    head += ["repeats", "load before"]
    return f"{markdown.table(head, lines)}\n\n{_chosen(found)}\n\n{source('engines')}"


def _chosen(found: Sequence[Row]) -> str:
    """How far ``auto`` was from the faster engine of every row."""
    lost = {id(r): (r["ratio"] if r["auto"] == "hebbian" else 1 / r["ratio"]) - 1 for r in found}
    slower = [r for r in found if lost[id(r)] > 0]
    told = [r for r in slower if (r["low"] > 1 if r["auto"] == "hebbian" else r["high"] < 1)]
    most = max(slower, key=lambda r: lost[id(r)], default=None)
    if most is None:
        return f"`auto` takes the faster engine, by medians, in all {len(found)} rows."
    return (
        f"`auto` takes the slower engine, by medians, in {len(slower)} of {len(found)} rows, in {len(told)} of them by "
        f"more than the interval; most in `{most['rule']}` on {most['encoder']} of width {most['width']:g} in batches "
        f"of {most['batch']}, where its step takes {100 * lost[id(most)]:.1f} % longer than the other's."
    )


def gpu() -> str:
    """Images a second on a GPU, and what bounds them."""
    found = record("gpu")
    if found is None:
        return (
            "Not measured here: `python benchmarks/gpu.py --device cuda --out benchmarks/results/gpu.json`. Aimed at, "
            "for `clapp++both` at full width on CIFAR-10, views included, in bf16 on an H100: 7,000 images a second at "
            "batches of 32, 12,500 at 128. A real run of it: `localssl train --rule clapp++both --data cifar10 "
            "--epochs 300 --device cuda --precision bf16-mixed --out runs/full`."
        )
    lines = [
        [
            r["rule"],
            f"{r['width']:g}",
            str(r["batch"]),
            r["precision"],
            f"{r['images_per_second']:,.0f}",
            f"{r['low']:,.0f} to {r['high']:,.0f}",
            f"{r['images_per_second_without_views']:,.0f}",
            f"{r['peak_mib']:,.0f}" if r["peak_mib"] else "",
            f"{r['busy']:.2f}",
            r["bound_by"],
        ]
        for r in found["rows"]
    ]
    head = ["rule", "width", "batch", "precision", "images/s", "95 %", "without views", "peak, MiB", "busy", "bound by"]
    command = f"`python benchmarks/gpu.py --device cuda --out benchmarks/results/gpu.json`; {found['device']}"
    return f"{markdown.table(head, lines)}\n\n{command}, torch {found['torch']}, commit {found['commit']}."


def throughput() -> str:
    """Images a second of the whole loop against its step."""
    found = record("throughput")
    if found is None:
        return missing("throughput")
    lines = [
        [
            r["rule"],
            f"{r['images_per_second']:,.0f}",
            f"{r['of_step_and_views']:.3f}",
            f"{r['of_step_and_views_low']:.3f} to {r['of_step_and_views_high']:.3f}",
            f"{r['of_step']:.3f}",
            f"{r['ahead_of_step']:.3f} ({r['ahead_of_step_low']:.3f} to {r['ahead_of_step_high']:.3f})",
            f"{r['views_share']:.3f}",
            r["n"],
        ]
        for r in found["rows"]
    ]
    head = ["rule", "loop, images/s", "of step and views", "95 %", "of the step alone", "with views made ahead"]
    head += ["share of views", "repeats"]
    bare = [r["of_step"] for r in found["rows"]]
    measured = [r["rule"] for r in found["rows"]]
    verdict = "met" if min(bare) >= 0.95 else "missed"
    absent = [f"`{rule}`" for rule in (BASE, *LOCAL) if rule not in measured]
    said = f"The goal, 0.95 of the bare step, is {verdict}: it is {min(bare):.3f} to {max(bare):.3f}."
    said += f" {' and '.join(absent)}: not measured yet, by the same command." if absent else ""
    return "\n\n".join([markdown.table(head, lines), f"{found['data']}. {source('throughput')}", said])
