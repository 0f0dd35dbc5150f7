"""SIGKILL at random moments of a training run, until it is finished.

    python benchmarks/kills.py --kills 100 --out benchmarks/results/kills.json

A small run on the digits is killed and resumed until it comes to its end; then the next one. Half of the runs are first
killed in their first tenth of a second, before there is a checkpoint; half of the other kills are aimed at a checkpoint
being written. After every kill the
folder must hold a whole checkpoint (or none yet), and every finished run must equal the one that was left alone: rows
of metrics.csv and weights bit for bit. Status 1 where one does not.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import redirect_stdout
from pathlib import Path

import torch
from shared import write

from localssl.runs import checkpoint, repeat
from localssl.runs.config import TrainConfig
from localssl.training.train import train

LONGEST = 0.8  # seconds that a process lives at most, from its start on
EARLY = 0.1  # that half of the processes live which begin a run: there is no checkpoint yet


def settings(out: Path, epochs: int) -> TrainConfig:
    """Checkpoints at every epoch's end, four steps apart."""
    return TrainConfig(
        rule="clapp++dfb",
        engine="hebbian",
        data="digits",
        out=out,
        epochs=epochs,
        width=0.25,
        lr=0.01,
        threads=1,
        limit_images=64,
        batch_size=16,
        rule_options=("negatives=random",),
        resume=True,
    )


def begun(config: TrainConfig) -> int:
    """A process that trains; its number. It ends with status 0 only when the run is finished."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
                train(config, report=lambda _: None)
            status = 0
        finally:
            os._exit(status)
    return child


def killed(child: int, run: Path, moments: random.Random) -> bool:
    """Kill a process at a random moment; whether it was still there."""
    early = not run.exists() and moments.random() < 0.5
    until = time.monotonic() + moments.uniform(0.0, EARLY if early else LONGEST)
    writing = not early and moments.random() < 0.5
    while time.monotonic() < until or (writing and time.monotonic() < until + LONGEST):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            if status:
                raise SystemExit(f"the run in {run} could not go on: status {status}")
            return False
        if writing and time.monotonic() >= until and _writes(run, child):
            break
        time.sleep(0.0002 if writing else 0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def _writes(run: Path, child: int) -> bool:
    return any((run / "checkpoint").glob(f".step-*.{child}.tmp"))


def after(run: Path, child: int) -> str:
    """What a kill has left: the moment by name.

    Raises:
        SystemExit: the newest checkpoint is not whole.
    """
    state, notes = checkpoint.read_last(run)
    if notes:
        raise SystemExit(f"{run}: {notes[0]}")
    if _writes(run, child):
        return "writing a checkpoint"
    return "before the first checkpoint" if state is None else "between checkpoints"


def measure(kills: int, epochs: int, folder: Path, seed: int = 0) -> dict[str, object]:
    """Kill and resume; the counts, and by how many numbers finished runs differ from the one that was left alone."""
    torch.set_num_threads(1)
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        whole = train(settings(folder / "whole", epochs), report=lambda _: None)
    moments, seen = random.Random(seed), Counter[str]()
    run, finished, different = 0, 0, 0
    while sum(seen.values()) < kills:
        out, before = folder / f"run-{run}", sum(seen.values())
        while killed(child := begun(settings(out, epochs)), out, moments):
            seen[after(out, child)] += 1
            if sum(seen.values()) >= kills:
                _, status = os.waitpid(begun(settings(out, epochs)), 0)
                if status:
                    raise SystemExit(f"the run in {out} could not go on: status {status}")
                break
        different += bool(repeat.compare(out, whole.path).numbers)
        finished += sum(seen.values()) > before  # those that nobody killed say nothing
        run += 1
    return {"kills": sum(seen.values()), "moments": dict(seen), "finished": finished, "different": different}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(arguments.kills, arguments.epochs, Path(folder), arguments.seed)
    print(found)
    write(arguments.out, 1, epochs=arguments.epochs, seed=arguments.seed, **found)
    if found["different"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
