"""The charts of the pages, in Vega-Altair. Colours are the page's own variables, so that they follow light and dark."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
from matplotlib import colormaps
from matplotlib.colors import to_hex

VERSION = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])  # of Vega-Lite
STEPS = 12  # colours of what is ordered: blocks
POINTS = 400  # of one line; longer ones are averaged
_CLASSES = ("0072B2", "C27C00", "00936B", "CC79A7", "B8320A", "1FA0C4", "5F3F14", "7A7A7A", "4F6B00", "5A3E9B")
_ON_DARK = ("4DA3E0", "F0B430", "20C997", "E89CC6", "FF7F3F", "9AD4F5", "C4A265", "B0B0B0", "E0E050", "A990E0")

LABEL = 220  # pixels of a row's name, at most; on a phone less
_LABEL = alt.expr(f"containerSize()[0] < 500 ? 110 : {LABEL}")

Row = dict[str, Any]


def colours(dark: bool) -> dict[str, str]:
    """The page's variables: of the page itself, of blocks (b0, b1, …: dark to bright) and of classes (c0, c1, …)."""
    page = ("#16181d", "#e6e6e6", "#a8adb7", "#3a3e47", "#22252c", "#7cc0ff") if dark else ()
    page = page or ("#ffffff", "#1a1a1a", "#555b66", "#d9dce1", "#f3f4f6", "#0b5cad")
    plasma = colormaps["plasma"]
    low, high = (0.4, 1.0) if dark else (0.0, 0.62)  # what stands out from the page, 3 to 1 as all that is drawn
    ordered = {f"b{i}": to_hex(plasma(low + (high - low) * i / (STEPS - 1))) for i in range(STEPS)}
    classes = {f"c{i}": f"#{colour}" for i, colour in enumerate(_ON_DARK if dark else _CLASSES)}
    names = ("paper", "ink", "muted", "grid", "shade", "link")
    return {**dict(zip(names, page, strict=True)), **ordered, **classes}


def shade(i: int, n: int) -> str:
    """Colour of the i-th of n things in order."""
    return f"var(--b{round(i * (STEPS - 1) / max(1, n - 1))})"


def lines(rows: Sequence[Row], x: str, y: str, of: str, everything: Sequence[str] = ()) -> Row:
    """One line for every value of ``of``, in its order of appearance; with points where they are few.

    Args:
        rows: one a point, with the keys ``x``, ``y`` and ``of``; those without a value of ``y`` are left out.
        x, y, of: titles of the axes and the legend; x counts something.
        everything: of which the lines are some, so that colours are those of other charts.
    """
    found = [row for row in rows if row[y] is not None]
    names = list(dict.fromkeys(str(row[of]) for row in found))
    ordered = list(everything) or names
    colour = _colour(of, names, [shade(ordered.index(name), len(ordered)) for name in names])
    few = len(found) <= 40 * len(names)
    chart = (
        alt.Chart(_data([{"x": row[x], "y": row[y], "of": str(row[of])} for row in found]))
        .mark_line(point={"size": 30} if few else False, strokeWidth=2, aria=False)
        .encode(
            x=alt.X("x:Q", title=x, axis=alt.Axis(tickMinStep=1)),
            y=alt.Y("y:Q", title=y, scale=alt.Scale(zero=False)),
            color=colour,
            tooltip=_tips(x=x, y=y, of=of),
        )
    )
    return _spec(chart)


def intervals(rows: Sequence[Row], x: str, y: str, of: str) -> Row:
    """Points with intervals side by side, one for every value of ``of``.

    Args:
        rows: with the keys ``x``, ``y``, ``of``, "low" and "high" (None: no interval), and where it is wanted "mark",
            drawn as a grey tick: a null, a published number.
        x, y, of: titles.
    """
    names = list(dict.fromkeys(str(row[of]) for row in rows))
    colour = _colour(of, names, [f"var(--c{i % len(_CLASSES)})" for i in range(len(names))])
    data = [
        {"x": row[x], "y": row[y], "of": str(row[of]), "low": row["low"], "high": row["high"], "mark": row.get("mark")}
        for row in rows
    ]
    base = alt.Chart(_data(data)).encode(x=_ordinal(x), xOffset=alt.XOffset("of:N", sort=names))
    points = base.mark_point(filled=True, size=60, aria=False, opacity=1).encode(
        y=alt.Y("y:Q", title=y, scale=alt.Scale(zero=False, nice=True, padding=8)),
        color=colour,
        shape=alt.Shape("of:N", sort=names, legend=None),
        tooltip=_tips(x=x, y=y, of=of, low="low", high="high"),
    )
    bars = base.mark_rule(strokeWidth=2, aria=False).encode(y=alt.Y("low:Q"), y2="high", color=colour)
    shown: list[alt.Chart] = [bars, points] if any(row["low"] is not None for row in data) else [points]
    if any(row["mark"] is not None for row in data):
        ticks = base.mark_tick(thickness=2, size=14, opacity=1, aria=False, color="var(--muted)")
        shown.append(ticks.encode(y=alt.Y("mark:Q")))
    return _spec(alt.layer(*shown))


