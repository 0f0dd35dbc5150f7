"""What docs/engine.md says of a step's time: against backpropagation's, its goals, and what kept memory is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from localssl import markdown
from localssl.report.benchmark_tables import BASE, LOCAL, LOW_RANK, Row, missing, ratio, record, rows, source
from localssl.report.cheap_tables import cheap_sentence, resolved

AIMS = {  # ratio to backpropagation's step, by width: the aim, and for a dense B the least that was asked for
    "clapp++": {0.25: (0.90, 0.98), 1: (0.85, 1.00)},
    "clapp++dfb": {0.25: (0.88, 0.88), 1: (0.82, 0.93)},
    "clapp++both": {0.25: (0.97, 1.20), 1: (0.93, 1.20)},
    **{f"{rule}, B {kind} 64": {0.25: (0.72, None), 1: (0.67, None)} for kind in LOW_RANK for rule in LOCAL[:2]},
}
FASTER = {"clapp++": 2.5, "clapp++dfb": 1.9}  # times as fast as the published code's layout
FIRST = f"{BASE} pool first"  # backpropagation that has the engine's order and gradient of weights
SHARED = "a backpropagation that pools first and makes the gradient of weights as the engine does"
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
    command = f"python benchmarks/step.py --trained 300 --widths 0.25 --repeats 21 --out benchmarks/results/{name}.json"
    if record(name) is None:
        return f"Not measured yet: `{command}`."
    return "\n".join([_step_table(rows(name)), "", *_about(rows(name)), source(name, command)])


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
    others = {name: _ratios(name) for name in OTHERS}
    first = {name: _ratios(name, FIRST) for name in ("step", *OTHERS)}
    lines: list[list[str]] = []
    for rule, by_width in AIMS.items():
        for width, (aim, least) in by_width.items():
            if (rule, width) not in found:
                continue
            r = found[rule, width]
            kind = rule.partition(", B ")[2].removesuffix(" 64")
            said = _met(r["ratio"], aim, least) if least is not None else _met_if_accurate(r["ratio"], aim, kind)
            shown = [f"{aim:.2f}", "" if least is None else f"{least:.2f}"]
            lines.append([rule, f"{width:g}", *shown, ratio(r), said])
            beside = [first["step"]]
            for name in OTHERS:
                beside += [others[name], first[name]] if first[name] else [others[name]]
            lines[-1] += [ratio(of[rule, width]) if (rule, width) in of else "" for of in beside]
    head = ["rule", "width", "aim", "must", "measured", "met", "against BP that pools first"]
    for name in OTHERS:
        head += [f"{name}.json", *([f"{name}.json, pools first"] if first[name] else [])]
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
    records = [("By medians", found), (f"Against {SHARED}", first["step"])]
    for name, other in others.items():
        made_by = record(name) or {}
        records.append((f"In {name}.json ({made_by.get('processor')}, commit {made_by.get('commit')})", other))
        records.append((f"In {name}.json against {SHARED}", first[name]))
    if first["step"] and "capability" not in (record("step") or {}):
        said += (
            " (step.json is of a time when that backpropagation only pooled first, as it does with AVX-512 still; the "
            "record does not say what its processor has.)"
        )
    musts = [_musts(how, {place: r["ratio"] for place, r in of.items()}) for how, of in records if of]
    return "\n\n".join([table, *musts, said, cheap_sentence()])


def _ratios(name: str, against: str = BASE) -> dict[tuple[str, float], Row]:
    """Rows of our layout against backpropagation's step, by rule and width."""
    found = [r for r in rows(name) if r["layout"] == "ours" and _plain(r) and r["against"] == against]
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
