"""Training runs as ``localssl train`` has them, not begun yet: for throughput.py, inactive.py and pc_states.py."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from torch import Tensor

from localssl.data.sources import open_images
from localssl.errors import UsageError
from localssl.runs.config import TrainConfig
from localssl.runs.resume import begin
from localssl.training.loop import Loop

NOISE = "noise in place of CIFAR-10"


def cifar10(data_root: Path | None, folder: Path, count: int) -> tuple[Path | None, str]:
    """Where CIFAR-10 lies, and how it is called beside a number; noise of its form in ``folder`` where it is not."""
    try:
        images = open_images("cifar10", root=data_root, limit=1)
        return data_root, next((f for f in images.facts if f.startswith("CIFAR-10")), "CIFAR-10")
    except UsageError:
        generator = np.random.default_rng(0)
        encoded: list[dict[str, object]] = []
        for _ in range(count):
            stream = io.BytesIO()
            Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(stream, "PNG")
            encoded.append({"bytes": stream.getvalue(), "path": None})
        (folder / "cifar10").mkdir(parents=True)
        pq.write_table(
            pa.table({"image": encoded, "label": [i % 10 for i in range(count)]}),
            folder / "cifar10" / "train.parquet",
        )
        return folder, NOISE


def prepare(rule: str, width: float, batch: int, steps: int, root: Path | None, out: Path, threads: int) -> Loop:
    """A run of so many steps, one epoch, on as many images of CIFAR-10; monitors and timed checkpoints are off."""
    config = TrainConfig(
        rule=rule,
        data="cifar10",
        data_root=root,
        limit_images=steps * batch,
        width=width,
        batch_size=batch,
        epochs=1,
        probe_every=0,
        device="cpu",
        threads=threads,
        out=out,
    )
    resolved, images, state = begin(config, out, lambda _: None)
    loop = Loop(config, resolved, images, state, lambda _: None)
    out.mkdir(parents=True)
    return loop


def stages(loop: Loop, at: Iterable[int], batches: int) -> Iterator[tuple[int, list[tuple[Tensor, Tensor]]]]:
    """Train from place to place (steps, in order of size), and yield each with views of the order's last batches."""
    order = loop.order(0)
    with loop.aside():
        views = [loop.views(loop.images.batch(index)) for index in order[-batches:]]
    for place in sorted(at):
        for index in order[loop.step : place]:
            loop.train_step(index)
        yield place, views