def ranking(rows: Sequence[Row], x: str) -> Row:
    """A point with its interval on a line of its own for every row, from top to bottom.

    Args:
        rows: with the keys "name", ``x``, "low" and "high" (None: no interval), "colour" ("untrained", "ours") and
            where there is one "mark", drawn as a grey diamond: a published number.
        x: title.
    """
    names = [str(row["name"]) for row in rows]
    data = [{**row, "x": row[x]} for row in rows]
    base = alt.Chart(_data([{k: v for k, v in row.items() if k != x} for row in data])).encode(
        y=alt.Y(
            "name:N", title=None, sort=names, axis=alt.Axis(labelLimit=_LABEL, domain=False, ticks=False, grid=True)
        )
    )
    scale = alt.Scale(zero=False, nice=True, padding=8)
    colour = alt.Color(
        "kind:N", legend=None, scale=alt.Scale(domain=["untrained", "ours"], range=["var(--muted)", "var(--c0)"])
    )
    tips = [*_tips(name="rule", x=x, low="low", high="high"), *_tips(mark="published")]
    points = base.mark_point(filled=True, size=70, opacity=1, aria=False).encode(
        x=alt.X("x:Q", title=x, scale=scale), color=colour, tooltip=tips
    )
    shown: list[alt.Chart] = [points]
    if any(row["low"] is not None for row in rows):
        shown.insert(0, base.mark_rule(strokeWidth=2, aria=False).encode(x="low:Q", x2="high", color=colour))
    if any(row.get("mark") is not None for row in rows):
        diamonds = base.mark_point(shape="diamond", size=90, strokeWidth=2, opacity=1, aria=False, color="var(--c4)")
        shown.append(diamonds.encode(x="mark:Q", tooltip=tips))
    return _spec(alt.layer(*shown), height=40 + 26 * len(rows))


def grid(rows: Sequence[Row], value: str, low: float, high: float) -> Row:
    """Cells with their number, a row for every "name", a column for every "block".

    Args:
        rows: with the keys "name", "block" and ``value``.
        value: title.
        low, high: ends of the colours; from below 0 to above it, 0 is white and what is below has its own colour.
    """
    names = list(dict.fromkeys(str(row["name"]) for row in rows))
    data = [
        {
            "name": r["name"],
            "block": r["block"],
            "value": r[value],
            "text": f"{r[value]:.2f}".replace("-0.00", "0.00"),
        }
        for r in rows
    ]
    base = alt.Chart(_data(data)).encode(
        x=alt.X("block:O", title="block", sort=None, axis=alt.Axis(labelAngle=0)),
        y=alt.Y("name:N", title=None, sort=names, axis=alt.Axis(labelLimit=_LABEL)),
    )
    signed = low < 0 < high
    scale = alt.Scale(domain=[low, high], scheme="redblue" if signed else "blues")
    colour = alt.Color("value:Q", title=value, legend=None, scale=scale)
    cells = base.mark_rect(aria=False).encode(color=colour, tooltip=_tips(name="rule", block="block", value=value))
    dark = "contrast('#ffffff', scale('color', datum.value)) >= 4.5"  # where it is not, black has more
    columns = len({row["block"] for row in rows})
    fits = alt.expr(f"containerSize()[0] < {LABEL + 34 * columns} ? 0 : 1")  # the numbers are in the table, too
    text = base.mark_text(aria=False, fontSize=11, opacity=fits).encode(
        text="text:N", color=alt.condition(dark, alt.value("#ffffff"), alt.value("#000000"))
    )
    return _spec(alt.layer(cells, text), height=40 + 26 * len(names))


