"""What T steps of inference do to predictive coding's update: its cosine with backpropagation's, block by block.

    python benchmarks/pc_states.py --data-root DATA --out benchmarks/results/pc_states.json

vgg6 on CIFAR-10 (noise of its form where it is not there), `pc` as `localssl train` trains it, at its first step and
after some. At each place, for T of ``--steps``: the loss of the last layer at the states that T steps have come to (at
T = 0 of the forward pass), and the cosines of the update made there with backpropagation's at the forward pass; means
over batches of training images. A block that no error has reached yet has no cosine.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import torch
from loops import cifar10, prepare, stages
from shared import write
from torch import Tensor

from localssl.alignment import Pair, measure
from localssl.learner import Learner
from localssl.rules.predictive_coding import IncrementalPredictiveCoding, PredictiveCoding

RULE = "pc"
Views = tuple[Tensor, Tensor]


def after(learner: Learner, steps: int, kind: type[PredictiveCoding] = PredictiveCoding) -> Learner:
    """The same weights and loss with so many steps of inference; the encoder is shared."""
    assert isinstance(learner.rule, PredictiveCoding)
    rule = kind(**{**dataclasses.asdict(learner.rule), "steps": steps})
    other = Learner(learner.encoder, rule, learner.input_shape, learner.patches)
    other.load_state_dict(learner.state_dict())
    return other.eval()


def losses(learner: Learner, steps: int, batches: list[Views]) -> list[float]:
    """The last layer's loss at the states of 0, 1, … steps, means over the batches.

    What ``ipc`` yields at every step is the loss there; with weights that nobody steps its states are those of ``pc``.
    """
    incremental = after(learner, steps + 1, IncrementalPredictiveCoding)
    found = torch.tensor([[float(loss.sum()) for loss in incremental.updates(*views)] for views in batches])
    incremental.zero_grad()
    return [round(value, 4) for value in found.mean(0).tolist()]


def cosines(learner: Learner, batches: list[Views]) -> list[float | None]:
    """Of the weights of every block, means over the batches that have one."""
    rows = measure(learner.encoder, learner, [Pair(*views) for views in batches], "own")
    means = [row.mean for row in rows if row.quantity == "cosine" and row.parameter == "weights"]
    return [None if mean != mean else round(mean, 4) for mean in means]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=float, default=0.125)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--at", type=int, nargs="+", default=[0, 30, 150])
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args()
    steps = max(*a.at, a.batches)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root, data = cifar10(a.data_root, folder, steps * a.batch)
        loop = prepare(RULE, a.width, a.batch, steps, root, folder / RULE, a.threads)
        for place, batches in stages(loop, a.at, a.batches):
            path = losses(loop.learner, max(a.steps), batches)
            for count in a.steps:
                found = cosines(after(loop.learner, count), batches)
                loss = {"loss_at_0": path[0], "loss": path[count]}
                rows.append({"batch": a.batch, "step": place, "T": count, **loss, "cosines": found})
                print(rows[-1], flush=True)
    write(a.out, a.threads, data=data, width=a.width, batches=a.batches, rows=rows)


if __name__ == "__main__":
    main()
