"""``train --dry-run``: what a run would take, from its sizes and from some real steps. Nothing is kept."""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from localssl.errors import RunError, UsageError
from localssl.markdown import counted
from localssl.runs import metrics
from localssl.runs.config import RunConfig, TrainConfig
from localssl.runs.limits import check
from localssl.runs.resume import begin, check_folder, found_again
from localssl.system import devices
from localssl.training.loop import Loop

QUICK = 2.0  # seconds within which a measurement is repeated
WARM, LEAST, SECONDS = 3, 5, 10.0  # steps that are not timed; steps that are, at least, and for about how long
FEWEST = 2  # steps that are timed where they are slow, and one before them


@dataclass(frozen=True)
class Estimate:
    """What a run would take.

    Args:
        config: of the run, resolved.
        images: trained on.
        steps: of the whole run.
        blocks: per block the shape of its output, (C, H, W), and its number of parameters.
        rule: parameters of the rule's own (projections), by key.
        checkpoint_bytes: of one checkpoint, about; two are kept.
        encoder_bytes: of encoder.safetensors, about.
        timed: steps that were timed.
        step_seconds: their median.
        seconds: of the whole run: steps, monitors, alignment and the checkpoints of small runs.
        peak_memory_mib: of this process after those steps: Python, PyTorch and the data are in it; 0 where not known.
        gpu_memory_mib: of tensors on the GPU; 0 without one.
    """

    config: RunConfig
    images: int
    steps: int
    blocks: list[tuple[tuple[int, ...], int]]
    rule: dict[str, int]
    checkpoint_bytes: int
    encoder_bytes: int
    timed: int
    step_seconds: float
    seconds: float
    peak_memory_mib: float
    gpu_memory_mib: float


def rehearse(config: TrainConfig, report: Callable[[str], None] = print) -> Estimate:
    """Run some steps of a training run and tell from them what it would take; nothing is kept.

    Args:
        config: of the run; ``out`` may be left out. Where it is given, what would refuse it is found here, too.
        report: receives one-line remarks.

    Raises:
        UsageError: whatever ``train`` would refuse.
        RunError: the memory is full.
    """
    check(config)
    if config.devices * config.nodes > 1 or config.pipeline:
        raise UsageError("--dry-run runs in one process: leave out --devices, --nodes and --pipeline")
    if config.resume and config.out is None:
        raise UsageError("--resume goes on with the run in --out; give both")
    devices.choose(config.device)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    with tempfile.TemporaryDirectory(prefix="localssl-") as folder:
        out = config.out or Path(folder) / "run"
        check_folder(out)
        resolved, images, state = begin(found_again(config, out), out, report)
        for note in images.notes:
            report(note)
        try:
            loop = Loop(replace(config, out=Path(folder)), resolved, images, state, report)
            return _measured(loop, len(images))
        except (MemoryError, RuntimeError) as error:
            if not devices.out_of_memory(error):
                raise
            raise RunError("out of memory; use a smaller --batch-size or --width") from error


def _measured(loop: Loop, images: int) -> Estimate:
    config, left = loop.config, loop.last_step - loop.step
    epochs = left / max(1, loop.steps_per_epoch)
    warm = WARM if left > WARM else 0
    batches = itertools.islice(_batches(loop), left)
    rows = metrics.Metrics(loop.out, loop.columns, beside=loop.trackers)  # as in a run: its libraries take memory
    with closing(rows):
        began = time.monotonic()
        for done, index in enumerate(itertools.islice(batches, warm), start=1):
            loop.train_step(loop.own(index))
            if (took := time.monotonic() - began) >= SECONDS:
                loop.report(f"a step takes {took / done:.0f} s; the estimate comes after a few more")
                break
        several = config.epochs > 1
        # Called from Python, where memory is not kept (system.allocator), the allocator learns to keep it at the end
        # of the first epoch: the steps after it are faster, by up to a quarter, and most of such a run.
        besides = _besides(loop, epochs) if left and several else 0.0
        times = _timed(loop, batches)
        besides = _besides(loop, epochs) if left and not several else besides
    step = statistics.median(times) if times else 0.0
    seconds = left * step + besides
    learner = loop.learner
    moments = [v for of in loop.prepared.optimizer.state.values() for v in of.values() if torch.is_tensor(v)]
    return Estimate(
        config=config,
        images=images,
        steps=left,
        blocks=[
            (tuple(shape), sum(p.numel() for p in block.parameters()))
            for shape, block in zip(learner.output_shapes, learner.encoder.blocks, strict=True)
        ],
        rule={key: sum(p.numel() for p in parts.parameters()) for key, parts in learner.projections.items()},
        checkpoint_bytes=sum(v.nbytes for v in (*learner.state_dict().values(), *moments)),
        encoder_bytes=sum(v.nbytes for v in learner.encoder.state_dict().values()),
        timed=len(times),
        step_seconds=step,
        seconds=seconds,
        peak_memory_mib=devices.peak_memory(),
        gpu_memory_mib=devices.peak_gpu_memory(),
    )


