"""A batch that comes to no finite update: found before it is applied, named, and written down."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from localssl.engine.three_factor import above
from localssl.errors import RunError
from localssl.learner import Learner
from localssl.optimizer import factors_of
from localssl.parallel import Processes
from localssl.rules.base import ScoreRule
from localssl.runs import checkpoint
from localssl.system.files import make_folder, write_text
from localssl.training.prepared import Prepared

FOLDER = "nan"  # of the run: what was found, and the state before it
MOST = 10  # batches in a row that may be left out
RETURNS = 3  # times that a run goes back to one checkpoint
SHOWN, NAMED = 8, 3  # numbers of images, and things that are not finite, in a line
Named = Sequence[tuple[str, nn.Parameter]]


@dataclass(frozen=True)
class Finding:
    """A step that failed.

    Args:
        step: counted from 1.
        block: from 1; None where it is the images themselves, or cannot be said.
        what: numbers that are not finite, in words: "its activity", "loss_3", "gradient of encoder.blocks.2.0.weight".
        images: of the batch, as numbers of the training images from 0, in the batch's order.
        done: what became of it: "stop", "skip" or "rollback".
    """

    step: int
    block: int | None
    what: Sequence[str]
    images: Sequence[int]
    done: str

    def __str__(self) -> str:
        where = "" if self.block is None else f", block {self.block}"
        shown = ", ".join(map(str, self.images[:SHOWN])) + (", …" if len(self.images) > SHOWN else "")
        batch = f" (batch of training images {shown})" if shown else ""
        more = f" and {len(self.what) - NAMED} more" if len(self.what) > NAMED else ""
        return f"step {self.step}{where}: {', '.join(self.what[:NAMED])}{more} became NaN or infinite{batch}"


@torch.no_grad()
def not_finite(named: Named, losses: Tensor | None = None, loss_names: Iterable[str] = ()) -> list[str]:
    """Losses and gradients, also those left as factors, that hold a NaN, an infinity, or what overflows when squared.

    One number is read back from the device where all is well.
    """
    found: list[tuple[str, Tensor]] = []
    for name, p in named:
        parts = [p.grad, *(factors_of(p) or ())]
        found += [(f"gradient of {name}", part) for part in parts if part is not None]
    norms = [norm.double() for norm in torch._foreach_norm([part for _, part in found])] if found else []  # pyright: ignore[reportPrivateImportUsage]
    if losses is not None:
        found = [*zip(loss_names, losses, strict=False), *found]
        norms = [*losses.detach().double(), *norms]
    if not norms or bool(torch.stack(norms).isfinite().all()):
        return []
    return list(dict.fromkeys(name for (name, _), norm in zip(found, norms, strict=True) if not bool(norm.isfinite())))


def _runs_first(learner: Learner) -> bool:
    """Whether all blocks run, and what they need to learn is kept, before the first one learns."""
    rule = learner.rule
    return learner.engine == "hebbian" and isinstance(rule, ScoreRule) and bool(above(rule, len(learner.patches)))


def host_waits(learner: Learner) -> bool:
    """Whether reading a number makes the host wait for a device: everywhere but on the CPU."""
    return any(p.device.type != "cpu" for p in learner.parameters())


@torch.no_grad()
def blame(learner: Learner, x: Tensor, bad: Sequence[str]) -> tuple[int | None, list[str]]:
    """Which block fails on what enters the first one, x (N, ...), and how; its weights are as they were in the step."""
    if not bool(x.isfinite().all()):
        return None, ["the views", *bad]
    for number, (block, z) in enumerate(zip(learner.encoder.blocks, learner.encoder(x), strict=True), start=1):
        if not all(bool(p.isfinite().all()) for p in block.parameters()):
            return number, ["its weights", *bad]
        if not bool(z.isfinite().all()):
            return number, ["its activity", *bad]
    return (block_of(bad[0]) if bad else None), list(bad)


def block_of(name: str) -> int | None:
    """The block, from 1, of "loss_3" or of "gradient of encoder.blocks.2.0.weight"; None where it names none."""
    if name.startswith("loss_"):
        return int(name.removeprefix("loss_"))
    numbers = [part for part in name.split(".") if part.isdigit()]
    return int(numbers[0]) + 1 if numbers else None


def write(run: Path, finding: Finding) -> None:
    """Add a finding to ``nan/found.json``; one of the same step, from before a resume, is replaced."""
    make_folder(run / FOLDER)
    others = [entry for entry in found(run) if entry.get("step") != finding.step]
    write_text(run / FOLDER / "found.json", json.dumps([*others, asdict(finding)], indent=1) + "\n")


def found(run: Path) -> list[dict[str, object]]:
    """What ``nan/found.json`` holds; nothing where it cannot be read."""
    try:
        entries = json.loads((run / FOLDER / "found.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


class Watch:
    """Looks at every update before it is applied, and does what ``--on-nan`` asks for where it is not finite.

    Args:
        prepared: what trains.
        run: its folder.
        on_nan: "stop", "skip" or "rollback".
        loss_names: of the losses, in their order.
        processes: those that share the batch; all of them leave it out, or none.
        report: receives a line for every batch that is left out.
        advice: the command that goes on with the run, without --on-nan.
    """

    def __init__(
        self,
        prepared: Prepared,
        run: Path,
        on_nan: str,
        loss_names: Sequence[str],
        processes: Processes | None,
        report: Callable[[str], None],
        advice: str,
    ):
        self.prepared, self.run, self.on_nan, self.loss_names = prepared, run, on_nan, loss_names
        self.processes, self.report, self.advice = processes, report, advice
        self.speaks = processes is None or processes.rank == 0
        learner = self.learner = prepared.learner
        self.named = list(learner.named_parameters())
        # All or nothing, where the run may go on: then the engine's parts of an update wait for the last one, and all
        # are held at once. "stop" applies each part when it is there: that is what keeps memory flat in depth.
        # Where all blocks have run before the first one learns it is not flat, and parts that are small wait, too, if
        # a look makes the host wait for a device: once then and not once a block.
        small = prepared.factored and processes is None  # no dense change of B, no mean or sum of such
        waits = small and _runs_first(learner) and host_waits(learner)
        self.at_the_end = learner.engine != "autograd" and (on_nan != "stop" or waits)
        self.bad: list[str] = []  # of the batch that is being learnt
        self.applied = 0  # parts of its update
        self.before: dict[str, Any] = {}
        self.failed: list[int] = []  # steps in a row, this one last
        self.returns: dict[int, int] = {}  # how often the run went back, by the checkpoint's step

    def remember(self) -> None:
        """Keep what a batch changes besides the weights: random numbers, running averages.

        Of credit that steps its weights within a batch everything.
        """
        self.bad, self.applied = [], 0
        self.before = {"rng": checkpoint.rng_state(), "buffers": [b.clone() for b in self.learner.buffers()]}
        if self.learner.credit.repeated:
            learner, optimizer = self.learner.state_dict(), self.prepared.optimizer.state_dict()
            self.before |= {"learner": copy.deepcopy(learner), "optimizer": copy.deepcopy(optimizer)}

    def apply(self, losses: Tensor | None) -> bool:
        """Let the optimiser step where all is finite; whether it did. Gradients are forgotten in any case."""
        self.bad = not_finite(self.named, losses, self.loss_names)
        if self.processes is not None and self.processes.any(bool(self.bad)) and not self.bad:
            self.bad = ["numbers of another process"]
        if not self.bad:
            self.prepared.optimizer.step()
            self.applied += 1
        self.prepared.optimizer.zero_grad()
        return not self.bad

    def deal(self, step: int, images: Tensor, x: Tensor, state: Callable[[], dict[str, Any]]) -> None:
        """Do what was asked for about a batch whose update was not applied.

        Args:
            step: of the batch, counted from 1.
            images: numbers of its images, of all processes.
            x: what entered the first block.
            state: makes a checkpoint of the run as it is.

        Raises:
            RunError: the run ends here; the state before the step is kept in the folder ``nan``, unless lower blocks
                have learnt from the batch already.
        """
        block, what = blame(self.learner, x, self.bad)
        self._undo()
        finding = Finding(step, block, what, images.tolist(), self.on_nan)
        self.failed = [*self.failed, step] if self.failed[-1:] == [step - 1] else [step]
        if self.on_nan == "stop":
            self._end(finding, state, f"{self.advice} --on-nan skip leaves the batch out")
        if len(self.failed) > MOST:
            self._end(finding, state, f"so did the {MOST} batches before it, which were left out")
        if self.on_nan == "skip" and "its weights" in what:
            self._end(finding, state, "to leave the batch out is no help: use --on-nan rollback")
        done = "left out" if self.on_nan == "skip" else f"left out, weights as of step {self._go_back(finding, state)}"
        if self.speaks:
            write(self.run, finding)
            self.report(f"{finding}; {done}")

    def _undo(self) -> None:
        """All but the random numbers, which go on, as it was before the batch."""
        for b, old in zip(self.learner.buffers(), self.before["buffers"], strict=True):
            b.copy_(old)
        if "learner" in self.before:
            self.learner.load_state_dict(self.before["learner"])
            self.prepared.optimizer.load_state_dict(self.before["optimizer"])

    def _go_back(self, finding: Finding, state: Callable[[], dict[str, Any]]) -> int:
        """Take over weights and optimiser's state of the last checkpoint; its step."""
        last, _ = checkpoint.read_last(self.run)
        if last is None:
            self._end(finding, state, "there is no checkpoint yet to go back to")
        self.returns[last["step"]] = self.returns.get(last["step"], 0) + 1
        if self.returns[last["step"]] > RETURNS:
            self._end(finding, state, f"the run went back to step {last['step']} {RETURNS} times already")
        self.prepared.load(last, f"the last checkpoint in {self.run}")
        return last["step"]

    def _end(self, finding: Finding, state: Callable[[], dict[str, Any]], advice: str) -> NoReturn:
        file = self.run / FOLDER / f"step-{finding.step - 1:09d}.pt"
        kept = f"the state before it is in {file}, the last checkpoint is untouched"
        whole = self.applied == 0 or "learner" in self.before
        if not whole:
            kept = "blocks below had learnt from it, the last checkpoint is from before"
        if whole:
            checkpoint.set_rng_state(self.before["rng"])
        before = state() if whole else {}  # of all processes, where B is sharded
        if self.speaks:
            try:
                write(self.run, finding)
                if whole:
                    checkpoint.write(file, before)
            except OSError as error:
                kept = f"the state before it is not kept ({error.strerror}), the last checkpoint is untouched"
        if self.processes is not None:
            self.processes.any(False)  # nobody ends before it is written
        raise RunError(str(finding), f"{kept}: start anew with a lower --lr and another --out ({advice})")
