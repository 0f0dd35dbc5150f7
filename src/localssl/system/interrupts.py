"""Ctrl-C: as a flag while a run could be lost; before, the process ends without a word.

As an exception it would be a traceback from inside a library, or be swallowed by one that is being imported.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from types import FrameType
from typing import Any, TypeAlias

Handler: TypeAlias = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None


def leave() -> None:
    """From here on Ctrl-C ends the process with status 130."""
    _replace(signal.default_int_handler, _leave)


def interrupt() -> None:
    """From here on Ctrl-C is a KeyboardInterrupt again."""
    _replace(_leave, signal.default_int_handler)


def follow(parent: int) -> None:
    """In a worker: ``leave``, and stop when the process that started it is gone, however that ended.

    As SIGTERM would: a training run in it saves first; it has a minute for that.
    """
    leave()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
        os._exit(143)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def leaving() -> Generator[None]:
    """``leave`` for a while."""
    leave()
    try:
        yield
    finally:
        interrupt()


@contextmanager
def ignored() -> Generator[None]:
    """Ctrl-C and SIGTERM are another process's business, which ends this one when it has saved."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    try:
        previous = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    except ValueError:  # not the main thread: signals are the caller's business
        previous = {}
    try:
        yield
    finally:
        _restore(previous)


@contextmanager
def blocked() -> Generator[None]:
    """No Ctrl-C for a while, and never for the processes that are started meanwhile."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # here, since it unblocks SIGINT when it has been started
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def stop_signals() -> Generator[Callable[[], bool]]:
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
        _restore(previous)


def _restore(handlers: Mapping[signal.Signals, Handler]) -> None:
    for number, old in handlers.items():
        if old is not None:  # None: a handler that was not set from Python and cannot be put back from here
            signal.signal(number, old)


def _leave(number: int, frame: object) -> None:
    os._exit(130)


def _replace(old: object, new: Handler) -> None:
    """Other handlers stay: ignored under nohup, or the caller's own."""
    if signal.getsignal(signal.SIGINT) is old:
        with suppress(ValueError):  # not the main thread: signals are the caller's business
            signal.signal(signal.SIGINT, new)
