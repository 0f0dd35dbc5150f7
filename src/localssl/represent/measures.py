"""What is measured of representations X (N, p) and Y (N, q) of the same N images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from localssl.errors import UsageError
from localssl.stats import ranks

Array = NDArray[np.float64]


def checked(x: Any) -> Array:
    """Activities as float64, (N, d).

    Raises:
        UsageError: of another kind, fewer than 4 images, not finite.
    """
    array = np.asarray(x.detach().cpu() if isinstance(x, torch.Tensor) else x)
    if array.dtype.kind not in "fiub":
        raise UsageError(f"a representation holds real numbers, not {array.dtype}")
    array = array.astype(np.float64)
    if array.ndim != 2 or len(array) < 4:
        raise UsageError(f"a representation is an array (images, units) of at least 4 images, got {array.shape}")
    if not np.isfinite(array).all():
        raise UsageError("a representation holds NaN or infinity")
    return array


def gram(x: Array) -> Array:
    """Centred Gram matrix H X Xᵀ H, (N, N)."""
    x = x - x.mean(0)
    return x @ x.T


def dissimilarities(x: Array) -> Array:
    """1 - Pearson's correlation of the activities of every two images, (N, N); 1 where an image's do not vary."""
    x = x - x.mean(1, keepdims=True)
    length = np.sqrt((x * x).sum(1, keepdims=True))
    x = np.divide(x, length, out=np.zeros_like(x), where=length > 1e-12 * max(1e-300, float(length.max())))
    return 1 - x @ x.T


def centred(k: Array) -> Array:
    """H K H over its length: of a Gram matrix what CKA compares, for any part of the images."""
    return _unit(k - k.mean(0) - k.mean(1, keepdims=True) + k.mean())


def ranked(d: Array) -> Array:
    """The ranks of the pairs of images, less their mean, over their length; 0 on the diagonal: what RSA compares."""
    above = np.triu_indices(len(d), 1)
    found = ranks(d[above].round(12))  # pairs that differ by rounding alone are ties
    out = np.zeros_like(d)
    out[above] = found - found.mean()
    return _unit(out + out.T)


def _unit(k: Array) -> Array:
    size = np.sqrt((k * k).sum())
    return k / size if size > 0 else np.full_like(k, np.nan)


MEASURES: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "cka": (gram, centred),
    "rsa": (dissimilarities, ranked),
}
"""By name: what is made of a representation, (N, N), and of any part of that; the measure is the sum of the product of
two of the latter. Rows and columns follow the images."""


def cka(x: Any, y: Any) -> float:
    """Linear centred kernel alignment |Yᵀ H X|² / (|Xᵀ H X| |Yᵀ H Y|) (Kornblith et al. 2019), 0 to 1.

    Unchanged by rotations and one scale of all units of X or Y. With fewer images than units it is high by chance: look
    at the null of ``similarity``. NaN where one of them is the same for all images.
    """
    return _measured("cka", x, y)


def rsa(x: Any, y: Any) -> float:
    """Spearman's correlation of the dissimilarities of all pairs of images (Kriegeskorte et al. 2008), -1 to 1.

    NaN where all pairs of one of them are equally dissimilar, as they are with fewer than two units.
    """
    return _measured("rsa", x, y)


def participation_ratio(x: Any) -> float:
    """(Σ λ)² / Σ λ² of the eigenvalues λ of the covariance: how many dimensions the activity fills, 1 to d."""
    k = gram(checked(x))
    total, square = float(np.trace(k)), float((k * k).sum())
    return total**2 / square if square > 0 else float("nan")


def _measured(measure: str, x: Any, y: Any) -> float:
    prepare, standard = MEASURES[measure]
    a, b = checked(x), checked(y)
    if len(a) != len(b):
        raise UsageError(f"one representation is of {len(a)} images, the other of {len(b)}; give the same images")
    return float((standard(prepare(a)) * standard(prepare(b))).sum())
