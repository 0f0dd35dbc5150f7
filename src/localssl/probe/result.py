"""What a probe returns: accuracies, and the protocol to print beside them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from localssl.stats import t_interval

Method = Literal["linear", "knn"]


@dataclass(frozen=True)
class Row:
    """One accuracy.

    Args:
        layer: "1" to "L", or "all" (concatenated).
        method: "linear" or "knn".
        labels: training labels per class: "1", "10" or "all".
        accuracy: on the test part, in percent; the mean over draws.
        low, high: 95 % t-interval of that mean over draws of the labels; None where there is one draw.
        draws: draws of the labels.
        features: number of features.
        strength: of the L2 penalty, the median over draws; None for kNN and for the paper's protocol.
    """

    layer: str
    method: Method
    labels: str
    accuracy: float
    low: float | None
    high: float | None
    draws: int
    features: int
    strength: float | None


@dataclass(frozen=True)
class ProbeResult:
    """Accuracies and, to be printed beside them, the protocol that gave them."""

    rows: tuple[Row, ...]
    protocol: str


def row(
    layer: str,
    method: Method,
    labels: str,
    accuracies: Sequence[float],
    n_features: int,
    strengths: Sequence[float] = (),
) -> Row:
    """A row from the accuracy, and for a penalty its strength, of every draw."""
    mean, low, high = t_interval(accuracies)
    several = len(accuracies) > 1
    return Row(
        layer,
        method,
        labels,
        mean,
        low if several else None,
        high if several else None,
        len(accuracies),
        n_features,
        statistics.median_low(strengths) if strengths else None,
    )


def percent(predicted: Tensor, y: Tensor) -> float:
    """Share of right labels, in percent."""
    return 100 * int((predicted == y).sum()) / len(y)
