"""What the benchmarks share: the network, a learner and its optimiser, peaks of memory, how results are written."""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from scipy.stats import binom
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import localssl
from localssl import encoders, rules
from localssl.encoders import Encoder, nets
from localssl.optimizer import FactoredAdamW
from localssl.system.devices import processor
from localssl.system.files import write_text
from localssl.training.prepared import parameter_groups

Name = TypeVar("Name")
SHAPE, PATCHES = (3, 32, 32), (4, 4, 4, 2, 2, 1)
BASE = "bp-clapp++"
LOCAL = ("clapp++", "clapp++dfb", "clapp++both")
RANK = 64
MIB = 2**20


class Made(NamedTuple):
    """A learner and the optimiser of its parameters."""

    learner: localssl.Learner
    optimiser: torch.optim.Optimizer

    def step(self, view_a: Tensor, view_b: Tensor, factored: bool = True) -> None:
        """One training step on two views (n, C, H, W)."""
        for _ in self.learner.updates(view_a, view_b, factored=factored):
            self.optimiser.step()
            self.optimiser.zero_grad()


def make(
    rule: str,
    encoder: Encoder,
    shape: Sequence[int] = SHAPE,
    patches: Sequence[int | None] = PATCHES,
    engine: str = "auto",
    projection: str = "dense",
    factored_moment: bool = False,
) -> Made:
    """A rule on an encoder as ``train`` has it: channels-last, fused AdamW that takes factors."""
    options = {} if projection == "dense" else {"projection": projection, "rank": RANK}
    learner = localssl.Learner(encoder, rules.get(rule, **options), tuple(shape), tuple(patches), engine)
    learner.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return Made(learner, FactoredAdamW(parameter_groups(learner, factored_moment), lr=1e-4, weight_decay=0))


def deep(width: float, depth: int) -> tuple[Encoder, tuple[int, ...]]:
    """vgg6 with ``depth`` - 6 further blocks behind its third, and its patches."""
    blocks = list(encoders.vgg6(width).blocks)
    channels = round(width * nets.VGG6_CHANNELS[2])
    blocks[3:3] = [encoders.conv_block(channels, channels, False) for _ in range(depth - 6)]
    return Encoder.from_blocks(blocks), (*PATCHES[:3], *[PATCHES[2]] * (depth - 6), *PATCHES[3:])


def random_views(batch: int, shape: Sequence[int] = SHAPE) -> tuple[Tensor, Tensor]:
    """Two views of noise, each (batch, *shape), channels-last."""
    view_a, view_b = (torch.rand(batch, *shape).to(memory_format=torch.channels_last) for _ in range(2))
    return view_a, view_b


def activity(step: Callable[[], None]) -> float:
    """The allocator's peak within ``step`` above what is held before it, in MiB, from the profiler's events."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    held = highest = 0
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    return highest / MIB


def settled() -> int:
    """KiB that this process holds before a case is made, once the libraries have what they import at a first step."""
    made = make(LOCAL[-1], encoders.vgg6(0.02))
    made.step(*random_views(2))
    return status("VmRSS")


def in_turn(calls: Mapping[Name, Callable[[], object]], repeats: int) -> dict[Name, list[float]]:
    """Seconds of every call, one after the other in each repeat; the first round is not counted."""
    found: dict[Name, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if repeat:
                found[name].append(time.perf_counter() - began)
    return found


def timed(step: Callable[[], object], repeats: int) -> tuple[list[float], list[int]]:
    """Milliseconds and page faults of every step but the first, which is not counted."""
    milliseconds: list[float] = []
    faults: list[int] = []
    for repeat in range(repeats + 1):
        before, began = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
        step()
        if repeat:
            milliseconds.append(1e3 * (time.perf_counter() - began))
            faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return milliseconds, faults


def status(key: str) -> int:
    """A line of /proc/self/status, in KiB."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(key):
            return int(line.split()[1])
    raise SystemExit("no /proc/self/status here: this benchmark needs Linux")


def in_process(file: str, case: Mapping[str, object]) -> dict[str, float]:
    """What ``file --one CASE`` prints as JSON, in a fresh process."""
    command = [sys.executable, file, "--one", json.dumps(case)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with status {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The distribution-free 95 % interval of a median: the order statistics that the binomial gives."""
    ordered, n = sorted(values), len(values)
    low = max(0, int(binom.ppf(0.025, n, 0.5)) - 1)
    return ordered[low], ordered[n - 1 - low]


def load() -> float:
    """The machine's load average of the last minute; a line on stderr where it is more than the benchmark's own.

    Its own: as many threads as it has, for the part of the last minute that it ran.
    """
    found = os.getloadavg()[0]
    run_for = time.process_time() / torch.get_num_threads()  # seconds at work, all threads
    own = torch.get_num_threads() * (1 - math.exp(-run_for / 60))  # as the kernel's average approaches it
    if found > own + 0.5:
        print(f"load average {found:.1f}, of it about {own:.1f} our own: the machine is busy", file=sys.stderr)
    return round(found, 2)


def commit() -> str:
    """The repository's state."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=False).stdout.strip()

    # Results of the measurement before this one are no change of what is measured.
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)benchmarks/results")
    return (git("describe", "--always") or "unknown") + ("-dirty" if changed else "")


def write(path: Path, threads: int, **found: Any) -> None:
    """Results as JSON, with what they were made by."""
    made_by = {
        "torch": torch.__version__,
        "threads": threads,
        "processor": processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "commit": commit(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({**made_by, **found}, indent=1) + "\n")
