"""What the spiking network of ``localssl export --nir`` keeps of an encoder's accuracy: linear probes of both.

    python benchmarks/spikes.py --out benchmarks/results/spikes.json

vgg5 with average pools, trained by ``localssl train`` on scikit-learn's digits. Norse runs the graph, every image as a
constant current; its features are the last block's spikes a step times what they stand for, read out as the ReLU
encoder's activities are (0 steps). Every probe is fitted on features of its own kind. "spikes": a neuron's in the last
ReLU, a step (the mean). "difference": the length of rates minus activities over that of the activities. Needs nir and
Norse (localssl[nir], norse).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from shared import write
from torch import Tensor

from localssl import api, nir_graph
from localssl.data.sources import Images
from localssl.encoders import Encoder
from localssl.probe.fast import fast_probe
from localssl.readout import per_block, readout
from localssl.runs import run

BATCH = 256


def rates(graph: Path, x: Tensor, at: Sequence[int]) -> list[Tensor]:
    """The graph's output, a mean over the steps up to each of ``at``, for images (n, C, H, W)."""
    import nir
    import norse.torch

    network: Any = norse.torch.from_nir(nir.read(str(graph)))
    out, state = network(x)
    total, found = out, [out] if 1 in at else []
    for step in range(2, max(at) + 1):
        out, state = network(x, state)
        total = total + out
        if step in at:
            found.append(total / step)
    return found


def activities(encoder: Encoder, graph: Path, scale: float, x: Tensor, at: Sequence[int]) -> list[Tensor]:
    """The last block's activity, then what stands for it after each of these steps."""
    return [encoder(x)[-1], *(scale * rate for rate in rates(graph, x, at))]


def measured(opened: run.Run, folder: Path, at: Sequence[int]) -> list[dict[str, Any]]:
    """Accuracies of the activities (0 steps) and of the spikes after each of these steps."""
    encoder, normalise, c = opened.encoder().eval().float(), opened.normalise(), opened.config
    patch = per_block(c.patches, len(encoder.blocks))[-1]
    written = nir_graph.to_nir(encoder, c.input_shape, folder / "x.nir", "if")

    def of(images: Images) -> list[Tensor]:
        batches = [normalise(images.batch(index)) for index in torch.arange(len(images)).split(BATCH)]
        parts = [activities(encoder, folder / "x.nir", written.output, x, at) for x in batches]
        return [torch.cat(kind) for kind in zip(*parts, strict=True)]

    train, test = opened.images("train"), opened.images("test")
    trained, tested = of(train), of(test)
    features = [[readout(kind, patch) for kind in part] for part in (trained, tested)]
    probed = fast_probe(features[0], train.labels, features[1], test.labels, layers=("each",), knn=False)
    rows: list[dict[str, Any]] = []
    for steps, found, row in zip((0, *at), tested, probed.rows, strict=True):
        made: dict[str, Any] = {"steps": steps, "accuracy": round(row.accuracy, 2)}
        if steps:
            made["spikes"] = round(float(found.mean()) / written.scales[-1], 5)
            made["difference"] = round(float((found - tested[0]).norm() / tested[0].norm()), 3)
        rows.append(made)
    return rows


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rule", default="clapp++")
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--limit-images", type=int, help="of the training images, for a trial")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, nargs="+", default=[32, 128, 512])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    rows: list[dict[str, Any]] = []
    for seed in a.seeds:
        with tempfile.TemporaryDirectory() as name, torch.enable_grad():
            trained = api.train(
                rule=a.rule,
                data="digits",
                width=a.width,
                epochs=a.epochs,
                limit_images=a.limit_images,
                seed=seed,
                threads=a.threads,
                encoder_options={"pool": "avg"},
                out=Path(name) / "run",
            )
            with torch.no_grad():
                found = measured(run.open_run(trained.path), Path(name), sorted(a.steps))
        rows += [{"seed": seed, **row} for row in found]
        print(*found, sep="\n", flush=True)
    options = {key: getattr(a, key) for key in ("rule", "width", "epochs")}
    write(a.out, a.threads, data="digits", test_images=500, **options, rows=rows)


if __name__ == "__main__":
    main()
