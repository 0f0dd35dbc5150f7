"""Sections of a run's page from its weights: filters of the first layer, structure of learnt projections."""

from __future__ import annotations

import math

from localssl import represent
from localssl.errors import UsageError
from localssl.report import charts, page
from localssl.report.filters import MOST, first_weights, sheet
from localssl.runs.run import Run

_AXIS = "distance (pixels)"


def filters(run: Run) -> page.Section:
    """Filters of the first layer, before and after training."""
    pictures: list[page.Picture] = []
    for name, encoder in (("before training", run.learner().encoder), ("trained", run.encoder())):
        weight = first_weights(encoder, run.config.input_shape)
        if weight is None:
            why = "The weights of the first layer are no pictures: its inputs are neither grey nor RGB images."
            return page.Section("filters", "Filters of the first layer", [page.Missing(why)])
        n, _, height, width = weight.shape
        says = f"{min(n, MOST)} of {n} filters of {height} by {width} pixels, {name}"
        pictures.append(page.Picture(name, page.png(sheet(weight)), says, f"{min(n, MOST)} of {n}"))
    caption = "Grey is 0, white and black (of each colour) the filter's largest weight in size."
    return page.Section("filters", "Filters of the first layer", [page.Pictures("", pictures, caption)])


def projections(run: Run) -> page.Section:
    """How strong the learnt B is over the distance between the places that it connects."""
    title = "Projections over distance in the map"
    try:
        trained, step = run.trained_learner()
    except UsageError as error:
        return page.Section("projections", title, [page.Missing(f"{error}.")])
    found = represent.shapes(trained)
    if not found:
        why = "The rule has no projection between places in a map: none at all, or its readout averages over the map."
        return page.Section("projections", title, [page.Missing(why)])
    parts: list[page.Part] = []
    for key in dict.fromkeys(s.key for s in found):
        parts += _of_one(key, [s for s in found if s.key == key], step)
    return page.Section("projections", title, parts)


def _of_one(key: str, shapes: list[represent.Shape], step: int) -> list[page.Part]:
    """Charts and table of one key's projections."""
    rows: list[charts.Row] = [
        {_AXIS: d.distance * s.patch, "strength": d.strength, "mean weight": d.like, "block": s.block}
        for s in shapes
        for d in s.rows
    ]
    says = "; ".join(
        f"block {s.block}: {s.rows[0].strength:.3g} at {s.rows[0].distance * s.patch:.3g} pixels, "
        f"{s.rows[-1].strength:.3g} at {s.rows[-1].distance * s.patch:.3g}"
        for s in shapes
    )
    caption = (
        f"Step {step}. Mean size of the weights of B between patches so far apart, over the mean of all pairs of "
        "patches; distance from centre to centre, in pixels of the image. 1 everywhere: no structure."
    )
    blocks = [str(s.block) for s in shapes]
    spec = charts.lines(rows, _AXIS, "strength", "block", blocks)
    title = f"{key.capitalize()} B: strength{_only(rows)}"
    made: list[page.Part] = [page.Chart(title, spec, f"Strength of the {key} projections. {says}.", caption)]
    like = [row for row in rows if not math.isnan(float(str(row["mean weight"])))]
    if like:
        says = "; ".join(
            f"block {s.block}: {s.rows[0].like:.3g} at {s.rows[0].distance * s.patch:.3g} pixels"
            for s in shapes
            if not math.isnan(s.rows[0].like)
        )
        caption = (
            "Mean weight from a channel to the same channel at another place, over the root mean square of all of the "
            "block's weights: above 0, like predicts like."
        )
        spec = charts.lines(like, _AXIS, "mean weight", "block", blocks)
        says = f"Mean weight of the {key} projections between a channel and itself. {says}."
        made.append(page.Chart(f"{key.capitalize()} B: like to like{_only(like)}", spec, says, caption))
    table = [
        [
            s.block,
            f"{d.distance * s.patch:.4g}",
            f"{d.strength:.4g}",
            "" if math.isnan(d.low) else f"{d.low:.4g} to {d.high:.4g}",
            "" if math.isnan(d.like) else f"{d.like:.4g}",
            d.pairs,
        ]
        for s in shapes
        for d in s.rows
    ]
    header = ["block", _AXIS, "strength", "95 % interval over patches", "like to like", "pairs of patches"]
    made.append(page.Table(f"Numbers of the {key} projections", header, table))
    return made


def _only(rows: list[charts.Row]) -> str:
    """The block, where there is one alone: a chart of one line has no legend."""
    found = {row["block"] for row in rows}
    return f", block {found.pop()}" if len(found) == 1 else ""
