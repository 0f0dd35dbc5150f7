"""The processes that share a run's batches: started by Lightning Fabric, or by torchrun or SLURM and joined by it."""

from __future__ import annotations

import atexit
import functools
import json
import logging
import multiprocessing
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy

from localssl.errors import RunError, UsageError
from localssl.parallel import Lost, Processes
from localssl.runs.config import TrainConfig
from localssl.system import devices, guard, interrupts

YEAR = 525_600  # minutes
START = "spawn"  # CUDA allows no other
KINDS = (Lost, RunError, UsageError, KeyboardInterrupt)  # what is no bug; the first that fits
logging.getLogger("lightning_fabric.utilities").setLevel(logging.WARNING)  # six lines about ranks
logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # whom it ends after another's end
Work = Callable[[Processes, int], None]


def started_by_others() -> bool:
    """Whether torchrun or SLURM has started this process as one of several."""
    return TorchElasticEnvironment.detect() or SLURMEnvironment.detect()


def check(config: TrainConfig) -> None:
    """Refuse processes that would wait for others which nobody starts, or train the same run twice.

    Raises:
        UsageError: no --patience; torchrun or SLURM started another number of processes, or torchrun restarts some that
            would hang; --nodes without what finds the others; a MASTER_PORT that is no port; more processes than GPUs.
    """
    count, environ = config.together * config.nodes, os.environ
    if not 0 < config.patience <= YEAR:
        raise UsageError(f"--patience {config.patience}: use a positive number of minutes, up to 525600, a year")
    if count > 1:
        _check_devices(config)
    by_torchrun = TorchElasticEnvironment.detect()
    if by_torchrun or (count > 1 and started_by_others()):  # a SLURM job may have more tasks than a run of one process
        name, started = ("torchrun", "WORLD_SIZE") if by_torchrun else ("SLURM", "SLURM_NTASKS")
        there = environ.get(started, "1")
        if there != str(count):
            times = "--devices times --nodes" + (" times --pipeline" if config.together > config.devices else "")
            raise UsageError(f"{name} started {there} processes, {times} is {count}; give as many")
        if count > 1 and by_torchrun:
            _check_restarts(environ)
        if not by_torchrun and "SLURM_NTASKS_PER_NODE" not in environ:  # Fabric insists
            raise UsageError(f"SLURM must know how many there are of each machine: --ntasks-per-node={config.together}")
        return
    if count > 1 and "MASTER_PORT" in environ:  # Fabric takes it with one machine, too
        _check_port(environ["MASTER_PORT"])
    if config.nodes == 1:
        return
    if missing := [name for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK") if not environ.get(name)]:
        raise UsageError(
            f"--nodes {config.nodes} needs {', '.join(missing)} in the environment: address and port of the first "
            f"machine, and this one's number; docs/many-machines.md shows how"
        )
    if environ["NODE_RANK"] not in map(str, range(config.nodes)):
        raise UsageError(f"NODE_RANK={environ['NODE_RANK']}: --nodes {config.nodes} are 0 to {config.nodes - 1}")


def _check_restarts(environ: Mapping[str, str]) -> None:
    """Processes that torchrun restarts may read from its store where those that ended were, and wait for them."""
    restarts, shared = environ.get("TORCHELASTIC_MAX_RESTARTS", "0"), "TORCHELASTIC_USE_AGENT_STORE"
    if restarts != "0" and environ.get(shared) == "True":  # github.com/pytorch/pytorch/issues/135712
        raise UsageError(
            f"torchrun --max-restarts {restarts}: restarted processes may look for those that ended, and hang; start "
            f"torchrun with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its environment"
        )


def _check_port(text: str) -> None:
    if not (text.isascii() and text.isdecimal() and len(text) < 6 and 1 <= int(text) <= 65535):
        raise UsageError(f"MASTER_PORT={text}: no port; give a whole number from 1 to 65535, free on the first machine")


def _check_devices(config: TrainConfig) -> None:
    kind = devices.choose(config.device).type
    there = {"cuda": torch.cuda.device_count(), "mps": 1}.get(kind, config.together)
    if config.together > there:
        times = f" times --pipeline {config.pipeline}" if config.together > config.devices else ""
        raise UsageError(
            f"--devices {config.devices}{times}: every process needs a GPU of its own, this machine has {there}; "
            f"use fewer, or --device cpu"
        )


def launch(config: TrainConfig, work: Work) -> None:
    """Call ``work`` (to be pickled) with the processes and this one's number on its machine, in every process.

    Returns when all are done; where torchrun or SLURM started this process, when this one is.

    Raises:
        UsageError, RunError, KeyboardInterrupt: as ``work`` raised in one of them; RunError: they did not find each
            other; Lost: one was ended from outside.
    """
    strategy = DDPStrategy(
        start_method="popen" if started_by_others() else START, timeout=timedelta(minutes=config.patience)
    )
    fabric = Fabric(accelerator=config.device, strategy=strategy, devices=config.together, num_nodes=config.nodes)
    if started_by_others():
        try:
            fabric.launch(functools.partial(_begin, work=work, folder=None))
        except RuntimeError as error:
            if dist.is_initialized():
                raise
            raise _unmet(str(error)) from error
        return
    with tempfile.TemporaryDirectory() as folder, _forwarded() as stopped, _own_environment():
        try:
            fabric.launch(functools.partial(_begin, work=work, folder=folder))
        except (mp.ProcessRaisedException, mp.ProcessExitedException) as error:  # pyright: ignore[reportPrivateImportUsage]
            ended, said = _ended(error), _said(Path(folder))
            if said is None or (isinstance(said, Lost) and _killed(error)):  # the others only know that one is gone
                said = ended
            if stopped.is_set() and isinstance(said, Lost):  # before there was anything to save
                raise KeyboardInterrupt from error
            raise said from error


@contextmanager
def _own_environment() -> Generator[None]:
    """Within, Fabric may name the port where the processes meet; the next run finds a free one of its own."""
    names = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _begin(fabric: Fabric, work: Work, folder: str | None) -> None:
    """One process's life. What is no bug is left in ``folder``, in one line, for the process that started this one."""
    if folder is None:
        atexit.register(_part)  # not at once: a program that others started may train again
        work(Processes(fabric.device), fabric.local_rank)
        return
    signal.set_wakeup_fd(-1)  # of a forked process it is the starting one's, which would hear this one's signals
    interrupts.follow(os.getppid())
    try:
        work(Processes(fabric.device), fabric.local_rank)
    except KINDS as error:
        number = next(i for i, kind in enumerate(KINDS) if isinstance(error, kind))
        text = json.dumps([number, str(error)])
        with interrupts.ignored():  # another one's end ends this one: not in the middle of a word
            (Path(folder) / str(fabric.global_rank)).write_text(text, encoding="utf-8")
        os._exit(1)  # without a word: the starting process says it
    _part()


def _part() -> None:
    """Leave the process group, which waits for its threads: one that frees a tensor while Python ends is aborted."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _said(folder: Path) -> BaseException | None:
    """What the processes left; another's end is the least that there is to say."""
    found: list[BaseException] = []
    for file in sorted(folder.iterdir(), key=lambda path: int(path.name)):
        number, text = json.loads(file.read_text(encoding="utf-8"))
        found.append(KINDS[number](text))
    found.sort(key=lambda error: isinstance(error, Lost))
    return found[0] if found else None


def _killed(error: Exception) -> bool:
    return isinstance(error, mp.ProcessExitedException) and error.signal_name is not None  # pyright: ignore[reportPrivateImportUsage]


def _ended(error: Exception) -> Exception:
    """A process that an exception ended is a bug, and says so; one that was killed is not."""
    if isinstance(error, mp.ProcessExitedException):  # pyright: ignore[reportPrivateImportUsage]
        memory = " (out of memory?)" if error.signal_name == "SIGKILL" else ""
        by = f" by {error.signal_name}{memory}" if error.signal_name else f" ({guard.hint('train so')})"
        return Lost(f"process {error.error_index}, counted from 0 on this machine, was ended{by}")
    return _unmet(str(error)) if "init_process_group" in str(error) else error


def _unmet(text: str) -> RunError:
    """The processes did not find each other; ``text``: a traceback, or its last line."""
    return RunError(
        f"the processes did not find each other: {text.strip().splitlines()[-1]}; check the address and port of the "
        f"first machine, and that no machine's own name leads to 127.0.0.1 (on CPUs GLOO_SOCKET_IFNAME=eth0 says which "
        f"network they share)"
    )


@contextmanager
def _forwarded() -> Generator[threading.Event]:
    """Ctrl-C goes to the started processes as SIGTERM, upon which they save and end; this one waits for them.

    They inherit that SIGINT is blocked, or a terminal would send it to each of them besides. Yields whether one came.
    """
    stopped, done = threading.Event(), threading.Event()
    if not hasattr(signal, "sigtimedwait"):
        yield stopped
        return

    def watch() -> None:
        while not done.is_set():
            waiting = signal.sigtimedwait({signal.SIGINT}, 0.1) is not None
            if waiting or woken():
                stopped.set()
                for process in multiprocessing.active_children():
                    process.terminate()

    with interrupts.blocked(), _wakened() as woken:
        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield stopped
        finally:
            done.set()
            watcher.join()


@contextmanager
def _wakened() -> Generator[Callable[[], bool]]:
    """Yields what says whether SIGINT has come to another thread, one of a library's that does not block it.

    Its handler would run in the main thread, which waits for the processes and runs nothing until they end.
    """
    if threading.current_thread() is not threading.main_thread():  # where Python allows no handlers
        yield lambda: False
        return
    here, there = socket.socketpair()

    def woken() -> bool:
        with suppress(BlockingIOError):
            return bool(here.recv(4096))
        return False

    with here, there:
        here.setblocking(False)
        there.setblocking(False)
        handler = signal.signal(signal.SIGINT, lambda number, frame: None)
        before = signal.set_wakeup_fd(there.fileno(), warn_on_full_buffer=False)
        try:
            yield woken
        finally:
            signal.set_wakeup_fd(before)
            signal.signal(signal.SIGINT, handler)


def speaks(nodes: int) -> bool:
    """Whether this process is the one that speaks for all of a run on so many machines."""
    ranks = ("RANK", "SLURM_PROCID") if started_by_others() else ("NODE_RANK",) * (nodes > 1)
    return int(next((os.environ[rank] for rank in ranks if rank in os.environ), "0")) == 0
