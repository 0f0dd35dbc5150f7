"""Helpers of the probe's tests: images in memory, clusters, accuracies by name."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from localssl.data.pixels import InMemory
from localssl.data.sources import Images


def images(pixels: Tensor, labels: Tensor | None = None) -> Images:
    classes = tuple(f"c{i}" for i in range(10))
    shape = (pixels.shape[1], pixels.shape[2], pixels.shape[3])
    return Images("toy", "train", labels, classes, (), shape, InMemory(pixels))


def clusters(n: int, d: int, k: int, noise: float, seed: int = 0, dtype: torch.dtype = torch.float32):
    """Two parts, of 2 n / 3 and n / 3 rows, of Gaussian clusters around k random centres: x, y, x_test, y_test."""
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % k
    x = torch.randn(k, d, generator=g, dtype=torch.float64)[y]
    x = (x + noise * torch.randn(n, d, generator=g, dtype=torch.float64)).to(dtype)
    m = 2 * n // 3
    return x[:m], y[:m], x[m:], y[m:]


def accuracies(result, method: str = "linear") -> dict[tuple[str, str], float]:
    return {(r.layer, r.labels): r.accuracy for r in result.rows if r.method == method}


def by_sklearn(x: Tensor, y: Tensor, strength: float) -> tuple[np.ndarray, np.ndarray]:
    model = LogisticRegression(C=1 / (len(x) * strength), tol=1e-10, max_iter=10_000)
    model.fit(x.double().numpy(), y.numpy())
    return model.coef_.T, model.intercept_
