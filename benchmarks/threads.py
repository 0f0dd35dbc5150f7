"""The same run with 1, 2 and 4 threads, twice each: which are equal bit for bit, and by how much the others differ.

    python benchmarks/threads.py --out benchmarks/results/threads.json

"loss": largest relative difference of a row's loss from that of one thread; "weights": of all weights of the last
checkpoint, |w - w1| over |w1|, Euclidean.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

import torch
from shared import write

from localssl.runs import checkpoint, metrics, repeat
from localssl.runs.config import TrainConfig
from localssl.training.train import train

THREADS = (1, 2, 4)
RULES = ("clapp++", "clapp++dfb", "bp-clapp++")


def trained(rule: str, threads: int, epochs: int, out: Path) -> Path:
    """A run on the digits."""
    config = TrainConfig(rule=rule, data="digits", out=out, epochs=epochs, threads=threads, width=0.25, probe_every=0)
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        train(config, report=lambda _: None)
    return out


def weights(run: Path) -> torch.Tensor:
    """All weights of the last checkpoint in one vector."""
    state, _ = checkpoint.read_last(run)
    assert state is not None
    return torch.cat([w.double().flatten() for w in state["learner"].values()])


def row(rule: str, threads: int, run: Path, again: Path, one: Path) -> dict[str, object]:
    """A number of threads against itself, and against one thread."""
    losses = [[float(r["loss"]) for r in metrics.read(folder)] for folder in (run, one)]
    w, w1 = weights(run), weights(one)
    return {
        "rule": rule,
        "threads": threads,
        "again_equal": not repeat.compare(again, run).numbers,
        "equal_to_one": not repeat.compare(run, one).numbers,
        "loss": max(abs(a - b) / abs(b) for a, b in zip(*losses, strict=True)),
        "weights": float((w - w1).norm() / w1.norm()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    found: list[dict[str, object]] = []
    for rule in RULES:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for threads in THREADS:
                for turn in (0, 1):
                    trained(rule, threads, arguments.epochs, folder / f"{threads}-{turn}")
                found.append(row(rule, threads, folder / f"{threads}-0", folder / f"{threads}-1", folder / "1-0"))
                print(found[-1], flush=True)
                write(arguments.out, threads, epochs=arguments.epochs, rows=found)


if __name__ == "__main__":
    main()
