"""What two sets of gradients are compared by, from their inner products over all pairs of batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from localssl.stats import jackknife_interval, t_interval

PER_BATCH = ("cosine", "relative_error", "norm_ratio", "sign_agreement")
OVER_BATCHES = ("cosine_of_mean", "bias", "noise", "cosine_to_sum", "reference_to_sum")
QUANTITIES = (*PER_BATCH, *OVER_BATCHES)
NAN = float("nan")


@dataclass(frozen=True, kw_only=True)
class LayerAlignment:
    """One quantity of one block (or one of its parameters) for one rule against one reference.

    ``mean`` is over the batches in which both gradients were non-zero (``batches`` of them; NaN where there was none),
    ``low`` and ``high`` are the ends of a 95 % interval over batches: t for the first four quantities, jackknife for
    the others. ``null`` is the mean with the pairs shuffled: the rule's gradient of one batch against the
    reference's of another. What it shares with ``mean`` owes nothing to the batch; NaN for fewer than two batches, and
    for the others, which are about all batches together.

    cosine: x.y / (|x||y|). relative_error: |x - y|² / |y|². norm_ratio: |x| / |y|. sign_agreement: share of the entries
    that are non-zero in both whose signs are equal (its null: with the batch before).

    cosine_of_mean, bias and noise are about the expected gradients E x and E y, whose products are estimated from pairs
    of different batches, so that no batch's noise enters. cosine_of_mean: of E x and E y. bias, noise: with
    e = a x - y and a >= 0 the factor that brings E x nearest to E y, |E e|² and E|e - E e|² over E|y|². NaN where E x
    (or E y) does not stand out from the noise; by chance a cosine may pass 1 and a bias 0.

    cosine_to_sum: the cosine of one batch's x with y summed over all other batches, the mean of it over batches.
    reference_to_sum: of one batch's y with the same, what backpropagation itself reaches with one batch.
    """

    rule: str
    reference: str
    block: int
    parameter: str  # "weights": all of the block's but the biases together
    quantity: str
    mean: float
    low: float
    high: float
    batches: int
    null: float = NAN


@dataclass(frozen=True)
class Products:
    """Inner products of N batches' gradients, and counts of equal signs: (N, N) each, float64. They add up over parts.

    ``rule[i, j]`` = x_i.x_j, ``cross[i, j]`` = x_i.y_j, ``reference[i, j]`` = y_i.y_j; of the sign counts only the
    diagonal and the pairs (i, i - 1) are filled.
    """

    rule: Tensor
    cross: Tensor
    reference: Tensor
    equal: Tensor
    both: Tensor

    def __add__(self, other: Products) -> Products:
        return Products(*(a + b for a, b in zip(self._all(), other._all(), strict=True)))

    def __getitem__(self, index: Tensor) -> Products:
        return Products(*(a[index][:, index] for a in self._all()))

    def _all(self) -> tuple[Tensor, ...]:
        return (self.rule, self.cross, self.reference, self.equal, self.both)


def products(x: Sequence[Tensor], y: Sequence[Tensor]) -> Products:
    """The products of two lists of gradients, one a batch."""
    a = torch.stack([g.flatten() for g in x]).double()
    b = torch.stack([g.flatten() for g in y]).double()
    n = len(a)
    equal, both = torch.zeros(2, n, n, dtype=torch.float64)
    for i in range(n):
        for j in {i, (i - 1) % n}:
            known = (a[i] != 0) & (b[j] != 0)
            both[i, j] = known.sum()
            equal[i, j] = (a[i].sign() == b[j].sign())[known].sum()
    return Products((a @ a.T).cpu(), (a @ b.T).cpu(), (b @ b.T).cpu(), equal, both)


def summarise(found: Products) -> dict[str, tuple[float, float, float, int, float]]:
    """Every quantity's mean, low, high, number of batches and null."""
    fine = (found.rule.diagonal() > 0) & (found.reference.diagonal() > 0)
    found = found[torch.nonzero(fine).flatten()]
    n = len(found.rule)
    result: dict[str, tuple[float, float, float, int, float]] = {}
    matrices = _matrices(found)
    for quantity in PER_BATCH:
        own, other = matrices[quantity].diagonal(), _others(matrices[quantity])
        values = [v for v in own.tolist() if v == v]
        interval = t_interval(values) if values else (NAN, NAN, NAN)
        result[quantity] = (*interval, len(values), float(other.mean()) if len(other) else NAN)
    for quantity, function in SUMMED.items():
        interval = _jackknife(function, found) if n else (NAN, NAN, NAN)
        result[quantity] = (*interval, n, NAN)
    return result


