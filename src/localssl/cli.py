"""The command line: parses the flags, runs one command, turns errors into a line and an exit status."""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated

import tyro

import localssl
from localssl.config import TrainConfig
from localssl.errors import RunError, UsageError
from localssl.flags import Align, Export, Probe, Reproduce, Theory

Command = (
    Annotated[TrainConfig, tyro.conf.subcommand("train")]
    | Annotated[Probe, tyro.conf.subcommand("probe")]
    | Annotated[Align, tyro.conf.subcommand("align")]
    | Annotated[Theory, tyro.conf.subcommand("theory")]
    | Annotated[Reproduce, tyro.conf.subcommand("reproduce")]
    | Annotated[Export, tyro.conf.subcommand("export")]
)

_STYLE = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes)


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Exit status: 0 done, 1 the run could not go on, 2 bad input, 130 stopped by the user."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments == ["--version"]:
        print(localssl.__version__)
        return 0
    command: object = tyro.cli(Command, prog="localssl", description=localssl.__doc__, args=arguments, config=_STYLE)  # pyright: ignore
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it tells stderr which precision was asked for
    try:
        from localssl import commands  # after parsing: --help should not wait for the heavier imports

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


def _say(message: str, status: int) -> int:
    """One line on stderr, whatever an error's text holds."""
    print(f"localssl: {' '.join(message.split())}", file=sys.stderr)
    return status
