"""The training loop of every rule. Resumable bit for bit on the CPU; a failure costs minutes, not the run."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import time
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from localssl import alignment, checkpoint, devices, engine, metrics, monitors, own, testing
from localssl.blocks import BlackBoxError, black_boxes
from localssl.config import RunConfig, TrainConfig
from localssl.data.sources import Images
from localssl.errors import RunError, UsageError
from localssl.files import held, write_text
from localssl.learner import Learner
from localssl.manifest import write_cost, write_manifest
from localssl.optimizer import FactoredAdamW
from localssl.progress import Progress
from localssl.resume import begin
from localssl.run import Run, build, check, make_views, manifest_of, stored_root

SMALL = 200 * 2**20  # bytes of a checkpoint that may be written at step 0 and at every epoch's end
ALIGN_BATCHES = 4
STEPS_PER_ROW = 20  # at least; long epochs have ten rows


def train(config: TrainConfig, report: Callable[[str], None] = print) -> Run:
    """Train an encoder and leave everything in ``config.out``.

    Args:
        config: see ``TrainConfig``; ``--help`` of the command line shows the same text.
        report: receives one-line remarks for the user.

    Returns:
        The finished run.

    Raises:
        UsageError: input that the user must mend; nothing was written or changed.
        RunError: the run cannot go on; the last checkpoint is whole.
        KeyboardInterrupt: stopped by Ctrl-C (or SIGTERM) after a checkpoint was written.
    """
    out = config.out
    if out is None:
        raise UsageError("train needs --out, the folder of the run, for instance --out runs/x")
    check(config)
    devices.choose(config.device)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if config.resume and config.data_root is None:
        config = dataclasses.replace(config, data_root=stored_root(out))
    resolved, images, state = begin(config, out, report)
    for note in images.notes:
        report(note)
    for part, name in resolved.own_files().items():
        changed = manifest_of(out, part).get("sha256") not in (None, own.fingerprint(name))
        if state is not None and changed:
            report(f"warning: {name} is not the file that {out} was begun with; it goes on with the new one")
        if part == "rule" and (state is None or changed):
            _check_own_rule(resolved, report)
    try:
        loop = Loop(config, resolved, images, state, report)
        out.mkdir(parents=True, exist_ok=True)
        with held(out):
            write_text(out / "config.yaml", resolved.to_yaml())
            root = config.data_root or Path(os.environ.get("LOCALSSL_DATA") or "data")
            write_manifest(out, resolved, images, root, config, resumed=state is not None)
            finished = loop.run()
            write_cost(out)
    except BrokenPipeError:  # nobody reads what the run prints: no matter of its folder
        raise
    except OSError as error:
        if own.where(error):  # a file of the user's opened something
            raise
        raise RunError(f"{error.strerror or error} ({error.filename or out}); {_advice(config, out)}") from error
    except (MemoryError, RuntimeError) as error:
        if not devices.out_of_memory(error):
            raise
        advice = f"{_advice(config, out)}, or start anew with a smaller --batch-size or --width"
        raise RunError(f"out of memory; {advice}") from error
    if not finished:
        report(f"stopped at step {loop.step}; go on with: {config.resume_command()}")
        raise KeyboardInterrupt
    return Run(out, resolved)


def _check_own_rule(config: RunConfig, report: Callable[[str], None]) -> None:
    """Say which check a rule of the user's own fails; it trains all the same."""
    try:
        testing.check_rule(config.make_rule())
    except testing.CheckFailed as error:
        report(f"warning: {error}; it trains all the same, see docs/your-own-rule.md")


def _advice(config: TrainConfig, out: Path) -> str:
    if not (out / "config.yaml").exists():  # nothing says yet what to go on with
        return "nothing was begun: mend that, then give the same command again"
    return f"the last checkpoint is untouched: mend that, then go on with: {config.resume_command()}"


