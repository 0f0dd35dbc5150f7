"""What bash offers where the script of ``localssl --completion bash`` is sourced: flags, and nothing else."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from localssl import rules
from localssl.cli import completion, main, usage
from localssl.experiments import EXPERIMENTS

from .test_promises import BESIDE
from .test_promises import COMMANDS as PROMISED

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
Capture = pytest.CaptureFixture[str]
ASK = """
    source "$1"; shift
    COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
    $(complete -p localssl | sed -E 's/.*-F ([^ ]+).*/\\1/') localssl "${COMP_WORDS[COMP_CWORD]}" ""
    printf '%s\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "localssl.bash"
    path.write_text(completion.script("bash"), encoding="utf-8")
    return path


def offered(script: Path, *words: str) -> list[str]:
    """COMPREPLY at the end of a line, of which the last word is begun, or empty."""
    command = ["bash", "-c", ASK, "bash", str(script), "localssl", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.removesuffix("\n").split("\n")


@pytest.mark.parametrize("command", PROMISED)
def test_all_flags_of_a_command_and_nothing_else(command: str, script: Path) -> None:
    flags = [f"--{flag}" for flag in PROMISED[command].split() if flag.islower()]
    assert sorted(offered(script, command, "--")) == sorted([*flags, "--help", "--help-all"])
    names = list(EXPERIMENTS) if command == "reproduce" else []
    assert sorted(offered(script, command, "")) == sorted([*flags, "-h", "--help", "--help-all", *names])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("do", "doctor"),
        ("--", BESIDE),
        ("train --ru", "--rule --rule-options"),
        ("train --en", "--encoder --encoder-options --engine"),
        ("probe --pro", "--protocol"),
        ("train --rule clapp++ --dry", "--dry-run"),
        ("train --rule bp-c", "bp-clapp++"),
        ("compare --rules bp-c", "bp-clapp++"),
        ("train --optimizer ", "adam adam-factored adam-l2 plain-sgd sgd shift-sgd"),
        ("probe runs/x --labels all --pro", "--protocol"),
        ("reproduce fig4", "fig4b fig4c"),
        ("export runs/x --rule --on", "--onnx"),
    ],
)
def test_what_is_offered(words: str, expected: str, script: Path) -> None:
    assert sorted(offered(script, *words.split(" "))) == sorted(expected.split())


def test_every_rule_and_command(script: Path) -> None:
    assert sorted(offered(script, "train", "--rule", "")) == sorted(rules.names())
    assert sorted(w for w in offered(script, "") if not w.startswith("-")) == sorted(usage.commands())


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_the_command_prints_it(shell: str, capsys: Capture) -> None:
    assert main(["--completion", shell]) == 0
    out, err = capsys.readouterr()
    assert (out, err) == (completion.script(shell) + "\n", "")
    assert "--help-all" in out
    assert re.search(r"COMPLETION_SPEC = .*\\n", out) is None  # a description of several lines


@pytest.mark.parametrize("words", ["", "fish", "tcsh", "bash zsh"])
def test_other_shells(words: str, capsys: Capture) -> None:
    assert main(["--completion", *words.split()]) == 2
    said = capsys.readouterr().err
    assert said.startswith("localssl: --completion takes bash or zsh")
    assert said.count("\n") == 1
