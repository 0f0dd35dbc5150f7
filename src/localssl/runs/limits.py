"""What values the flags of a run cannot have, alone or together."""

from __future__ import annotations

import math

from localssl import engine as engines
from localssl.errors import UsageError
from localssl.grids import Grid
from localssl.runs import trackers
from localssl.runs.config import TrainConfig
from localssl.runs.kinds import check_kinds


def check(config: TrainConfig) -> None:
    """Refuse values that no run can have.

    Raises:
        UsageError: names the flag and what it takes.
    """
    check_kinds(config)
    trackers.check(config.trackers)
    c, inf = config, math.inf
    for name, fine, advice in (
        ("batch_size", c.batch_size >= 2, "a batch of one image has no negatives; use at least 2"),
        ("epochs", c.epochs is None or c.epochs >= 0, "use 0 or more"),
        ("lr", c.lr is None or 0 < c.lr < inf, "use a positive number"),
        ("width", 0 < c.width <= 100, "use a positive number up to 100, for instance 0.25; 1 is the paper's"),
        ("weight_decay", c.weight_decay is None or 0 <= c.weight_decay < inf, "use 0 or a positive number"),
        ("seed", 0 <= c.seed < 2**32, "use a whole number from 0 to 4294967295"),
        ("image_size", c.image_size is None or c.image_size >= 1, "use a positive number of pixels"),
        ("limit_images", c.limit_images is None or c.limit_images >= 1, "use 1 or more"),
        ("memory", c.memory is None or 0 <= c.memory < inf, "use a number of GiB, 0 or more"),
        ("threads", c.threads is None or c.threads >= 1, "use 1 or more"),
        ("devices", c.devices >= 1, "use a number of processes, 1 or more"),
        ("nodes", c.nodes >= 1, "use a number of machines, 1 or more"),
        ("pipeline", c.pipeline is None or c.pipeline >= 1, "use a number of processes, 1 or more"),
        ("staleness", c.staleness >= 0, "use 0 or more"),
        ("probe_every", c.probe_every >= 0, "use 0 (never) or more"),
        ("align_every", c.align_every >= 0, "use 0 (never) or more"),
        ("checkpoint_every", c.checkpoint_every > 0, "use a positive number of minutes"),
    ):
        if not fine:
            raise UsageError(f"--{name.replace('_', '-')} {getattr(config, name)}: {advice}")
    several = c.devices * c.nodes > 1
    if c.across == "process" and not several:
        raise UsageError("--across process goes with --devices; give both, for instance --devices 2 --across process")
    for flag, given in (("shard-b", c.shard_b), (f"exchange {c.exchange}", c.exchange != "auto")):
        if given and (not several or c.across != "all"):
            raise UsageError(f"--{flag} goes with --devices and --across all, for instance --devices 2 --{flag}")
    if c.shard_b and ((c.pipeline or 1) > 1 or c.staleness):
        flag = "--staleness" if c.staleness else "--pipeline"
        raise UsageError(f"--shard-b and {flag} do not go together yet; leave one of them out")
    if c.on_nan != "stop" and ((c.pipeline or 1) > 1 or c.staleness):
        flag = "--staleness" if c.staleness else "--pipeline"
        raise UsageError(f"--on-nan {c.on_nan} and {flag} do not go together: blocks learn apart; use --on-nan stop")
    if c.batch_size % (c.devices * c.nodes) or c.batch_size < 2 * c.devices * c.nodes:
        raise UsageError(
            f"--batch-size {c.batch_size} is the whole batch: give a multiple of the {c.devices * c.nodes} processes, "
            f"2 images or more for each"
        )
    if c.config is not None and c.resume:
        raise UsageError("--config begins a run, --resume goes on with the settings in its folder: leave one out")
    if c.split is not None and (c.pipeline or 1) == 1:
        raise UsageError("--split goes with --pipeline; give both, for instance --pipeline 2 --split 2 4")
    if c.views is not None and c.view_strength is not None:
        raise UsageError("--view-strength goes with the data set's own views; leave it or --views out")
    if c.optimizer == "shift-sgd" and c.weight_decay:
        raise UsageError(f"--weight-decay {c.weight_decay}: shift-sgd has none; leave it out")
    _check_integers(c)


def _check_integers(c: TrainConfig) -> None:
    """Refuse what does not go with --bits, and what goes with nothing else."""
    device = engines.Device(c.weight_noise, c.dead, c.mismatch)
    if c.bits is None:
        if device != engines.PERFECT:
            raise UsageError("--weight-noise, --dead and --mismatch go with --bits; give --bits, too")
        return
    Grid(c.bits)
    for name, fine, why in (
        ("engine", c.engine == "auto", "integers have an engine of their own"),
        ("precision", c.precision == "32-true", "sums of integers are exact"),
        ("optimizer", c.optimizer in (None, "plain-sgd", "shift-sgd"), "integers have no moments"),
        ("schedule", c.schedule == "constant", "the rate is a power of two"),
        ("weight_decay", not c.weight_decay, "shift-sgd has none"),
        ("pipeline", c.pipeline in (None, 1), "integers learn in one process"),
        ("staleness", c.staleness == 0, "integers learn in one process"),
        ("devices", c.devices == 1, "integers learn in one process"),
        ("nodes", c.nodes == 1, "integers learn in one process"),
    ):
        if not fine:
            raise UsageError(f"--bits does not go with --{name.replace('_', '-')} {getattr(c, name)}: {why}")
    if c.batch_size & (c.batch_size - 1):
        raise UsageError(f"--batch-size {c.batch_size}: with --bits a mean is a shift; use a power of two")
