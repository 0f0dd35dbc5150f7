"""Which images excite a unit most, and what the encoder makes of images: read off the frozen encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from localssl.data.sources import Images
from localssl.encoders import Encoder
from localssl.probe.activity import frozen

BATCH = 256


@dataclass(frozen=True)
class Unit:
    """A unit and the images that excite it most.

    Args:
        block: counted from 1.
        channel: counted from 1.
        images: their numbers among those looked at, the most exciting first; none for a unit that is never active.
        activity: of the unit for each, its largest over the positions in the map.
    """

    block: int
    channel: int
    images: list[int]
    activity: list[float]


@torch.no_grad()
def most_exciting(
    encoder: Encoder, images: Images, normalise: nn.Module, units: int, best: int, index: Tensor
) -> list[Unit]:
    """For ``units`` evenly spaced channels of every block the ``best`` images among those of ``index``.

    A unit's activity for an image is its largest one over the positions of its map.
    """
    found: list[list[Tensor]] = [[] for _ in encoder.blocks]
    with frozen(encoder):
        for part in index.split(BATCH):
            for column, z in zip(found, encoder.emitted(normalise(images.batch(part))), strict=True):
                column.append(z.flatten(2).amax(2).float() if z.ndim > 2 else z.float())
    result: list[Unit] = []
    for block, parts in enumerate(found, start=1):
        activity = torch.cat(parts)
        n = activity.shape[1]
        for channel in dict.fromkeys(round((i + 0.5) * n / units - 0.5) for i in range(units)):
            values, order = activity[:, channel].topk(min(best, len(activity)))
            alive = bool(values[0] > 0)
            result.append(Unit(block, channel + 1, order.tolist() * alive, values.tolist() * alive))
    return result


def spaced(total: int, most: int) -> Tensor:
    """At most ``most`` evenly spaced numbers below ``total``."""
    return torch.as_tensor(np.unique(np.arange(min(total, most)) * total // max(1, min(total, most))))


def embed(features: Tensor) -> dict[str, NDArray[np.float64]]:
    """Two numbers for every image of ``features`` (n, d), standardised first: by PCA, and by t-SNE that starts there.

    Both are scikit-learn's, t-SNE with a perplexity of 30 (less for few images) and seed 0.
    """
    from sklearn.decomposition import PCA  # here: takes a second to import
    from sklearn.manifold import TSNE

    x = features.double().numpy()
    x = (x - x.mean(0)) / np.maximum(x.std(0), 1e-6)
    n = len(x)
    flat = PCA(min(50, n, x.shape[1]), random_state=0).fit_transform(x)
    found = {"PCA": flat[:, :2]}
    if n >= 10:
        found["t-SNE"] = TSNE(perplexity=min(30, n / 4), init="pca", random_state=0).fit_transform(flat)
    return found


def classes_of(labels: Sequence[int], names: Sequence[str], at_most: int) -> list[str | None]:
    """The class of every label by name; None beyond the first ``at_most`` classes."""
    return [(names[label] if names else str(label)) if label < at_most else None for label in labels]
