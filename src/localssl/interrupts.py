"""Ctrl-C while nothing has begun that could be lost: the process ends without a word.

As an exception it would be a traceback from inside a library, or be swallowed by one that is being imported.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress


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
def blocked() -> Generator[None]:
    """No Ctrl-C for a while, and never for the processes that are started meanwhile."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _leave(number: int, frame: object) -> None:
    os._exit(130)


def _replace(old: object, new: signal._HANDLER) -> None:
    """Other handlers stay: ignored under nohup, or the caller's own."""
    if signal.getsignal(signal.SIGINT) is old:
        with suppress(ValueError):  # not the main thread: signals are the caller's business
            signal.signal(signal.SIGINT, new)
