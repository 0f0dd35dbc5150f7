"""The command line: runs one command, turns errors into a line and an exit status."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Generator
from contextlib import contextmanager

import localssl
from localssl.errors import RunError, UsageError


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Exit status: 0 done, 1 the run could not go on, 2 bad input, 130 stopped by the user."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments == ["--version"]:
        print(localssl.__version__)
        return 0
    with _interrupt_leaves():  # importing PyTorch takes seconds, and nothing has begun that could be lost
        from localssl import flags

        command = flags.parse(arguments)
        from localssl import commands  # after parsing: --help should not wait for the heavier imports
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it tells stderr which precision was asked for
    try:
        commands.run(command)
    except UsageError as error:
        return _say(str(error), 2)
    except RunError as error:
        return _say(str(error), 1)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains while it ends
        return 1
    except OSError as error:
        return _say(f"{error.strerror or error} ({error.filename})", 1)
    return 0


@contextmanager
def _interrupt_leaves() -> Generator[None]:
    """Ctrl-C ends the process without a word: as an exception, a library that is being imported may swallow it."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # ignored under nohup, or the caller's own
        yield
        return
    try:
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))
    except ValueError:  # not the main thread: signals are the caller's business
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _say(message: str, status: int) -> int:
    """One line on stderr, whatever an error's text holds."""
    print(f"localssl: {' '.join(message.split())}", file=sys.stderr)
    return status