class Loop:
    """One training run from its (re)start to its end."""

    def __init__(
        self,
        options: TrainConfig,
        config: RunConfig,
        images: Images,
        state: dict[str, Any] | None,
        report: Callable[[str], None],
    ):
        assert options.out is not None
        self.out, self.config, self.images, self.report = options.out, config, images, report
        self.resume_command = options.resume_command()
        self.checkpoint_seconds = 60 * options.checkpoint_every
        self.fabric = _fabric(options.device, config.precision)
        learner = build(config)
        if options.engine == "auto" and (why := engine.refusal(learner.encoder, learner.rule)):
            report(f"engine: autograd ({why})")
        optimizer = _optimizer(config, learner)
        self.learner = learner
        self.boxes = black_boxes(learner.encoder.blocks)
        self.factored = isinstance(optimizer, FactoredAdamW)
        _, self.optimizer = self.fabric.setup(learner, optimizer)  # moves both; one process needs no wrapper
        if state is None and checkpoint.holds_other_weights(self.out, learner.encoder):
            raise UsageError(f"{self.out} holds a trained encoder but no checkpoint; choose another --out")
        if state is not None:  # after setup, which may have made them float64
            checkpoint.load_weights(learner, state["learner"], f"the checkpoint in {self.out}")
            optimizer.load_state_dict(state["optimizer"])
        self.resumed = state is not None
        self.step: int = 0 if state is None else state["step"]
        self.seconds: float = 0.0 if state is None else state["seconds"]
        views = make_views(config).to(self.fabric.device)
        self.views = views.double() if config.precision == "64-true" else views
        self.steps_per_epoch = len(images) // config.batch_size
        self.last_step = self.steps_per_epoch * config.epochs
        self.log_every = max(STEPS_PER_ROW, self.steps_per_epoch // 10)
        size = 3 * sum(p.numel() * p.element_size() for p in learner.parameters())
        self.small = size <= SMALL
        self.loss_names = _loss_names(learner)
        # Weights are made; from here on one seed gives every rule the same views, whatever it drew for its own parts.
        checkpoint.seed_rng(config.seed + 1)
        if state is not None:
            checkpoint.set_rng_state(state["rng"])
        sums = torch.zeros(len(self.loss_names)) if state is None else state["sum"]
        self.sum = sums.to(self.fabric.device)  # of the losses since the last row
        self.count: int = 0 if state is None else state["count"]
        self.warned: set[str] = set()  # monitors that were warned of already

    @property
    def columns(self) -> list[str]:
        """Of metrics.csv."""
        blocks = len(self.learner.encoder.blocks)
        first = ["step", "epoch", "seconds", "images_per_second", "lr", "loss", *self.loss_names]
        return [*first, *monitors.names(blocks), *(f"align_{block}" for block in range(1, blocks + 1))]

    def run(self) -> bool:
        """Write what a run begins with, then train. Returns whether it came to its end."""
        progress = Progress(self.step, self.last_step, self.config.batch_size)
        with (
            _stop_signals() as stopped,
            closing(metrics.Metrics(self.out, self.columns, self.step if self.resumed else None)) as rows,
            progress,
        ):
            if self.step in (0, self.last_step):  # a finished run: mends an encoder that was deleted or damaged
                checkpoint.save_encoder(self.out, self.learner.encoder, self.config)
            if self.step == 0 and self.small:
                self.save()
            self.train(stopped, rows, progress)
        return self.step == self.last_step

    def train(self, stopped: Callable[[], bool], rows: metrics.Metrics, progress: Progress) -> None:
        """Step by step to the end, or to the checkpoint that a signal asked for."""
        saved_at = time.monotonic()
        while self.step < self.last_step:
            epoch, position = divmod(self.step, self.steps_per_epoch)
            for index in self.order(epoch)[position:]:
                began = time.monotonic()
                with self.may_fail():
                    self.train_step(index)
                self.seconds += time.monotonic() - began
                progress.advance(self.step)
                epoch_end = self.step % self.steps_per_epoch == 0
                if self.step == 1 or epoch_end or self.step % self.log_every == 0:
                    self.log(rows, progress)
                due = time.monotonic() - saved_at > self.checkpoint_seconds
                stop = stopped()
                if stop or due or (epoch_end and self.small) or self.step == self.last_step:
                    self.save()
                    saved_at = time.monotonic()
                if stop:
                    return

    @contextmanager
    def may_fail(self) -> Generator[None]:
        """A step in which a black box may give no answer: then the run is saved as it was before the step.

        Raises:
            RunError: it gave none.
        """
        before = checkpoint.rng_state() if self.boxes else {}
        try:
            yield
        except BlackBoxError as error:
            checkpoint.set_rng_state(before)
            self.save()
            raise RunError(
                f"{error} in step {self.step + 1}; the run is saved as it was before: mend that, then go on with: "
                f"{self.resume_command}"
            ) from error

    def order(self, epoch: int) -> list[Tensor]:
        """The batches of an epoch: a function of seed and epoch only, so any position in it can be found again."""
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + epoch)
        shuffled = torch.randperm(len(self.images), generator=generator)
        n = self.config.batch_size
        return list(shuffled[: self.steps_per_epoch * n].split(n))

    def train_step(self, index: Tensor) -> None:
        """One batch, one update."""
        images = self.images.batch(index).to(self.fabric.device)
        labels = None if self.images.labels is None else self.images.labels[index].to(self.fabric.device)
        view_a, view_b = self.views(images)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr()
        first: Tensor | None = None
        with self.fabric.autocast():
            for losses in self.learner.updates(view_a, view_b, labels=labels, factored=self.factored):
                self.optimizer.step()
                self.optimizer.zero_grad()
                first = losses if first is None else first
        self.step += 1
        self.sum += 0 if first is None else first
        self.count += 1

    def lr(self) -> float:
        """Learning rate of the coming step."""
        if self.config.schedule == "cosine":
            return self.config.lr * 0.5 * (1 + math.cos(math.pi * self.step / self.last_step))
        return self.config.lr

    def guard(self) -> None:
        """Refuse to go on, and above all to write a checkpoint, once a loss or a weight is not finite."""
        bad = monitors.not_finite(dict(zip(self.loss_names, self.sum, strict=True)))
        bad = bad or monitors.not_finite(dict(self.learner.named_parameters()))
        if bad:
            raise RunError(
                f"{', '.join(bad)} became NaN or infinite by step {self.step}; the last checkpoint is from before: "
                f"start anew with a lower --lr and another --out"
            )

    def log(self, rows: metrics.Metrics, progress: Progress) -> None:
        """Write a row of metrics, and show it."""
        self.guard()
        epoch_end = self.step % self.steps_per_epoch == 0
        epoch = self.step // self.steps_per_epoch
        mean = (self.sum / max(1, self.count)).tolist()
        n = self.config.batch_size
        row = {
            "step": self.step,
            "epoch": round(self.step / self.steps_per_epoch, 4),
            "seconds": round(self.seconds, 3),
            "images_per_second": round(progress.rate() or n * self.step / max(self.seconds, 1e-9), 1),
            "lr": self.lr(),
            "loss": sum(mean),
            **dict(zip(self.loss_names, mean, strict=True)),
        }
        every = self.config.probe_every
        if every and epoch_end and epoch % every == 0:
            values = self.observe()
            row.update(values)
            for place, warning in monitors.collapse(values).items():
                if place not in self.warned:
                    self.report(f"warning: {warning}")
                self.warned.add(place)
        every = self.config.align_every
        if every and epoch_end and epoch % every == 0:
            row.update(self.align())
        rows.log(row)
        shown = [f"loss {' '.join(f'{value:.3g}' for value in mean)}"]
        progress.line([*shown, f"kNN {row['knn']:.1f} %"] if "knn" in row else shown)
        self.sum.zero_()
        self.count = 0

    @contextmanager
    def aside(self) -> Generator[None]:
        """Measurements: random numbers that are the same every time, the run's own left as they were."""
        devices = [] if self.fabric.device.type == "cpu" else [self.fabric.device]
        with (
            torch.random.fork_rng(devices, device_type=self.fabric.device.type if devices else "cuda"),
            self.fabric.autocast(),
        ):
            torch.manual_seed(self.config.seed)
            yield

    def align(self) -> dict[str, float]:
        """Cosine with backpropagation, block by block, on the same batches of training images every time."""
        step = max(1, len(self.images) // (ALIGN_BATCHES * self.config.batch_size))
        index = torch.arange(0, len(self.images), step)
        batches = [i for i in index.split(self.config.batch_size) if len(i) == self.config.batch_size][:ALIGN_BATCHES]
        labels = self.images.labels
        was_training = self.learner.training
        self.learner.eval()
        with self.aside():
            pairs = [
                alignment.Pair(
                    *self.views(self.images.batch(i).to(self.fabric.device)),
                    labels=None if labels is None else labels[i].to(self.fabric.device),
                )
                for i in batches
            ]
            rows = alignment.measure(self.learner.encoder, self.learner, pairs)
        self.learner.train(was_training)
        return {f"align_{r.block}": r.mean for r in rows if _shown(r)}

    def observe(self) -> dict[str, float]:
        """The online monitors on a fixed sample; the run's own randomness is left as it was."""
        step = max(1, len(self.images) // monitors.SAMPLE)
        index = torch.arange(0, len(self.images), step)[: monitors.SAMPLE]
        images = self.images.batch(index).to(self.fabric.device)
        labels = None if self.images.labels is None else self.images.labels[index].to(self.fabric.device)
        with self.aside():
            view_a, view_b = self.views(images[: monitors.PAIRS])
            return monitors.observe(self.learner, view_a, view_b, self.views.normalise(images), labels)

    def save(self) -> None:
        """Write a checkpoint and the encoder."""
        self.guard()
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "config": self.config.to_yaml(),
            "learner": self.learner.state_dict(),
            "optimizer": self.optimizer.optimizer.state_dict(),
            "rng": checkpoint.rng_state(),
            "sum": self.sum.cpu(),
            "count": self.count,
        }
        checkpoint.save(self.out, state)
        checkpoint.save_encoder(self.out, self.learner.encoder, self.config)


def _fabric(device: str, precision: str) -> Fabric:
    return Fabric(accelerator=device, devices=1, precision=precision)  # pyright: ignore[reportArgumentType]


def _optimizer(config: RunConfig, learner: Learner) -> torch.optim.Optimizer:
    if config.optimizer in ("sgd", "plain-sgd"):
        momentum = 0.9 if config.optimizer == "sgd" else 0.0
        return torch.optim.SGD(learner.parameters(), lr=config.lr, momentum=momentum, weight_decay=config.weight_decay)
    if config.optimizer == "adam-l2":  # PyTorch's Adam: the decay is part of the gradient
        return torch.optim.Adam(learner.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True)
    # AdamW is Adam where the decay is 0.
    return FactoredAdamW(
        learner.parameters(), lr=config.lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=config.weight_decay
    )


def _shown(row: alignment.LayerAlignment) -> bool:
    return row.quantity == "cosine" and row.parameter == "weights" and row.batches > 0


def _loss_names(learner: Learner) -> list[str]:
    n_blocks = len(learner.encoder.blocks)
    if not learner.rule.per_layer:
        return [f"loss_{n_blocks}"]
    return [f"loss_{block}" for block in range(1, n_blocks + 1)]


@contextmanager
def _stop_signals() -> Generator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a flag, read between steps; a second one ends the program at once."""
    flag: list[int] = []

    def handler(number: int, frame: object) -> None:
        if flag:
            raise KeyboardInterrupt
        flag.append(number)

    numbers = (signal.SIGINT, signal.SIGTERM)
    try:
        previous = {number: signal.signal(number, handler) for number in numbers}
    except ValueError:  # not the main thread: signals are the caller's business
        yield lambda: False
        return
    try:
        yield lambda: bool(flag)
    finally:
        for number, old in previous.items():
            if old is not None:  # None: a handler that was not set from Python and cannot be put back from here
                signal.signal(number, old)
