"""The processes of a layer-parallel run: started by torch.multiprocessing, joined over torch.distributed."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from localssl.errors import RunError, UsageError, one_line
from localssl.parallel import PATIENCE, Lost
from localssl.system import guard, interrupts
from localssl.training.pipeline.place import Place

START = "spawn"  # CUDA allows no other
READY = b"ready"
GRACE = 5.0  # seconds in which the others notice that one is gone


class Workers:
    """The other processes of a run, as the first one sees them."""

    def __init__(self, processes: Sequence[BaseProcess], pipes: Sequence[Connection], blocks: Sequence[str]):
        self.processes, self.pipes, self.blocks = processes, pipes, blocks
        self.hint = f" before it began ({guard.hint('train so')})"
        self.said = ["" for _ in pipes]  # why they failed, in their own words

    def hear(self, number: int) -> bool:
        """Whether a process says that it is ready; what else it says is kept, as its end is near."""
        try:
            said = self.pipes[number].recv_bytes()
        except (EOFError, OSError):
            return False
        self.said[number] = "" if said == READY else said.decode()
        return said == READY

    def wait_until_ready(self) -> None:
        """Until all have imported what they need.

        Raises:
            Lost: one ended before that.
        """
        waiting = dict(enumerate(self.pipes))
        while waiting:
            happened = wait([*waiting.values(), *(self.processes[i].sentinel for i in waiting)])
            for number in [i for i, pipe in waiting.items() if pipe in happened]:
                if self.hear(number):
                    del waiting[number]
            if any(self.processes[i].sentinel in happened for i in waiting):
                raise Lost("a process ended before the run began")
        self.hint = ""

    def reason(self, lost: Lost) -> Lost:
        """What became of the process that is gone, in one line."""
        until = time.monotonic() + GRACE
        for process in self.processes:
            process.join(max(0.0, until - time.monotonic()))
        said: list[tuple[int, str]] = []  # the lowest first: who ended because another did has little to say
        for number, (process, blocks) in enumerate(zip(self.processes, self.blocks, strict=True)):
            if self.pipes[number].poll():
                self.hear(number)
            text, code = self.said[number], process.exitcode
            if text:
                said.append((0, f"the process of {blocks}: {text}"))
            elif code is not None and code < 0:
                said.append((1, f"the process of {blocks} was ended by signal {-code} (out of memory?)"))
            elif code:
                said.append((2, f"the process of {blocks} ended with status {code}{self.hint}"))
        return Lost(min(said)[1] if said else str(lost))

    def end(self, kill: bool) -> None:
        """Wait for their end, or bring it about."""
        for process in self.processes:
            if kill:
                process.kill()
            process.join()
        for pipe in self.pipes:
            pipe.close()


@contextmanager
def started(blocks: Sequence[str]) -> Generator[Workers]:
    """Start a process for every stage but the first and join them in a process group, of which this is rank 0.

    Args:
        blocks: what each trains, in words.

    Raises:
        UsageError: this program uses torch.distributed already.
        Lost: one of them could not be started, or ended before its time.
    """
    if dist.is_initialized():
        raise UsageError("--pipeline starts processes of its own: this program has begun a torch.distributed group")
    size = len(blocks) + 1
    folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    meeting = (Path(folder.name) / "meeting").as_uri()
    context = mp.get_context(START)
    pairs = [context.Pipe(duplex=False) for _ in blocks]
    threads = torch.get_num_threads()
    processes = [
        context.Process(target=_work, args=(rank, size, meeting, threads, end, os.getpid()), daemon=True)
        for rank, (_, end) in enumerate(pairs, start=1)
    ]
    with interrupts.blocked():  # inherited: Ctrl-C is this process's business, which ends the others when it is done
        for process in processes:
            process.start()
    for _, end in pairs:
        end.close()  # the worker's copy alone stays, so that its end is seen
    workers = Workers(processes, [pipe for pipe, _ in pairs], blocks)
    done = False
    try:
        workers.wait_until_ready()
        _join(meeting, 0, size)
        yield workers
        done = True
    except Lost as lost:
        raise workers.reason(lost) from lost
    finally:
        if dist.is_initialized() and done:
            dist.destroy_process_group()
        workers.end(kill=not done)
        if dist.is_initialized():
            dist.destroy_process_group()
        folder.cleanup()


def _join(meeting: str, rank: int, size: int) -> None:
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size, timeout=PATIENCE)


def _work(rank: int, size: int, meeting: str, threads: int, pipe: Connection, parent: int) -> None:
    """A worker's life: says that it is ready, then why it failed, if it did."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the first process saves, and ends this one
    interrupts.follow(parent)  # or if it cannot
    torch.set_num_threads(threads)
    try:
        from localssl.training.pipeline.worker import work  # takes seconds, and may fail

        pipe.send_bytes(READY)
        _join(meeting, rank, size)
        work(Place(rank, size), rank)
    except Lost:
        os._exit(3)  # the one that was lost has a reason to say
    except (RunError, UsageError) as error:
        _fail(pipe, str(error))
    except Exception as error:
        text = one_line(error)
        _fail(pipe, f"{type(error).__name__}{': ' if text else ''}{text}")
    dist.destroy_process_group()


def _fail(pipe: Connection, text: str) -> None:
    pipe.send_bytes(text.encode())
    os._exit(1)