def _timed(loop: Loop, batches: Iterator[Tensor]) -> list[float]:
    """Seconds of training steps, for as long as is worth it."""
    times: list[float] = []
    began = time.monotonic()
    for index in batches:
        start = time.monotonic()
        loop.train_step(loop.own(index))
        devices.wait(loop.fabric.device)
        times.append(time.monotonic() - start)
        took = time.monotonic() - began
        if took >= SECONDS and (len(times) >= LEAST or (len(times) >= FEWEST and took >= 2 * SECONDS)):
            break
    return times


def _besides(loop: Loop, epochs: float) -> float:
    """Seconds of what so many epochs end with: monitors, alignment, the checkpoints of small runs."""
    config = loop.config
    seconds = epochs / config.probe_every * _seconds(loop.observe) if config.probe_every else 0.0
    seconds += epochs / config.align_every * _seconds(loop.align) if config.align_every else 0.0
    return seconds + (epochs * _seconds(loop.save) if loop.small else 0.0)


def _batches(loop: Loop) -> Iterator[Tensor]:
    """Indices of batches, epoch after epoch: an epoch of few images alone would end before a step is timed."""
    for epoch in range(loop.config.epochs):
        yield from loop.order(epoch)


def _seconds(work: Callable[[], object]) -> float:
    """What it takes, done again where it is quick: the first time of all is slower, and is one of many epochs'."""
    took: list[float] = []
    while len(took) < 3 and sum(took) < QUICK:
        began = time.monotonic()
        work()
        took.append(time.monotonic() - began)
    return statistics.median_low(took)


def lines(estimate: Estimate) -> list[str]:
    """An estimate to read."""
    e, c = estimate, estimate.config
    encoder = sum(n for _, n in e.blocks)
    said = [
        f"{c.rule} on {c.data}: {e.images:,} images, {counted(c.epochs, 'epoch')}, batches of {c.batch_size}, "
        f"{counted(e.steps, 'step')}"
    ]
    for number, (shape, n) in enumerate(e.blocks, start=1):
        said.append(f"  block {number}: {'×'.join(map(str, shape))}, {n:,} parameters")
    said += [f"  {key}: {n:,} parameters" for key, n in e.rule.items() if n]
    said.append(f"parameters: encoder {encoder:,}, rule {sum(e.rule.values()):,}")
    said.append(f"files: encoder {e.encoder_bytes / 1e6:,.1f} MB, checkpoints 2 × {e.checkpoint_bytes / 1e6:,.1f} MB")
    gpu = f", GPU {e.gpu_memory_mib:,.0f} MiB" if e.gpu_memory_mib else ""
    memory = f"{e.peak_memory_mib:,.0f} MiB, Python and the data included" if e.peak_memory_mib else "not known here"
    said.append(f"memory: {memory}{gpu}")
    if not e.timed:
        return [*said, "time: no step to run"]
    rate = c.batch_size / e.step_seconds
    said.append(
        f"time: {_duration(e.seconds)}, {rate:,.0f} images/s, from {counted(e.timed, 'step')} on this machine as busy "
        "as it is now"
    )
    return said


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
