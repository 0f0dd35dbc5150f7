"""Callbacks for a training loop of your own: what ``localssl train`` measures on the way, every so many steps.

    align = callbacks.Align(learner, batches)
    alive = callbacks.Observe(learner, view_a, view_b, images)
    with callbacks.Curves("runs/own", align, alive, every=100) as curves:
        for step, (a, b) in enumerate(pairs, start=1):
            losses = learner.accumulate_grads(a, b)
            optimiser.step()
            optimiser.zero_grad()
            curves(step, losses)

A measurement is any function without arguments that returns numbers by name: ``Align``, ``Observe``, or yours. It
leaves weights, training mode and random numbers as they are: a loop with callbacks comes to the same weights as one
without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from localssl.errors import RunError, UsageError
from localssl.learner import Learner
from localssl.runs import checkpoint
from localssl.runs.metrics import Metrics
from localssl.system.files import make_folder
from localssl.training import monitors

Measurement = Callable[[], Mapping[str, float]]


class Align:
    """Cosine of the learner's updates with backpropagation's, block by block, always on the same batches.

    Args:
        learner: as it trains.
        batches: (view_a, view_b[, negatives[, labels]]), where the learner is; see ``alignment.measure``.
        reference: as of ``alignment.measure``, where nothing has to be fitted.
    """

    def __init__(self, learner: Learner, batches: Iterable[Sequence[Tensor | None]], reference: str | Learner = "own"):
        self.learner, self.batches, self.reference = learner, list(batches), reference

    def __call__(self) -> dict[str, float]:
        """``align_1`` to ``align_L``, in evaluation mode; a block whose gradient is zero everywhere is left out.

        Raises:
            UsageError: as ``alignment.measure``.
        """
        return monitors.align(self.learner, self.batches, self.reference)


class Observe:
    """Whether the representation is alive: effective rank, silent channels, active hinges, nearest neighbours.

    Args:
        learner: as it trains.
        view_a: one view of some images (n, C, H, W), where the learner is.
        view_b: another view of them.
        images: normalised but not augmented (N, C, H, W); some hundreds will do.
        labels: (N,), for the nearest neighbours alone.
    """

    def __init__(self, learner: Learner, view_a: Tensor, view_b: Tensor, images: Tensor, labels: Tensor | None = None):
        self.learner, self.sample = learner, (view_a, view_b, images, labels)

    def __call__(self) -> dict[str, float]:
        """``rank_l``, ``dead_l``, ``active_l`` by block, ``knn`` (%) with labels: see ``monitors.observe``."""
        return monitors.observe(self.learner, *self.sample)


class Curves:
    """Losses and measurements as rows of ``metrics.csv`` and curves of trackers, in a folder of their own.

    Args:
        out: the folder.
        measurements: functions without arguments that return numbers by name, the same names every time.
        every: steps from row to row; the first step has one, too.
        trackers: of "tensorboard", "wandb" and "mlflow"; nothing is sent.

    Raises:
        UsageError: the folder holds curves already, ``every`` is below 1, a tracker's package is missing.
    """

    def __init__(
        self,
        out: str | Path,
        *measurements: Measurement,
        every: int = 100,
        trackers: Sequence[str] = ("tensorboard",),
    ):
        self.out, self.measurements, self.every, self.trackers = Path(out), measurements, every, tuple(trackers)
        if every < 1:
            raise UsageError(f"every must be 1 or more, got {every}")
        if (self.out / "metrics.csv").exists():
            raise UsageError(f"{self.out} holds metrics.csv already; choose another folder")
        self.rows: Metrics | None = None
        self.sum: Tensor | None = None
        self.count = 0

    def __enter__(self) -> Curves:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __call__(self, step: int, losses: Tensor) -> dict[str, float] | None:
        """To be called after every step.

        Args:
            step: counted from 1.
            losses: (layers,) or (), as ``Learner.accumulate_grads`` returns them.

        Returns:
            The row, where one was due: ``step``, ``loss`` and ``loss_l``, means over the steps since the last row, and
            what was measured.

        Raises:
            RunError: a loss became NaN or infinite; no row is written.
            UsageError: a measurement gives a name that it did not give before.
        """
        losses = losses.detach().reshape(-1)
        self.sum = losses.clone() if self.sum is None else self.sum + losses
        self.count += 1
        if step != 1 and step % self.every:
            return None
        mean = (self.sum / self.count).tolist()
        named = {f"loss_{block}": value for block, value in enumerate(mean, start=1)}
        if bad := monitors.not_finite({name: torch.tensor(value) for name, value in named.items()}):
            raise RunError(f"{', '.join(bad)} became NaN or infinite by step {step}; try a lower learning rate")
        row = {"step": step, "loss": sum(mean), **named}
        with checkpoint.aside(0):
            for measure in self.measurements:
                row |= measure()
        if self.rows is None:
            make_folder(self.out)
            self.rows = Metrics(self.out, list(row), None, self.trackers)
        if new := [name for name in row if name not in self.rows.columns]:
            raise UsageError(
                f"{', '.join(new)}: not measured at the first row; a measurement names the same every time"
            )
        self.rows.log(row)
        self.sum, self.count = None, 0
        return row

    def close(self) -> None:
        """Finish the trackers' files."""
        if self.rows is not None:
            self.rows.close()
