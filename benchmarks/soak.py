"""Training in pieces, killed and resumed at random: does anything grow, leak or get lost?

    python benchmarks/soak.py --minutes 360 --piece 60 --out benchmarks/results/soak.json

A piece is one run in one folder that goes on for --piece minutes of training, killed by SIGKILL and resumed again and
again; every process looks at its own memory, descriptors and threads once an epoch. Afterwards: the slope of memory
over the steps of a process (those of the first 20 % left out), its course in the process that took the most steps, the
growth of descriptors and threads, and whether metrics.csv has every row once. Goes on where the results stop. Status 1
where descriptors or threads grow, a row is missing or doubled or a run ended by itself. With --jobs 2 two pieces run at
the same time, each with one thread: the minutes count twice, the steps are those that were taken.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stdout
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from shared import commit, status, write

from localssl.runs import metrics
from localssl.runs.config import TrainConfig
from localssl.system.allocator import keep_freed
from localssl.training.loop import Loop
from localssl.training.train import train

EVERY = 20  # steps between two looks
SETTLING = 0.2  # of a process's looks, while its libraries take what they need
PARTS = 12  # of the course of memory: means
LEAST = 20  # looks that a process needs for a slope


def settings(out: Path) -> TrainConfig:
    """More epochs than any piece has time for."""
    return TrainConfig(
        rule="clapp++dfb",
        engine="hebbian",
        data="digits",
        out=out,
        epochs=10**6,
        width=0.25,
        lr=0.001,
        threads=1,
        resume=True,
    )


def look(log: Path, step: int) -> None:
    """A line about this process as it is."""
    found = [os.getpid(), step, status("VmRSS"), len(os.listdir("/proc/self/fd")), threading.active_count()]
    with log.open("a", encoding="utf-8") as file:
        file.write(json.dumps(found) + "\n")


def begun(out: Path, log: Path) -> int:
    """A process that trains until it is killed; its number."""
    child = os.fork()
    if child == 0:
        original = Loop.train_step

        def train_step(self: Loop, *batch: torch.Tensor) -> None:
            original(self, *batch)
            if self.step % EVERY == 0:
                look(log, self.step)

        Loop.train_step = train_step
        try:
            with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
                train(settings(out), report=lambda _: None)
        finally:
            os._exit(1)
    return child


def piece(out: Path, minutes: float, kill_minutes: float, seed: int) -> dict[str, Any]:
    """One run, killed every few minutes until its time is over; what was seen."""
    log, chance = out.with_suffix(".log"), random.Random(seed)
    end, kills = time.monotonic() + 60 * minutes, 0
    while time.monotonic() < end:
        child = begun(out, log)
        until = min(end, time.monotonic() + chance.uniform(0.2, 1.8) * 60 * kill_minutes)
        while time.monotonic() < until:
            if os.waitpid(child, os.WNOHANG)[0]:
                raise SystemExit(f"the run in {out} ended by itself after {kills} kills")
            time.sleep(0.05)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        kills += 1
    return {"minutes": round(minutes, 2), "kills": kills, **measured(log), **rows(out)}


def measured(log: Path) -> dict[str, Any]:
    """Slope of memory, and the growth of descriptors and threads within a process."""
    looks = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines() if line.endswith("]")]
    slopes: list[float] = []
    growth = {"descriptors": 0, "threads": 0}
    longest: list[list[int]] = []
    for pid in dict.fromkeys(entry[0] for entry in looks):
        own = [entry for entry in looks if entry[0] == pid]
        longest = max(longest, own, key=len)
        own = own[int(SETTLING * len(own)) :]
        if len(own) >= LEAST:
            steps, memory = (np.array([entry[i] for entry in own], dtype=float) for i in (1, 2))
            slopes.append(float(np.polyfit(steps, memory / 1024, 1)[0] * 1000))
            for name, i in (("descriptors", 3), ("threads", 4)):
                growth[name] = max(growth[name], own[-1][i] - own[0][i])
    return {
        "steps": max(entry[1] for entry in looks),
        "mib_per_1000_steps": [round(slope, 3) for slope in slopes],
        "course_steps": longest[-1][1] - longest[0][1],
        "course_mib": [round(float(part.mean()) / 1024, 1) for part in np.array_split([e[2] for e in longest], PARTS)],
        "resident_mib": round(max(entry[2] for entry in looks) / 1024, 1),
        **{f"{name}_growth": value for name, value in growth.items()},
    }


def rows(out: Path) -> dict[str, Any]:
    """Whether metrics.csv has every row that its last step calls for, once and in order."""
    found = [int(row["step"]) for row in metrics.read(out)]
    per_epoch = 1297 // 64
    expected = [1, *range(20, found[-1] + 1, 20)] if per_epoch == 20 else []
    return {"rows": len(found), "rows_wrong": len(set(found) ^ set(expected)) + len(found) - len(set(found))}


def lone_piece(minutes: float, kill_minutes: float, seed: int) -> dict[str, Any]:
    """A piece in a folder of its own, in a process of the pool."""
    torch.set_num_threads(1)
    keep_freed()  # as the commands do
    with tempfile.TemporaryDirectory() as folder:
        return piece(Path(folder) / "x", minutes, kill_minutes, seed)


def remaining(minutes: float, each: float) -> list[float]:
    """The lengths of the pieces that make up so many minutes."""
    lengths: list[float] = []
    while (left := minutes - sum(lengths)) > 1e-6:
        lengths.append(min(each, left))
    return lengths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=360.0)
    parser.add_argument("--piece", type=float, default=60.0)
    parser.add_argument("--kill-every", type=float, default=3.0)
    parser.add_argument("--jobs", type=int, default=1, help="pieces at the same time")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    pieces: list[dict[str, Any]] = []
    if arguments.out.is_file():
        pieces = json.loads(arguments.out.read_text(encoding="utf-8"))["pieces"]
    begun_at = commit()  # the code that is loaded now, whatever is checked out meanwhile
    lengths = remaining(arguments.minutes - sum(p["minutes"] for p in pieces), arguments.piece)
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
        seeds = range(len(pieces), len(pieces) + len(lengths))
        work = [pool.submit(lone_piece, m, arguments.kill_every, s) for m, s in zip(lengths, seeds, strict=True)]
        for done in as_completed(work):
            if error := done.exception():
                print(error, file=sys.stderr, flush=True)
                continue
            pieces.append({"commit": begun_at, **done.result()})
            print(json.dumps(pieces[-1]), flush=True)
            write(arguments.out, 1, pieces=pieces)
    failed = any(w.exception() for w in work)
    leaks = any(p["descriptors_growth"] > 2 or p["threads_growth"] > 0 or p["rows_wrong"] for p in pieces)
    sys.exit(failed or leaks)


if __name__ == "__main__":
    main()
