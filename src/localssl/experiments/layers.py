"""What the theory's figures share: crops of MNIST in batches, and the alignment of every layer for several settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from localssl.alignment import compare
from localssl.data.sources import open_images
from localssl.encoders import Encoder
from localssl.errors import UsageError
from localssl.experiments.cells import Settings
from localssl.stats import t_interval
from localssl.theory.gradients import Samples, Setting, gradients

IMAGES, BATCH = 1024, 32  # paper Appendix B: 1,024 samples in 32 batches
HEADER = ["panel", "line", "layer", "mean", "low", "high", "batches"]


@dataclass(frozen=True)
class Line:
    """One line of a figure.

    Args:
        panel: which panel it is drawn in.
        name: its label.
        network: makes the network from a generator.
        setting: makes the losses from the same generator (for fixed random projections).
    """

    panel: str
    name: str
    network: Callable[[torch.Generator], Encoder]
    setting: Callable[[torch.Generator], Setting]


def crops(
    settings: Settings, size: int, images: int = IMAGES, seed: int = 0
) -> tuple[list[tuple[Tensor, Tensor]], str]:
    """Batches of two random ``size`` × ``size`` crops of each image, (32, 1, size, size) in 0…1, and the data's name.

    MNIST from ``--data-root``; where it is not there, the embedded digits enlarged to its 28 × 28 pixels.
    """
    try:
        source, name = open_images("mnist", root=settings.data_root, image_size=28), "MNIST"
    except UsageError as error:
        print(f"{error}; using the embedded digits instead")
        source, name = open_images("digits", image_size=28), "digits (enlarged to 28 × 28)"
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(source), generator=generator)[:images]
    pixels = source.batch(chosen).double() / 255

    def view() -> Tensor:
        corners = torch.randint(28 - size + 1, (len(pixels), 2), generator=generator).tolist()
        cut = [image[:, i : i + size, j : j + size] for image, (i, j) in zip(pixels, corners, strict=True)]
        return torch.stack(cut)

    view_a, view_b = view(), view()
    pairs = list(zip(view_a.split(BATCH), view_b.split(BATCH), strict=True))
    return [pair for pair in pairs if len(pair[0]) == BATCH], name


def cosines(line: Line, batches: Sequence[tuple[Tensor, Tensor]], flat: bool = True) -> list[list[float]]:
    """Per layer the cosines of the batches; a batch where a gradient is zero has none. New weights for every batch."""
    found: list[list[float]] = []
    for seed, (view_a, view_b) in enumerate(batches):
        generator = torch.Generator().manual_seed(seed)
        encoder, setting = line.network(generator), line.setting(generator)
        views = (view_a.flatten(1), view_b.flatten(1)) if flat else (view_a, view_b)
        local, end_to_end = gradients(encoder, Samples.from_views(*views), setting)
        if not found:
            found = [[] for _ in local]
        for layer, (a, b) in enumerate(zip(local, end_to_end, strict=True)):
            quantities = compare(a, b)
            if quantities is not None:
                found[layer].append(quantities["cosine"])
    return found


def rows(lines: Sequence[Line], batches: Sequence[tuple[Tensor, Tensor]], flat: bool = True) -> list[list[object]]:
    """Rows under ``HEADER``: mean and 95 % t interval over batches; empty where every gradient was zero."""
    torch.set_num_threads(1)  # the matrices are small: threads would wait for each other
    result: list[list[object]] = []
    for line in lines:
        for layer, values in enumerate(cosines(line, batches, flat), start=1):
            shown = [round(v, 5) for v in t_interval(values)] if values else ["", "", ""]
            result.append([line.panel, line.name, layer, *shown, len(values)])
    return result
