"""Activities of every block for any images: arrays with names, kept as .npz, handed on to rsatoolbox."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from localssl import readout
from localssl.encoders import Encoder
from localssl.errors import UsageError
from localssl.probe.activity import frozen
from localssl.system.files import read_npz, write_atomic

BATCH = 256
_PREFIX, _OTHERS = "activity/", "images/"


@dataclass(frozen=True)
class Activities(Mapping[str, NDArray[np.float32]]):
    """Activities by the name of the block: "block_1", …, each (N, d_l), the same N images in the same order.

    Args:
        arrays: by name, in the order of the blocks.
        images: descriptions of the images, each (N,): "label", or the user's own ("stimulus", "category").
    """

    arrays: Mapping[str, NDArray[np.float32]]
    images: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        return self.arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)

    def save(self, path: str | Path) -> None:
        """Write an .npz, atomically: "activity/block_1", …, and "images/label" and the like."""
        parts = {_PREFIX + name: array for name, array in self.arrays.items()}
        parts |= {_OTHERS + name: array for name, array in self.images.items()}

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:
                np.savez(file, **parts)  # pyright: ignore[reportArgumentType]

        write_atomic(Path(path), write)


@torch.no_grad()
def activities(
    encoder: Encoder,
    images: Tensor | NDArray[Any],
    *,
    patches: readout.Patches = None,
    whole: bool = False,
    **described: Sequence[Any] | NDArray[Any] | Tensor,
) -> Activities:
    """Every block's activity for images, without augmentation, in evaluation mode.

    Args:
        encoder: from ``localssl.load``, whose ``preprocess`` the images go through; or any other, which takes them as
            they are.
        images: (N, …): uint8, or floats in [0, 1].
        patches: side of the patches that are averaged over, per block; None: the mean over all positions, one number a
            channel.
        whole: every unit of the map for itself, flattened, channels first; ``patches`` is not asked.
        described: by name, one value an image: ``label=images.labels``.

    Raises:
        UsageError: no images, not finite, or of a shape that the encoder does not take; patches that do not fit;
            descriptions of another number; activities that are not finite.
    """
    try:
        x = torch.as_tensor(images)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"images are a {type(images).__name__}; give an array of numbers (N, …)") from error
    if x.ndim == 0 or len(x) == 0:
        raise UsageError("there are no images; give some")
    if not bool(x.isfinite().all()):
        raise UsageError("the images hold NaN or infinity; leave those out")
    sizes = readout.per_block(patches, len(encoder.blocks))
    if not whole:
        for i, (shape, patch) in enumerate(zip(encoder.output_shapes(x.shape[1:], True), sizes, strict=True), start=1):
            readout.check(shape, patch, i)
    param = next(encoder.parameters(), torch.empty(0))
    parts: list[list[Tensor]] = [[] for _ in encoder.blocks]
    with frozen(encoder):
        for part in x.split(BATCH):
            part = part.to(param.device)
            part = part if encoder.preprocess is None else encoder.preprocess.to(param.device)(part)
            part = part if part.dtype == param.dtype else part.to(param.dtype)
            for kept, z, patch in zip(parts, encoder.emitted(part), sizes, strict=True):
                kept.append((z.flatten(1) if whole else readout.readout(z, patch)).float().cpu())
    arrays = {f"block_{i}": torch.cat(kept).numpy() for i, kept in enumerate(parts, start=1)}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise UsageError(f"activities of {name} are not finite; the encoder has diverged, train it anew")
    return Activities(arrays, {name: _one_each(name, values, len(x)) for name, values in described.items()})


def _one_each(name: str, values: Any, count: int) -> NDArray[Any]:
    try:
        array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    except ValueError as error:
        raise UsageError(f"{name} holds lists of several lengths; give one value an image") from error
    if array.dtype == object:
        raise UsageError(f"{name} holds objects; give numbers or texts")
    described = len(array) if array.ndim else 1
    if array.ndim == 0 or described != count:
        raise UsageError(f"{name} describes {described} images, there are {count}; give one value an image")
    return array


def load(path: str | Path) -> Activities:
    """Activities as ``Activities.save`` has written them.

    Raises:
        UsageError: no such file, or none of that kind.
    """
    try:
        found = read_npz(Path(path))
    except FileNotFoundError as error:
        raise UsageError(f"there is no file {path}; Activities.save writes one") from error
    arrays = {name.removeprefix(_PREFIX): a for name, a in found.items() if name.startswith(_PREFIX)}
    if not arrays:
        raise UsageError(f"{path} holds no array activity/…; it was not written by Activities.save")
    return Activities(arrays, {n.removeprefix(_OTHERS): a for n, a in found.items() if n.startswith(_OTHERS)})


def to_rsatoolbox(found: Activities) -> dict[str, Any]:
    """A ``rsatoolbox.data.Dataset`` for every block, by name: images as observations, units as channels.

    Raises:
        UsageError: rsatoolbox is not installed.
    """
    if importlib.util.find_spec("rsatoolbox") is None:
        raise UsageError("this needs rsatoolbox: pip install rsatoolbox")
    from rsatoolbox.data.dataset import Dataset  # pyright: ignore[reportMissingImports]

    return {
        name: Dataset(
            array.astype(np.float64),
            descriptors={"block": name},
            obs_descriptors={"image": np.arange(len(array)), **found.images},
            channel_descriptors={"unit": np.arange(array.shape[1])},
        )
        for name, array in found.items()
    }
