"""The command line around its commands: overview, version, citation, completion."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import localssl
from localssl import citation, flags, usage
from localssl.cli import main

COMMANDS = ["train", "probe", "align", "compare", "certify", "theory", "reproduce", "report", "export", "doctor"]
ROOT = Path(__file__).resolve().parents[1]
Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_overview_fits_a_screen(flag: str, capsys: Capture) -> None:
    assert main([flag]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 36
    assert max(len(line) for line in lines) <= 80
    assert [line.split()[0] for line in lines if re.match(r"  \w", line)] == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_a_screen(command: str, capsys: Capture) -> None:
    """The usual flags and examples on one page; every flag is on the other, once."""
    assert main([command, "-h"]) == 0
    short = capsys.readouterr().out
    assert main([command, "--help-all"]) == 0
    whole = capsys.readouterr().out
    assert len(short.splitlines()) <= 60
    assert max(map(len, whole.splitlines())) <= 80
    assert f"  localssl {command}" in short
    fields = {f.name for f in dataclasses.fields(usage.commands()[command])}
    shown = [flag.replace("-", "_") for flag in re.findall(r"^  --([a-z-]+)", whole, re.MULTILINE)]
    places = [place.lower() for place in re.findall(r"^  ([A-Z]+)  ", whole, re.MULTILINE)]
    assert sorted([*shown, *places]) == sorted(fields)
    assert ("--help-all" in short) == (short != whole)


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_of_the_help_can_be_typed(command: str) -> None:
    for example in usage.EXAMPLES[command]:
        if "--config" not in example:  # names a file
            assert isinstance(flags.parse([command, *shlex.split(example)]), usage.commands()[command])


def test_what_the_help_says_of_a_flag(capsys: Capture) -> None:
    assert main(["train", "--rule", "clapp", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "--width FLOAT Factor on the encoder's channel numbers; 1 is the paper's. [1.0]" in said
    assert "--resume Go on from the last checkpoint" in said
    assert "--pipeline" not in said


def test_misspelt(capsys: Capture) -> None:
    """A command is named; what is near a flag are flags of this command."""
    assert main(["trian", "--rule", "clapp"]) == 2
    assert "unknown command 'trian': did you mean 'train'" in capsys.readouterr().err
    assert main(["compare", "--data", "digits", "--out", "x", "--imagesize", "3"]) == 2
    said = capsys.readouterr().err
    assert "--image-size" in said
    assert "certify" not in said


def test_without_a_command(capsys: Capture) -> None:
    assert main([]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("usage: localssl COMMAND")


def test_version(capsys: Capture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{localssl.__version__}\n"


def test_citation(capsys: Capture) -> None:
    """Command and file say the same."""
    assert main(["--citation"]) == 0
    said = capsys.readouterr().out
    record = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    paper = record["preferred-citation"]
    assert record["title"] == citation.TITLE
    assert record["version"] == localssl.__version__
    assert (paper["title"], paper["year"]) == (citation.PAPER, citation.YEAR)
    assert tuple(author["name"] for author in paper["authors"]) == citation.PAPER_AUTHORS
    assert paper["collection-title"] == citation.PAPER_VENUE
    for text in (record["title"], record["version"], paper["title"], "Guillaume Bellec", str(paper["year"])):
        assert text in said
    assert said.count("{") == said.count("}")


@pytest.mark.parametrize("words", ["--version", "--citation", "train --help-all"])
def test_nobody_reads_what_is_printed(words: str) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    command = [sys.executable, "-m", "localssl", *words.split()]
    done = subprocess.run(command, stdout=theirs, stderr=subprocess.PIPE, text=True, check=False)
    os.close(theirs)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_no_room_for_what_is_printed() -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "localssl", "--citation"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "localssl: No space left on device (standard output)\n")


def test_changelog_knows_the_version() -> None:
    assert f"\n## {localssl.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_completion(tmp_path: Path, capsys: Capture) -> None:
    """bash itself completes a command and a flag."""
    with pytest.raises(SystemExit) as end:
        main(["--completion", "bash"])
    assert end.value.code in (0, None)
    script = tmp_path / "localssl.bash"
    script.write_text(capsys.readouterr().out, encoding="utf-8")
    ask = """
        source "$1"; shift
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
        $(complete -p localssl | sed -E 's/.*-F ([^ ]+).*/\\1/') localssl "${COMP_WORDS[COMP_CWORD]}" ""
        printf '%s\n' "${COMPREPLY[@]}"
    """
    for words, expected in ((["localssl", "do"], "doctor"), (["localssl", "train", "--dry"], "--dry-run")):
        done = subprocess.run(
            ["bash", "-c", ask, "bash", str(script), *words], capture_output=True, text=True, check=False
        )
        assert done.stdout.split()[0] == expected, done.stderr  # a description may follow


@pytest.mark.parametrize("words", ["", "fish", "bash zsh"])
def test_bad_input(words: str, capsys: Capture) -> None:
    assert main(["--completion", *words.split()]) == 2
    said = capsys.readouterr().err
    assert said.startswith("localssl: --completion takes one of bash, zsh, tcsh")
    assert said.count("\n") == 1


def test_an_unknown_flag_is_one_line_with_the_nearest(capsys: Capture) -> None:
    assert main(["train", "--rule", "clapp++", "--data", "digits", "--out", "x", "--epoch", "2"]) == 2
    said = capsys.readouterr().err
    assert said == "localssl: train has no flag --epoch: did you mean --epochs? localssl train --help-all shows them\n"
    assert main(["certify", "--epochs=2"]) == 2
    assert "certify has no flag --epochs: localssl certify --help-all" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "--bits", "eight"], "--bits takes INT, not 'eight'; localssl train --help shows what it takes"),
        (["compare", "--precision", "8"], "invalid choice '8' for argument '--precision'. Expected one of"),
        (["probe"], "Missing from localssl probe: PATH Folder of the run. (required);"),
        (["probe", "a", "b"], "Unrecognized options: b;"),
        (["train", "--rule"], "Missing value for argument '--rule'. Expected 1 values;"),
    ],
)
def test_what_a_flag_does_not_take_is_a_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.count("\n") == 1
    assert err.startswith(f"localssl: {said}")
