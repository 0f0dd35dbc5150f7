"""The script that completes commands and flags in a shell, as tyro prints it, with what it leaves out."""

from __future__ import annotations

import ast
import io
import re
from contextlib import redirect_stdout
from typing import Any

import tyro

import localssl
from localssl import rules
from localssl.cli.flags import STYLE, Command, commands
from localssl.experiments import EXPERIMENTS

SHELLS = ("bash", "zsh")
_BESIDE = {
    "--version": "the version",
    "--citation": "how to cite, as BibTeX",
    "--completion": "the script that completes in a shell",
}


def script(shell: str) -> str:
    """What ``localssl --completion SHELL`` prints, for one of ``SHELLS``."""
    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            given = ["--tyro-print-completion", shell]
            tyro.cli(Command, prog="localssl", description=localssl.__doc__, args=given, config=STYLE)  # pyright: ignore
    except SystemExit:
        pass
    return re.sub(r"(?m)^COMPLETION_SPEC = (.*)$", _completed, printed.getvalue())


def _completed(line: re.Match[str]) -> str:
    """The line that says what there is: a dictionary of options and subcommands, which it reads when a key is hit."""
    spec: dict[str, Any] = ast.literal_eval(line[1])
    spec["options"] += [_flag(flag, text) for flag, text in _BESIDE.items()]
    for name, command in spec["subcommands"].items():
        command["description"] = _first_line(commands()[name])
        for option in command["options"]:
            # In one line: every further one would be offered as a word.
            option["description"] = " ".join(option["description"].split())
            if option["flags"] in (["--rule"], ["--rules"]) and option["type"] != "flag":
                option |= {"type": "choice", "choices": rules.names()}
            if option["type"] == "choice":  # of several values the first: after it flags are offered again
                option |= {"nargs": 1, "choices": [choice for choice in option["choices"] if choice != "None"]}
        command["options"].append(_flag("--help-all", "show all flags and exit"))
    experiments = [_flag(name, _first_line(experiment)) for name, experiment in EXPERIMENTS.items()]
    spec["subcommands"]["reproduce"]["options"] += experiments
    return f"COMPLETION_SPEC = {spec!r}"


def _flag(name: str, text: str) -> dict[str, Any]:
    return {"flags": [name], "description": text, "type": "flag"}


def _first_line(documented: object) -> str:
    return (documented.__doc__ or "").splitlines()[0]
