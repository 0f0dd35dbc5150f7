"""How many samples are inactive under the hinge, at the start and as training goes on.

    python benchmarks/inactive.py --data-root DATA --out benchmarks/results/inactive.json

vgg6 on CIFAR-10 (noise of its form where it is not there), the loop of ``localssl train``, seed 0; at every place of
``--at`` (steps) shares of 2n samples, averaged over batches of training images with views of their own, per block.
"own": γ⁺ = γ⁻ = 0 in every loss of the block, the sample's row leaves ΔB. "none": no sample that uses it as positive or
negative is active, its dendritic signal is exactly 0 and it leaves ΔW. Only the second saves passes through the block.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from loops import cifar10, prepare, stages
from shared import LOCAL, write
from torch import Tensor

from localssl import losses
from localssl.engine.factors import modulators
from localssl.learner import Learner
from localssl.references import take
from localssl.rules import Batch, ScoreRule
from localssl.system.allocator import keep_freed


@torch.no_grad()
def shares(learner: Learner, view_a: Tensor, view_b: Tensor) -> list[tuple[float, float]]:
    """Of every block, the share of samples whose own γ are 0, and of those that leave no change of weights."""
    return [
        inactive(learner, batch, layer) for batch in [learner.batch(view_a, view_b)] for layer in range(len(batch.z))
    ]


def inactive(learner: Learner, batch: Batch, layer: int) -> tuple[float, float]:
    """Both shares of one block."""
    rule = learner.rule
    assert isinstance(rule, ScoreRule)
    samples, z_pos = 2 * batch.n, batch.positives(layer)
    own = torch.ones(samples, dtype=torch.bool)
    unused = torch.ones(samples, dtype=torch.bool)
    for key, reference in rule.references.items():
        g = learner.parts[key][layer](take(reference, batch.z, layer))
        negatives = rule.draw(batch)
        scores = losses.score(z_pos, g), losses.score(z_pos[negatives], g)
        pos, neg = (m > 0 for m in modulators(*scores, rule.f, rule.loss_type, rule.margin))
        own &= ~(pos | neg)
        used = pos.clone()  # in the positives' order: sample i uses row i as positive, row negatives[i] as negative
        used[negatives[neg]] = True
        unused &= ~torch.cat((used[batch.n :], used[: batch.n]))
    return float(own.float().mean()), float(unused.float().mean())


def measured(loop: Any, batches: list[tuple[Tensor, Tensor]]) -> dict[str, list[float]]:
    """Means over the batches, per block."""
    found = torch.tensor([shares(loop.learner, *views) for views in batches]).mean(0)
    return {name: [round(v, 5) for v in found[:, i].tolist()] for i, name in enumerate(("own", "none"))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rules", nargs="+", default=list(LOCAL))
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--at", type=int, nargs="+", default=[0, 10, 30, 100, 300, 1000])
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args()
    keep_freed()  # as the commands do
    steps = max(*a.at, a.batches)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root, data = cifar10(a.data_root, folder, steps * a.batch)
        for rule in a.rules:
            loop = prepare(rule, a.width, a.batch, steps, root, folder / rule, a.threads)
            for step, batches in stages(loop, a.at, a.batches):
                found = measured(loop, batches)
                means = {f"{k}_mean": round(sum(v) / len(v), 5) for k, v in found.items()}
                rows.append({"rule": rule, "width": a.width, "batch": a.batch, "step": step, **found, **means})
                print(rule, step, found, flush=True)
    write(a.out, a.threads, data=data, batches=a.batches, rows=rows)


if __name__ == "__main__":
    main()
