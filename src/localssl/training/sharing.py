"""How the processes of a run share its batches: whose samples are compared, which views they see, where B is."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from localssl import traffic
from localssl.data.part import Part
from localssl.data.views import Views
from localssl.errors import RunError, UsageError
from localssl.learner import Learner
from localssl.parallel import Processes
from localssl.runs import checkpoint
from localssl.runs.config import RunConfig
from localssl.training import sharding


def across(
    processes: Processes | None, learner: Learner, config: RunConfig, exchange: str, report: Callable[[str], None]
) -> Processes | None:
    """The processes, where samples of one are compared with those of others; None where each has its own batch.

    Args:
        processes: of the run, or None.
        learner, config: what trains.
        exchange: how changes of B come about, as ``--exchange`` has it.
        report: receives a line on each of these.

    Raises:
        UsageError: they cannot come about so.
    """
    if processes is None:
        return None
    why = learner.not_spread() if config.across == "all" else "--across process"
    if why and exchange != "auto":
        raise UsageError(f"--exchange {exchange}: every process compares its own samples only ({why}); leave it out")
    if why:
        if config.across == "all":
            report(f"every process compares its own samples only ({why})")
        return None
    processes.exchange = exchange
    if sharding.shards(learner):
        report(sharding.described(learner))
    images = config.batch_size // processes.size
    matrices, sizes = learner.matrices(processes, images), learner.sizes(processes, images)
    if not isinstance(sizes, str):
        report(traffic.described(sizes, matrices, next(learner.parameters()).element_size()))
    return processes


def seen(views: Views, images: Tensor, processes: Processes | None) -> tuple[Tensor, Tensor]:
    """Two views of this process's images (n, …), those of a process alone whose generator is in this state.

    All processes draw from generators in the same state, so that negatives are drawn alike, too. A view of the user's
    own draws what it likes, aside, in every process from another seed.
    """
    if processes is None:
        return views(images)
    if views.own:
        with checkpoint.aside(int(torch.randint(2**31, ())) + processes.rank):
            return views(images)
    n = len(images)
    return views(images, Part(processes.rank * n, n, processes.size * n))


@contextmanager
def drawing(processes: Processes | None, across: Processes | None, seed: int, step: int) -> Generator[None]:
    """Where every process compares its own samples, what it draws for them (negatives, noise) is its own, too."""
    if processes is None or across is not None:
        yield
        return
    own = np.random.SeedSequence([seed, step, processes.rank]).generate_state(1)[0]
    with checkpoint.aside(int(own)):
        yield


def guard(processes: Processes | None, device: torch.device, step: int) -> None:
    """Refuse to go on once the processes' generators differ: they would not mean the same negatives.

    Raises:
        RunError: they differ.
    """
    if processes is not None and not processes.agree(checkpoint.drawn(device)):
        raise RunError(
            f"by step {step} the processes no longer draw the same random numbers: something of your own drew more of "
            f"them in one process than in another",
            "the last checkpoint is from before: draw from a torch.Generator of its own there",
        )
