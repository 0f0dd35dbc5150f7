"""The command line: runs one command, turns errors into a line and an exit status."""

from __future__ import annotations

import io
import logging
import os
import sys
import traceback
import warnings

import localssl
from localssl.errors import RunError, UsageError, one_line
from localssl.system import allocator, interrupts


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Exit status: 0 done, 1 the run could not go on, 2 bad input, 130 stopped by the user."""
    _printable()
    try:
        status = _main(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()  # here, or whoever stopped reading is met while the interpreter ends
    except OSError as error:  # of what is printed; those of files are met below
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains while it ends
        return 1 if isinstance(error, BrokenPipeError) else _say(f"{error.strerror} (standard output)", 1)
    return status


def _main(arguments: list[str]) -> int:
    if arguments == ["--version"]:
        print(localssl.__version__)
        return 0
    if arguments == ["--citation"]:
        from localssl import citation

        print(citation.bibtex())
        return 0
    if arguments[:1] == ["--completion"]:
        from localssl.cli import completion

        if len(arguments) != 2 or arguments[1] not in completion.SHELLS:
            shells = " or ".join(completion.SHELLS)
            return _say(f"--completion takes {shells}; docs/first-hour.md says where it goes", 2)
        print(completion.script(arguments[1]))
        return 0
    with interrupts.leaving():  # importing PyTorch takes seconds
        from localssl.cli import flags, usage

        if not arguments:
            print(usage.overview(), file=sys.stderr)
            return 2
        try:
            if (page := usage.asked_for(arguments)) is not None:
                print(page)
                return 0
            usage.refuse_unknown(arguments)
            allocator.keep_freed()
            command = flags.parse(arguments)
        except UsageError as error:
            return _say(str(error), 2)
        from localssl import own  # after parsing: --help should not wait for the heavier imports
        from localssl.cli import commands
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it tells stderr which precision was asked for
    warnings.filterwarnings("ignore", message="The `srun` command is available")  # where SLURM is installed
    try:
        with own.only_named(arguments):
            commands.run(command)
    except UsageError as error:
        return _say(str(error), 2)
    except RunError as error:
        return _say(str(error), 1)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        raise
    except Exception as error:
        place = own.where(error)
        if place is not None:  # a bug in a rule of the user's own
            traceback.print_exc()
            advice = getattr(error, "__notes__", [])[-1:]  # of training: how to go on
            return _say("; ".join([f"{place}: {type(error).__name__}: {error}", *advice]), 1)
        if isinstance(error, OSError):
            return _say(f"{error.strerror or error} ({error.filename})", 1)
        raise
    return 0


def _printable() -> None:
    """A terminal or pipe that cannot write a character gets a question mark, not a traceback: code pages of Windows."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not stream.encoding.lower().startswith("utf"):
            stream.reconfigure(errors="replace")


def _say(message: str, status: int) -> int:
    """One line on stderr, whatever an error's text holds."""
    print(f"localssl: {one_line(message)}", file=sys.stderr)
    return status
