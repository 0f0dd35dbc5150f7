"""What a notebook shows of a run: a few numbers and its losses, without JavaScript."""

from __future__ import annotations

import vl_convert

from localssl import evaluate, own
from localssl.markdown import counted
from localssl.report import charts, from_files, measured, page
from localssl.runs.run import Run

WIDTH, HEIGHT = 460, 180  # of the chart, in pixels


def html(run: Run) -> str:
    """The card: rule and data, steps, losses, accuracies where the run was probed, and what may be done next."""
    rows = measured.curves(run.path)
    shown: list[list[object]] = []
    svg = says = ""
    if rows:
        last = rows[-1]
        epochs, seconds = last["epoch"] or 0, last["seconds"] or 0
        shown.append(["steps", f"{last['step']:,.0f} ({counted(epochs, 'epoch')}, {seconds:,.1f} s)"])
        (chart,) = (part for part in from_files.losses(run).parts[:1] if isinstance(part, page.Chart))
        spec = {**chart.spec, "width": WIDTH, "height": HEIGHT}
        svg, says = vl_convert.vegalite_to_svg(dict(spec), vl_version=charts.VERSION), chart.says
    for probe in measured.found(run.path, measured.PROBES):
        for row in probe.rows:
            if row["layer"] == "all" and row["method"] == "linear":
                of = "all labels" if row["labels"] == "all" else f"{row['labels']} a class"
                shown.append([f"{row['encoder']}, {of}", f"{row['accuracy']} % ({probe.name})"])
    made = (run.path / "report.html").is_file()
    reference = evaluate.first_reference(run)
    align = "run.align()" if reference == "own" else f"run.align(reference={reference!r})"
    todo = [f"open {run.path / 'report.html'}"] if made else ["run.probe()", align, "run.report()"]
    return page.template("card.html").render(
        title=f"{own.short_name(run.config.rule)} on {run.config.data}",
        path=str(run.path),
        rows=shown,
        svg=svg,
        says=says,
        next=", ".join(todo),
        light=charts.colours(dark=False),
        dark=charts.colours(dark=True),
    )
