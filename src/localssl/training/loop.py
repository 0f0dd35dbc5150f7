"""The training loop of every rule, from a run's (re)start to its end. Resumable bit for bit on the CPU."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import torch
from torch import Tensor

from localssl import alignment, engine
from localssl.blocks import BlackBoxError, black_boxes
from localssl.data import order
from localssl.data.sources import Images
from localssl.errors import RunError, UsageError
from localssl.learner import Learner
from localssl.runs import checkpoint, metrics
from localssl.runs.config import RunConfig, TrainConfig
from localssl.runs.run import make_views
from localssl.system import devices, interrupts
from localssl.training import monitors, pipeline, sharding, sharing
from localssl.training.divergence import Watch
from localssl.training.prepared import prepare, rate
from localssl.training.progress import Progress

SMALL = 200 * 2**20  # bytes of a checkpoint that may be written at step 0 and at every epoch's end
ALIGN_BATCHES = 4
STEPS_PER_ROW = 20  # at least; long epochs have ten rows


class Loop:
    """One training run from its (re)start to its end."""

    def __init__(
        self,
        options: TrainConfig,
        config: RunConfig,
        images: Images,
        state: dict[str, Any] | None,
        report: Callable[[str], None],
        place: pipeline.Place = pipeline.ALONE,
        number: int = 0,
    ):
        assert options.out is not None
        self.place, self.processes, self.speaks = place, (processes := place.peers), place.speaks
        self.out, self.config, self.images, self.report = options.out, config, images, report
        self.resume_command = options.resume_command()
        self.checkpoint_seconds = 60 * options.checkpoint_every
        self.trackers = options.trackers
        self.saved_at = time.monotonic()
        shared = processes if options.shard_b else None
        self.prepared = prepare(config, options.device, number, shared)
        self.fabric = self.prepared.fabric
        self.learner = learner = self.prepared.learner
        if options.engine == "auto" and config.bits is None and (why := engine.refusal(learner.encoder, learner.rule)):
            report(f"engine: autograd ({why})")
        self.together = bool(sharding.shards(learner))  # who measures or saves B needs the others' rows of it
        self.boxes = black_boxes(learner.encoder.blocks)
        apart = (options.pipeline or 1) > 1 or config.staleness
        self.divided = pipeline.divide(learner, options, config) if apart else []
        self.across = sharing.across(processes, learner, config, options.exchange, report)
        self.first: pipeline.First | None = None  # while blocks learn apart
        self.bad: list[str] = []  # parameters that other processes found not finite
        if state is None and checkpoint.holds_other_weights(self.out, learner.encoder):
            raise UsageError(f"{self.out} holds a trained encoder but no checkpoint; choose another --out")
        if state is not None:  # after they were prepared, which may have made them float64
            self.prepared.load(state, f"the checkpoint in {self.out}")
        self.resumed = state is not None
        self.step: int = 0 if state is None else state["step"]
        self.seconds: float = 0.0 if state is None else state["seconds"]
        views = make_views(config).to(self.fabric.device)
        self.views = views.double() if config.precision == "64-true" else views
        self.steps_per_epoch = len(images) // config.batch_size
        self.last_step = self.steps_per_epoch * config.epochs
        self.log_every = max(STEPS_PER_ROW, self.steps_per_epoch // 10)
        size = sum(p.numel() * p.element_size() for p in learner.parameters()) + sharding.elsewhere(learner)
        self.small = 3 * size <= SMALL
        self.loss_names = _loss_names(learner)
        # Weights are made; from here on one seed gives every rule the same views, whatever it drew for its own parts.
        checkpoint.seed_rng(config.seed + 1)
        if state is not None:
            checkpoint.set_rng_state(state["rng"], None if processes is None else self.fabric.device)
        sums = torch.zeros(len(self.loss_names)) if state is None else state["sum"]
        self.sum = sums.to(self.fabric.device)  # of the losses since the last row
        self.count: int = 0 if state is None else state["count"]
        self.warned: set[str] = set()  # monitors that were warned of already
        on_nan, advice = options.on_nan, dataclasses.replace(options, on_nan="stop").resume_command()
        self.watch = Watch(self.prepared, self.out, on_nan, self.loss_names, processes, report, advice)

    @property
    def columns(self) -> list[str]:
        """Of metrics.csv."""
        blocks = len(self.learner.encoder.blocks)
        first = ["step", "epoch", "seconds", "images_per_second", "lr", "loss", *self.loss_names]
        aligned = (f"align_{block}" for block in range(1, blocks + 1))
        clipped = (f"saturated_{block}" for block in range(1, blocks + 1)) if self.config.bits else ()
        return [*first, *monitors.names(blocks), *aligned, *clipped]

    def run(self) -> bool:
        """Write what a run begins with, then train. Returns whether it came to its end."""
        with interrupts.stop_signals() as stopped, ExitStack() as stack:
            shown = stack.enter_context(self.shown()) if self.speaks else None
            if self.speaks and self.step in (0, self.last_step):  # a finished run: mends a damaged encoder
                checkpoint.save_encoder(self.out, self.learner.encoder, self.config)
            if self.step == 0 and self.small:
                self.save()
                if self.place.peers is not None:
                    self.place.peers.any(False)  # who fails at once ends the process that writes it
            if self.divided and (self.step < self.last_step or self.place.stages > 1):  # who waits is told of the end
                of = "" if self.processes is None else f" for each of the batch's {self.processes.size} parts"
                self.report(f"processes: {len(self.divided)}{of}, {', '.join(map(pipeline.words, self.divided))}")
                self.first = stack.enter_context(pipeline.begun(self.prepared, self.setup(), self.place))
            self.train(stopped, shown)
        return self.step == self.last_step

    @contextmanager
    def shown(self) -> Generator[tuple[metrics.Metrics, Progress]]:
        """Where the rows of metrics.csv go, and what the user sees."""
        progress = Progress(self.step, self.last_step, self.config.batch_size)
        begun = self.step if self.resumed else None
        rows = metrics.Metrics(self.out, self.columns, begun, self.trackers, self.config.flat())
        with closing(rows), progress:
            yield rows, progress

    def setup(self) -> pipeline.Setup:
        """What the processes that train the blocks are told."""
        at = (self.step, self.last_step, self.sum.tolist(), self.resumed, len(self.images))
        return pipeline.Setup.of(self.config, self.fabric.device.type, self.divided, *at)

    def train(self, stopped: Callable[[], bool], shown: tuple[metrics.Metrics, Progress] | None) -> None:
        """Step by step to the end, or to the checkpoint that a signal asked for."""
        self.saved_at = time.monotonic()
        if self.count and self.row_due():  # a black box failed while this row was measured
            self.measured(shown)
            self.save()
        while self.step < self.last_step:
            epoch, position = divmod(self.step, self.steps_per_epoch)
            batches = [(whole, self.own(whole)) for whole in self.order(epoch)[position:]]
            spare = devices.spare(self.fabric.device, self.fabric.world_size)
            with closing(self.images.ahead([index for _, index in batches], spare)) as pixels:
                if not self.train_on(batches, pixels, stopped, shown):
                    return

    def train_on(
        self,
        batches: Sequence[tuple[Tensor, Tensor]],
        pixels: Iterator[Tensor],
        stopped: Callable[[], bool],
        shown: tuple[metrics.Metrics, Progress] | None,
    ) -> bool:
        """The rest of an epoch, batches and this process's part of them; returns whether it came to its end."""
        for whole, index in batches:
            began = time.monotonic()
            with self.may_fail(f"in step {self.step + 1}", "as it was before"):
                self.train_step(index, next(pixels), whole)
            self.seconds += time.monotonic() - began
            if shown is not None:
                shown[1].advance(self.step)
            epoch_end = self.step % self.steps_per_epoch == 0
            row = self.row_due()
            if row:
                self.measured(shown)
            due = time.monotonic() - self.saved_at > self.checkpoint_seconds
            due = due and (row or self.config.staleness == 0)  # when what waits is learnt is no matter of the clock
            stop, due = stopped(), due and self.speaks  # one clock for all of them
            if self.processes is not None:
                stop, due = self.processes.any_of(stop, due)
            if stop or due or (epoch_end and self.small) or self.step == self.last_step:
                self.save()
                self.saved_at = time.monotonic()
            if stop:
                return False
        return True

    def row_due(self) -> bool:
        """Whether metrics.csv has a row after this step."""
        return self.step == 1 or self.step % self.steps_per_epoch == 0 or self.step % self.log_every == 0

    def measured(self, shown: tuple[metrics.Metrics, Progress] | None) -> None:
        """The row of this step; where a black box fails in it, the run that goes on begins with it."""
        with self.may_fail(f"in the measurements after step {self.step}", "as it is"):
            self.log(shown)

    @contextmanager
    def may_fail(self, where: str, kept: str) -> Generator[None]:
        """Where a black box may give no answer: then the run is saved, ``kept`` says in which state.

        By the process that writes: where another's box fails, that one is in the middle of the step.

        Raises:
            RunError: it gave none.
        """
        before = checkpoint.rng_state() if self.boxes else {}
        try:
            yield
        except BlackBoxError as error:
            checkpoint.set_rng_state(before)
            self.save()
            saved = f"the run is saved {kept}" if self.speaks else "the last checkpoint is untouched"
            raise RunError(f"{error} {where}; {saved}: mend that, then go on with: {self.resume_command}") from error

    def order(self, epoch: int) -> list[Tensor]:
        """The batches of an epoch."""
        return order.batches(self.config.seed, epoch, len(self.images), self.config.batch_size)

    def own(self, index: Tensor) -> Tensor:
        """This process's part of a batch."""
        return index if self.processes is None else self.processes.own(index, views=1)

    def labels(self, index: Tensor) -> Tensor | None:
        """The images' labels, on the device; None where they have none."""
        found = self.images.labels
        return None if found is None else found[index].to(self.fabric.device)

    def train_step(self, index: Tensor, pixels: Tensor | None = None, whole: Tensor | None = None) -> None:
        """One update, or none, where it comes to no finite numbers and may be left out.

        Args:
            index: this process's part of a batch.
            pixels: its images, where they were read already.
            whole: the batch of all processes, where there are several.
        """
        self.watch.remember()
        images = (self.images.batch(index) if pixels is None else pixels).to(self.fabric.device)
        labels = self.labels(index)
        view_a, view_b = sharing.seen(self.views, images, self.processes)
        with sharing.drawing(self.processes, self.across, self.config.seed, self.step):
            if self.first is None:
                self.learn(view_a, view_b, labels)
            else:
                with self.fabric.autocast():
                    x = self.learner.step(view_a, view_b, labels=labels).x
                self.first.feed(x)
        if self.watch.bad:
            with self.aside():
                x = self.learner.enter(view_a, view_b, labels=labels)
                self.watch.deal(self.step + 1, index if whole is None else whole, x, self.state)
        self.step += 1
        self.count += 0 if self.watch.bad else 1

    def learn(self, view_a: Tensor, view_b: Tensor, labels: Tensor | None) -> None:
        """All of it here and now."""
        self.prepared.set_rate(self.step, self.last_step)
        first: Tensor | None = None
        apart = None if self.across is not None else self.processes
        factored = self.prepared.factored and apart is None  # a mean is taken of gradients, not of factors
        updates = self.learner.updates(view_a, view_b, None, labels, factored, self.across)
        with self.fabric.autocast():
            for losses in updates:
                first = losses if first is None else first
                if not self.watch.at_the_end and not self.apply(first):
                    return
            if self.watch.at_the_end and not self.apply(first):
                return
        self.sum += 0 if first is None else first

    def apply(self, losses: Tensor | None) -> bool:
        """One step of the optimiser; whether it could be."""
        if self.processes is not None and self.across is None:
            self.processes.average(self.learner.parameters())
        return self.watch.apply(losses)

    def settle(self, row: bool = False, weights: bool = False, states: bool = False) -> None:
        """Where blocks learn apart: wait until all batches are learnt, and gather what is asked for."""
        if self.first is None:
            return
        began = time.monotonic()
        report = self.first.settle(row, weights and self.speaks, states and self.speaks)
        self.sum, self.bad = report.sums, report.bad
        self.seconds += time.monotonic() - began

    def guard(self) -> None:
        """Refuse to go on, and above all to write a checkpoint, once a loss or a weight is not finite."""
        bad = monitors.not_finite(dict(zip(self.loss_names, self.sum, strict=True)))
        bad = bad or monitors.not_finite(dict(self.learner.named_parameters())) or self.bad
        if bad:
            raise RunError(
                f"{', '.join(bad)} became NaN or infinite by step {self.step}",
                "the last checkpoint is from before: start anew with a lower --lr and another --out",
            )

    def log(self, shown: tuple[metrics.Metrics, Progress] | None) -> None:
        """A row of metrics.csv, with what was to be measured; only the process that speaks writes and measures."""
        epoch, rest = divmod(self.step, self.steps_per_epoch)
        due = (self.config.probe_every, self.config.align_every)
        observes, aligns = (bool(every) and not rest and epoch % every == 0 for every in due)
        measures = observes or aligns
        self.settle(row=not measures, weights=measures)
        if self.processes is not None and self.across is None:
            self.sum = self.processes.sum(self.sum) / self.processes.size
        self.guard()
        sharing.guard(self.processes, self.fabric.device, self.step)
        if shown is not None:
            self.row(shown, observes, aligns)
        elif self.together:
            if observes:
                self.observe()
            if aligns:
                self.align()
        if measures:  # now that none of them has failed
            self.settle(row=True)
        self.sum.zero_()
        self.count = 0

    def row(self, shown: tuple[metrics.Metrics, Progress], observes: bool, aligns: bool) -> None:
        """Write one, with the measurements that are due."""
        rows, progress = shown
        mean = (self.sum / max(1, self.count)).tolist()
        n = self.config.batch_size
        row = {
            "step": self.step,
            "epoch": round(self.step / self.steps_per_epoch, 4),
            "seconds": round(self.seconds, 3),
            "images_per_second": round(progress.rate() or n * self.step / max(self.seconds, 1e-9), 1),
            "lr": rate(self.config, self.step, self.last_step),
        }
        if self.count:  # or every batch since the last row was left out
            row |= {"loss": sum(mean), **dict(zip(self.loss_names, mean, strict=True))}
        if observes:
            row |= (values := self.observe())
            for place, warning in monitors.collapse(values).items():
                if place not in self.warned:
                    self.report(f"warning: {warning}")
                self.warned.add(place)
        if aligns:
            row.update(self.align())
        if self.config.bits:
            numbers = [m for m in self.learner.parts[engine.KEY] if isinstance(m, engine.Numbers)]
            row.update({f"saturated_{block}": m.share() for block, m in enumerate(numbers, start=1)})
        rows.log(row)
        words = [f"loss {' '.join(f'{value:.3g}' for value in mean)}"]
        progress.line([*words, f"kNN {row['knn']:.1f} %"] if "knn" in row else words)

    @contextmanager
    def aside(self) -> Generator[None]:
        """Measurements: random numbers that are the same every time, the run's own left as they were."""
        with checkpoint.aside(self.config.seed), self.fabric.autocast():
            yield

    def align(self) -> dict[str, float]:
        """Cosine with backpropagation, block by block, on the same batches of training images every time."""
        step = max(1, len(self.images) // (ALIGN_BATCHES * self.config.batch_size))
        index = torch.arange(0, len(self.images), step)
        batches = [i for i in index.split(self.config.batch_size) if len(i) == self.config.batch_size][:ALIGN_BATCHES]
        with self.aside():
            pairs = [
                alignment.Pair(*self.views(self.images.batch(i).to(self.fabric.device)), labels=self.labels(i))
                for i in batches
            ]
            return monitors.align(self.learner, pairs)

    def observe(self) -> dict[str, float]:
        """The online monitors on a fixed sample; the run's own randomness is left as it was."""
        step = max(1, len(self.images) // monitors.SAMPLE)
        index = torch.arange(0, len(self.images), step)[: monitors.SAMPLE]
        images = self.images.batch(index).to(self.fabric.device)
        with self.aside():
            view_a, view_b = self.views(images[: monitors.PAIRS])
            sample = self.views.normalise(images)
            return monitors.observe(self.learner, view_a, view_b, sample, self.labels(index))

    def save(self) -> None:
        """Write a checkpoint and the encoder."""
        self.settle(states=True)
        self.guard()
        state = self.state()
        if not self.speaks:
            return
        checkpoint.save(self.out, state)
        if self.first is not None:
            self.first.forget()
        checkpoint.save_encoder(self.out, self.learner.encoder, self.config)

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "config": self.config.to_yaml(),
            **self.prepared.state(),
            "rng": checkpoint.rng_state(),
            "sum": self.sum.cpu(),
            "count": self.count,
        }


def _loss_names(learner: Learner) -> list[str]:
    n_blocks = len(learner.encoder.blocks)
    if not learner.rule.per_layer:
        return [f"loss_{n_blocks}"]
    return [f"loss_{block}" for block in range(1, n_blocks + 1)]