def compare(local: Tensor, reference: Tensor) -> dict[str, float] | None:
    """``PER_BATCH`` for two gradients of any shape; None where either is zero and no angle exists."""
    found = products([local], [reference])
    if not (float(found.rule) > 0 and float(found.reference) > 0):
        return None
    return {quantity: float(matrix) for quantity, matrix in _matrices(found).items()}


def _matrices(found: Products) -> dict[str, Tensor]:
    """``PER_BATCH`` for every pair of a rule's and a reference's batch, (N, N)."""
    x, y = found.rule.diagonal()[:, None], found.reference.diagonal()[None]
    return {
        "cosine": found.cross / (x * y).sqrt(),
        "relative_error": (x - 2 * found.cross + y) / y,
        "norm_ratio": (x / y).sqrt(),
        "sign_agreement": found.equal / found.both,
    }


def _others(matrix: Tensor) -> Tensor:
    """What lies off the diagonal and is known."""
    off = matrix[~torch.eye(len(matrix), dtype=torch.bool)]
    return off[~off.isnan()]


def _of_means(matrix: Tensor) -> float:
    """An estimate of E x.E y from (N, N) products: the mean over pairs of different batches. NaN for one batch."""
    n = len(matrix)
    return float(matrix.sum() - matrix.trace()) / (n * (n - 1)) if n > 1 else NAN


def _cosine_of_mean(found: Products) -> float:
    x, y = _of_means(found.rule), _of_means(found.reference)
    return _of_means(found.cross) / (x * y) ** 0.5 if x > 0 and y > 0 else NAN


def _bias_and_noise(found: Products) -> tuple[float, float]:
    power, n = _of_means(found.rule), len(found.rule)
    if not power > 0:
        return NAN, NAN
    a = max(0.0, _of_means(found.cross) / power)
    errors = a * a * found.rule - a * (found.cross + found.cross.T) + found.reference
    whole, bias, unit = float(errors.trace()) / n, _of_means(errors), float(found.reference.trace()) / n
    return bias / unit, (whole - bias) / unit


def _to_sum(found: Products, one: Tensor, all_: Tensor) -> float:
    """Mean cosine of g_i with Σ_{j≠i} y_j, for products ``one`` = g_i.g_j and ``all_`` = g_i.y_j. NaN for one batch."""
    y, n = found.reference, len(found.reference)
    dots = all_.sum(1) - all_.diagonal()
    squares = y.sum() - 2 * y.sum(1) + y.diagonal()  # |Σ_{j≠i} y_j|²
    return float((dots / (one.diagonal() * squares).sqrt()).mean()) if n > 1 else NAN


SUMMED: dict[str, Callable[[Products], float]] = {
    "cosine_of_mean": _cosine_of_mean,
    "bias": lambda found: _bias_and_noise(found)[0],
    "noise": lambda found: _bias_and_noise(found)[1],
    "cosine_to_sum": lambda found: _to_sum(found, found.rule, found.cross),
    "reference_to_sum": lambda found: _to_sum(found, found.reference, found.reference),
}


def _jackknife(function: Callable[[Products], float], found: Products) -> tuple[float, float, float]:
    n = len(found.rule)
    without = [function(found[torch.tensor([j for j in range(n) if j != i])]) for i in range(n)] if n > 2 else []
    return jackknife_interval(function(found), without)
