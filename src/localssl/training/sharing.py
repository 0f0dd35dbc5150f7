"""How the processes of a run share its batches: whose samples are compared, and where B and its changes are."""

from __future__ import annotations

from collections.abc import Callable

from localssl import traffic
from localssl.errors import UsageError
from localssl.learner import Learner
from localssl.parallel import Processes
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
