"""The page of a run, report.html: what was run, what came of it, and what it cost."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from localssl import own
from localssl.errors import UsageError
from localssl.report import from_files, from_images, from_weights, page
from localssl.runs.run import Run

NAME = "report.html"


@dataclass(frozen=True)
class Options:
    """What of a run is shown.

    Args:
        data: another data set than the one trained on, for the images.
        root: where the data lie; None: where training found them.
        skip_bad: leave out images that cannot be decoded.
        images: test images looked at, evenly spaced.
        units: units shown of every block.
    """

    data: str | None = None
    root: Path | None = None
    skip_bad: bool = False
    images: int = 1000
    units: int = 4

    def __post_init__(self) -> None:
        for name, value, least in (("images", self.images, 0), ("units", self.units, 1)):
            if value < least:
                raise UsageError(f"--{name} {value}: use {least} or more")


def write(run: Run, options: Options) -> Path:
    """Write ``report.html`` into the run's folder.

    What cannot be shown is named there with its reason: no data, no probe yet, a rule without projections.

    Raises:
        UsageError: the run's encoder cannot be read.
        OSError: no room, no permission.
    """
    rule = own.short_name(run.config.rule)
    sections = [
        from_files.what_was_run(run),
        from_files.losses(run),
        from_files.accuracy(run),
        from_files.alignment(run),
        from_weights.filters(run),
        *from_images.sections(run, options.data, options.root, options.skip_bad, options.images, options.units),
        from_weights.projections(run),
        from_files.cost(run),
    ]
    path = run.path / NAME
    lead = f"{rule} on {run.config.data}, {run.config.encoder.get('name', 'own blocks')}, seed {run.config.seed}."
    page.write(path, f"{run.path.resolve().name}: {rule} on {run.config.data}", lead, sections)
    return path
