"""Sections of a run's page from images: what excites a unit most, and an embedding. Without data: the reason."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from localssl.data.sources import Images
from localssl.encoders import Encoder
from localssl.errors import RunError, UsageError
from localssl.probe.activity import features
from localssl.report import charts, page
from localssl.report.filters import tiles, to_bytes
from localssl.report.units import Unit, classes_of, embed, most_exciting, spaced
from localssl.runs.run import Run

BEST = 8  # images of a unit
SIDE = 32  # pixels of an image, at most: larger ones are made smaller
CLASSES = 10  # that are told apart by colour


def sections(
    run: Run, data: str | None, root: Path | None, skip_bad: bool, most: int, units: int
) -> list[page.Section]:
    """Exciting images and embedding, from at most ``most`` test images; see ``run_page.Options``."""
    names = (("units", "Images that excite a unit most"), ("embedding", "Embedding"))
    try:
        if most == 0:
            raise UsageError("--images 0: no image was looked at")
        images = run.images("test", root, data, skip_bad=skip_bad)
        encoder = run.encoder()
        if len(images) < 2:
            raise UsageError(f"{images.name} has fewer than two test images")
        index = spaced(len(images), most)
        return [
            page.Section(*names[0], _units(run, encoder, images, index, units)),
            page.Section(*names[1], _embedding(run, encoder, images.subset(index))),
        ]
    except (UsageError, RunError) as error:
        why = page.Missing(f"Left out: {error}.")
        return [page.Section(*name, [why]) for name in names]


def _units(run: Run, encoder: Encoder, images: Images, index: Tensor, units: int) -> list[page.Part]:
    if len(images.shape) != 3 or images.shape[0] not in (1, 3):
        return [page.Missing("Left out: the inputs are neither grey nor RGB images.")]
    found = most_exciting(encoder, images, run.normalise(), units, BEST, index)
    used = f"{len(index):,} of {len(images):,} test images of {images.name}, evenly spaced"
    parts: list[page.Part] = [
        page.Text(
            f"From {used}: the {BEST} images for which a unit is most active anywhere in its map, the most exciting "
            f"first. {units} evenly spaced units of every block, not chosen by how they look."
        )
    ]
    for block in dict.fromkeys(unit.block for unit in found):
        mine = [_unit(unit, images, index) for unit in found if unit.block == block]
        shown = [picture for picture in mine if picture is not None]
        silent = [str(u.channel) for u in found if u.block == block and not u.images]
        note = f"Active for none of the images: unit {', '.join(silent)}." if silent else ""
        parts.append(page.Pictures(f"Block {block}", shown, note))
    return parts


def _unit(unit: Unit, images: Images, index: Tensor) -> page.Picture | None:
    if not unit.images:
        return None
    chosen = index[torch.tensor(unit.images)]
    pixels = shades(images.batch(chosen))
    if max(pixels.shape[2:]) > SIDE:
        pixels = F.interpolate(pixels, size=(SIDE, SIDE), mode="area")
    classes = ""
    if images.labels is not None:
        named = classes_of(images.labels[chosen].tolist(), images.classes, at_most=10**9)
        classes = ", ".join(f"{name} ×{count}" for name, count in Counter(named).most_common())
    sizes = f"activity {unit.activity[0]:.3g} to {unit.activity[-1]:.3g}"
    says = f"The {len(chosen)} images that excite unit {unit.channel} of block {unit.block} most, {sizes}"
    says += f": {classes}" if classes else ""
    picture = tiles(to_bytes(pixels), columns=BEST, gap=1)
    return page.Picture(f"Unit {unit.channel}", page.png(picture), says, "; ".join(filter(None, (sizes, classes))))


def shades(pixels: Tensor) -> Tensor:
    """Pixels as shades, 0 to 1; of an array's floats the smallest is black, the largest white."""
    if pixels.dtype == torch.uint8:
        return pixels.float() / 255
    low, high = pixels.min(), pixels.max()
    return (pixels - low) / (high - low).clamp_min(1e-12)


def _embedding(run: Run, encoder: Encoder, images: Images) -> list[page.Part]:
    parts: list[page.Part] = []
    of = [str(i) for i in classes_of([0] * len(images), (), 1)]
    note = "No labels."
    chosen = torch.arange(len(images))
    if images.labels is not None:
        named = classes_of(images.labels.tolist(), images.classes, CLASSES)
        chosen = torch.tensor([i for i, name in enumerate(named) if name is not None], dtype=torch.long)
        of = [str(named[i]) for i in chosen.tolist()]
        note = "Labels colour the points and serve for nothing else."
        if len(images.classes) > CLASSES:
            note += f" The first {CLASSES} of {len(images.classes)} classes."
    if len(chosen) < 3:
        return [page.Missing("Left out: fewer than three images of the first classes; use a larger --images.")]
    nets = {"untrained": run.learner().encoder, "trained": encoder}
    embedded = {
        name: embed(features(net, images, patches=run.config.patches, normalise=run.normalise())[-1][chosen])
        for name, net in nets.items()
    }
    for method in embedded["trained"]:  # before and after stand beside each other
        for name in nets:
            points = embedded[name][method]
            rows = [{"x": float(x), "y": float(y), "label": c} for (x, y), c in zip(points, of, strict=True)]
            says = f"{method} of the last block's activities of {len(rows)} test images, {name} encoder, by label."
            caption = (
                f"{len(rows):,} test images of {images.name}; patch-averaged activities of the last block, each "
                f"standardised. {note} Axes have no unit."
            )
            parts.append(page.Chart(f"{method}, {name}", charts.scatter(_in_order(rows), "label"), says, caption))
    return parts


def _in_order(rows: list[charts.Row]) -> list[charts.Row]:
    """By label, so that colours and legend are the same in every chart."""
    return sorted(rows, key=lambda row: str(row["label"]))
