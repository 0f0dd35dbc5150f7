"""Sections of a run's page from its weights: filters of the first layer, structure of learnt projections."""

from __future__ import annotations

from localssl.errors import UsageError
from localssl.report import charts, page
from localssl.report.filters import MOST, first_weights, sheet
from localssl.report.projection_map import Strength, strengths
from localssl.run import Run


def filters(run: Run) -> page.Section:
    """Filters of the first layer, before and after training."""
    shape = (run.config.channels, run.config.image_size, run.config.image_size)
    pictures: list[page.Picture] = []
    for name, encoder in (("before training", run.learner().encoder), ("trained", run.encoder())):
        weight = first_weights(encoder, shape)
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
    found = strengths(trained, run.learner())
    if not found:
        why = "The rule has no projection between places in a map: none at all, or its readout averages over the map."
        return page.Section("projections", title, [page.Missing(why)])
    parts: list[page.Part] = []
    for key in dict.fromkeys(s.key for s in found):
        mine = [s for s in found if s.key == key]
        rows = _rows(mine, "strength", "strength")
        says = f"Strength of the {key} projections. " + "; ".join(
            f"block {s.block}: {s.strength[0]:.3g} at {s.distance[0]:.3g} pixels, "
            f"{s.strength[-1]:.3g} at {s.distance[-1]:.3g}"
            for s in mine
        )
        caption = (
            f"Step {step}. Root mean square of the weights of B between places so far apart, over what it was before "
            "training; distance from centre to centre of the patches, in pixels of the image. 1: as it was."
        )
        spec = charts.lines(rows, "distance (pixels)", "strength", "block")
        parts.append(page.Chart(f"{key.capitalize()} B: strength", spec, f"{says}.", caption))
        if any(s.same for s in mine):
            rows = _rows([s for s in mine if s.same], "same", "mean weight")
            spec = charts.lines(rows, "distance (pixels)", "mean weight", "block")
            says = f"Mean weight of the {key} projections between a channel and itself. " + "; ".join(
                f"block {s.block}: {s.same[0]:.3g} at {s.distance[0]:.3g} pixels" for s in mine if s.same
            )
            caption = (
                "Mean weight from a channel to the same channel at another place, over the root mean square of all of "
                "the block's weights: above 0, like predicts like."
            )
            parts.append(page.Chart(f"{key.capitalize()} B: like to like", spec, f"{says}.", caption))
        table = [
            [s.block, f"{d:.4g}", f"{value:.4g}", f"{s.same[i]:.4g}" if s.same else "", s.pairs[i]]
            for s in mine
            for i, (d, value) in enumerate(zip(s.distance, s.strength, strict=True))
        ]
        header = ["block", "distance (pixels)", "strength", "like to like", "pairs of places"]
        parts.append(page.Table(f"Numbers of the {key} projections", header, table))
    return page.Section("projections", title, parts)


def _rows(found: list[Strength], attribute: str, axis: str) -> list[charts.Row]:
    return [
        {"distance (pixels)": distance, axis: value, "block": s.block}
        for s in found
        for distance, value in zip(s.distance, getattr(s, attribute), strict=True)
    ]
