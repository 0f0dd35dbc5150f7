"""Accuracy and alignment against the bits of everything that learns, on MNIST with a small net."""

from __future__ import annotations

from localssl.experiments import comparison, precision, summary
from localssl.experiments.cells import Settings
from localssl.experiments.rows import Study, named

RULES = ("clapp++", "clapp++dfb", "ff", "softhebb")
BITS = (2, 3, 4, 6, 8, 12, 16)
STUDY = Study(data="mnist", epochs=3, width=0.0625, limit_images=6000, probe_images=6000)


def run(settings: Settings) -> None:
    """Learning in integers: accuracy and alignment against bits, four rules, MNIST (CPU: hours)."""
    study(settings, STUDY)


def study(settings: Settings, study: Study) -> None:
    """The study at any size: the comparison's own files, ``bits.csv`` and ``bits.png``."""
    rows = precision.rows(named(RULES, study.data), BITS)
    compared = comparison.compare(study, rows, settings, settings.seeds or 3)
    lines = summary.write(compared, study, settings)
    print(f"written: {', '.join(map(str, precision.write(compared, study, settings)))}")
    summary.check(lines, settings.out)