def explorer(lines: Sequence[Row], axes: Mapping[str, Sequence[str]], start: Mapping[str, str], x: str, y: str) -> Row:
    """Lines of one point of a grid at a time, which the reader chooses: a list for every axis of the grid.

    Args:
        lines: one for every point of the grid and "of", with the keys "at" (the point's values, in the order of
            ``axes``), "of", and "y", "low", "high" (of every step of x, counted from 1; None: none).
        axes: the values of every axis, by its title.
        start: of every axis the value that is shown first.
        x, y: titles.
    """
    names = list(dict.fromkeys(str(line["of"]) for line in lines))
    colour = _colour("reference", names, [f"var(--c{4 * i})" for i in range(len(names))])
    chosen = [
        alt.param(f"axis{i}", value=start[title], bind=alt.binding_select(options=list(values), name=f"{title} "))
        for i, (title, values) in enumerate(axes.items())
    ]
    data = [
        {
            "at": "|".join(line["at"]),
            "of": line["of"],
            "x": list(range(1, len(line["y"]) + 1)),
            **{key: [None if value is None else _short(value) for value in line[key]] for key in ("y", "low", "high")},
        }
        for line in lines
    ]
    dash = alt.StrokeDash(
        "of:N", scale=alt.Scale(domain=names, range=[[1, 0], [7, 5]][: len(names)]), legend=_legend("reference")
    )
    point = " + '|' + ".join(param.name for param in chosen)
    base = (
        alt.Chart(alt.InlineData(values=data))
        .transform_filter(f"datum.at === {point}")
        .transform_flatten(["x", "y", "low", "high"])
        .encode(x=alt.X("x:O", title=x, axis=alt.Axis(labelAngle=0)), color=colour)
    )
    scale = alt.Scale(domain=[-0.2, 1.3])
    axis = alt.Axis(values=[-0.2, 0, 0.2, 0.4, 0.6, 0.8, 1])
    shown: list[alt.Chart] = [
        base.transform_calculate(most="min(datum.high, 1)")  # no cosine is above it; the numbers are
        .mark_rule(strokeWidth=2, aria=False, clip=True)
        .encode(y=alt.Y("low:Q", title=y, scale=scale, axis=axis), y2="most:Q"),
        base.mark_line(strokeWidth=2, aria=False).encode(y=alt.Y("y:Q", scale=scale), strokeDash=dash),
        base.mark_point(filled=True, size=60, opacity=1, aria=False).encode(
            y=alt.Y("y:Q", scale=scale),
            tooltip=_tips(of="reference", x=x, y=y, low="low", high="high"),
        ),
    ]
    for row, name in enumerate(names):  # the numbers, above the lines: a table that follows the choice
        text = base.transform_filter(f"datum.of === {json.dumps(name)}").transform_calculate(
            text="isValid(datum.y) ? format(datum.y, '.2f') : 'none'"
        )
        shown.append(text.mark_text(aria=False, fontSize=12).encode(y=alt.datum(1.23 - 0.11 * row), text="text:N"))
    return _spec(alt.layer(*shown).add_params(*chosen), height=340)


def scatter(rows: Sequence[Row], of: str) -> Row:
    """Points at "x" and "y" without axes, coloured by their value of ``of``, the legend's title."""
    names = list(dict.fromkeys(str(row[of]) for row in rows))
    colour = _colour(of, names, [f"var(--c{i % len(_CLASSES)})" for i in range(len(names))])
    plain = {"axis": None, "scale": alt.Scale(zero=False)}
    chart = (
        alt.Chart(_data([{"x": row["x"], "y": row["y"], "of": str(row[of])} for row in rows]))
        .mark_point(filled=True, size=22, opacity=1, aria=False)
        .encode(x=alt.X("x:Q", **plain), y=alt.Y("y:Q", **plain), color=colour, tooltip=_tips(of=of))
    )
    return _spec(chart, height=380)


def thinned(rows: Sequence[Row], keys: Sequence[str], points: int = POINTS) -> list[Row]:
    """At most ``points`` rows: means over rows that follow each other, of what they hold of every key."""
    size = -(-len(rows) // points) if rows else 1
    result: list[Row] = []
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        mean: Row = {}
        for key in keys:
            values = [row[key] for row in part if row.get(key) is not None]
            mean[key] = sum(values) / len(values) if values else None
        result.append(mean)
    return result


def _data(values: list[Row]) -> alt.InlineData:
    return alt.InlineData(values=[{k: _short(v) for k, v in row.items() if v is not None} for row in values])


def _short(value: Any) -> Any:
    """Five digits are more than an eye sees, and half of the page's size."""
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _ordinal(title: str) -> alt.X:
    return alt.X("x:O", title=title, sort=None, axis=alt.Axis(labelAngle=0))


def _colour(title: str, names: list[str], values: list[str]) -> alt.Color:
    return alt.Color(
        "of:N",
        scale=alt.Scale(domain=names, range=values),
        legend=_legend(title) if len(names) > 1 else None,
    )


def _legend(title: str) -> alt.Legend:
    return alt.Legend(title=title, orient="top", columns=6)


def _tips(**titles: str) -> list[alt.Tooltip]:
    return [alt.Tooltip(field=field, type="nominal", title=title) for field, title in titles.items()]


def _spec(chart: alt.Chart | alt.LayerChart | alt.FacetChart, height: int = 260) -> Row:
    """As Vega-Lite, as wide as the page, in the page's colours."""
    text = {"labelColor": "var(--ink)", "titleColor": "var(--ink)", "labelFontSize": 12, "titleFontSize": 12}
    drawn = (
        chart.properties(width="container", height=height, background="transparent")
        .configure_view(stroke=None)
        .configure_axis(gridColor="var(--grid)", domainColor="var(--muted)", tickColor="var(--muted)", **text)
        .configure_legend(symbolType="circle", **text)
    )
    return drawn.to_dict()
