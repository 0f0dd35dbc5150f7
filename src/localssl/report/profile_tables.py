"""What docs/engine.md says of where time goes: a step's parts, B's products, other engines, a GPU, the whole loop."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from localssl import markdown
from localssl.report.benchmark_tables import BASE, LOCAL, Row, missing, ratio, record, rows, source


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
        [rule, f"{width:g}", *(ratio(ratios[rule, width, b, chunk]) for b, chunk in kinds)]
        for rule, width in dict.fromkeys((v["rule"], v["width"]) for v in tried)
    ]
    made_by = (
        f"torch {found['torch']}, {found['threads']} threads, {found.get('processor', 'processor not noted')}, "
        f"batches of {found['batch']}, commit {found['commit']}"
    )
    return "\n\n".join(
        [
            markdown.table(["rule", "width", *names.values()], lines),
            f"The local rules' convolutions, on average, are {' and '.join(shares)} of backpropagation's. {_paid(of)}",
            "Ratio to backpropagation's step by MiB of drive a chunk (usual: 4) and by ΔB in tiles (usual) or whole:",
            markdown.table(["rule", "width", *names_of], variants),
            _usual(ratios),
            f"`{command}`; {made_by}.",
        ]
    )


def _paid(of: Mapping[tuple[str, float], Row]) -> str:
    """Convolutions that a rule saves, and what B costs it."""
    said: list[str] = []
    for (rule, width), p in of.items():
        if rule in LOCAL:
            base = of[BASE, width]
            saved = base["convolutions"] - p["convolutions"]
            paid = sum(p[key] - base[key] for key in ("g and ΔB", "optimiser"))
            said.append(f"`{rule}` at width {width:g} {saved:,.0f} and {paid:,.0f}")
    return (
        "Milliseconds of convolutions that a rule saves, and that B's products and the optimiser take more: "
        f"{'; '.join(said)}."
    )


def _usual(ratios: Mapping[tuple[str, float, str, float], Row]) -> str:
    """Where the usual chunks and tiles are not told from the best of a row."""
    best, worse = [], []
    for rule, width in dict.fromkeys(key[:2] for key in ratios):
        least = min(v["ratio"] for key, v in ratios.items() if key[:2] == (rule, width))
        usual = ratios[rule, width, "tiled", 4]
        (best if usual["low"] <= least else worse).append(f"`{rule}` at width {width:g}")
    told = f"; not of {' and '.join(worse)}" if worse else ""
    return f"The least ratio of a row is within the interval of what is usual, of {', '.join(best) or 'none'}{told}."


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


def weights() -> str:
    """The gradient of convolutions' weights by two ways."""
    found = record("weights")
    if found is None:
        return missing("weights")
    lines = [
        [
            f"{r['width']:g}",
            str(r["block"]),
            " → ".join(f"{c:,}" for c in r["channels"]),
            f"{r['side']} × {r['side']}",
            *(f"{r[f'ms_{way}']:.1f} ({r[f'billion_{way}']:.0f})" for way in ("forward", "onednn", "places")),
            f"{r['ratio']:.2f} ({r['low']:.2f} to {r['high']:.2f})",
            "products" if r["taken"] else "oneDNN",
        ]
        for r in found["rows"]
    ]
    head = ["width", "block", "channels", "map", "forward, ms", "ΔW by oneDNN", "ΔW by products", "products / oneDNN"]
    said = "In brackets billions of multiply-adds a second; of the ratio its 95 % interval."
    said += f" The processor has {found['capability']}."
    return f"{markdown.table([*head, 'the engine takes'], lines)}\n\n{said} {source('weights')}"


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
            r["width"],
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
    head = [
        "rule",
        "width",
        "loop, images/s",
        "of step and views",
        "95 %",
        "of the step alone",
        "with views made ahead",
    ]
    head += ["share of views", "repeats"]
    bare: dict[float, list[float]] = {}
    for r in found["rows"]:
        bare.setdefault(r["width"], []).append(r["of_step"])
    verdicts = [
        f"at width {width:g} it is {'met' if min(of) >= 0.95 else 'missed'} ({min(of):.3f} to {max(of):.3f})"
        for width, of in bare.items()
    ]
    said = f"The goal is 0.95 of the bare step: {'; '.join(verdicts)}."
    measured = [r["rule"] for r in found["rows"]]
    absent = [f"`{rule}`" for rule in (BASE, *LOCAL) if rule not in measured]
    absent += ["Width 1"] if 1 not in bare else []
    said += f" {' and '.join(absent)}: not measured yet, by the same command." if absent else ""
    return "\n\n".join([markdown.table(head, lines), f"{found['data']}. {source('throughput')}", said])
