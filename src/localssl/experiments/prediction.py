"""Whether alignment goes with accuracy: a rank correlation for every block and for the mean of the blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from localssl import evaluate
from localssl.stats import cluster_rank_correlation

HEADER = ["cosine", "correlation", "low", "high", "n", "groups"]


def write(
    path: Path, cosines: Mapping[str, Sequence[float]], accuracy: Sequence[float], groups: Sequence[str], unit: str
) -> None:
    """Write to ``path``, a CSV, one row for each column of cosines.

    Args:
        path: where to.
        cosines: by name, those of all points.
        accuracy: of the same points.
        groups: points of one group depend on each other (the checkpoints of a run).
        unit: what a group is, in the plural.
    """
    rows: list[list[object]] = []
    for name, values in cosines.items():
        correlation = cluster_rank_correlation(values, accuracy, groups)
        rows.append([name, *(round(v, 3) for v in correlation), len(values), len(set(groups))])
    comment = f"Spearman's rank correlation of cosine and accuracy; 95 % interval: bootstrap over {unit} (2,000 draws)"
    evaluate.to_csv(path, HEADER, rows, comment)
