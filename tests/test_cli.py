"""The command line around its commands: overview, help, version, citation, what it refuses."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import localssl
from localssl import citation
from localssl.cli import flags, main, usage

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
    assert len(short.splitlines()) <= 40
    assert max(map(len, whole.splitlines())) <= 80
    assert f"  localssl {command}" in short
    fields = {f.name for f in dataclasses.fields(usage.commands()[command])}
    shown = [flag.replace("-", "_") for flag in re.findall(r"^  --([a-z-]+)", whole, re.MULTILINE)]
    places = [place.lower() for place in re.findall(r"^  ([A-Z]+)  ", whole, re.MULTILINE)]
    assert sorted([*shown, *places]) == sorted(fields)
    assert ("--help-all" in short) == (short != whole)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_as_a_word(command: str, capsys: Capture) -> None:
    for typed in ([command, "--help"], [command, "--help-all"]):
        assert main(typed) == 0
        page = capsys.readouterr().out
        for flag in [flag for flag in typed[1:] if flag != "--help"] or ["--help", None]:
            assert main([word for word in ("help", command, flag) if word]) == 0
            assert capsys.readouterr().out == page
    assert main(["help"]) == 0
    assert capsys.readouterr().out == f"{usage.overview()}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_of_the_help_can_be_typed(command: str) -> None:
    for example in usage.EXAMPLES[command]:
        if "--config" not in example:  # names a file
            assert isinstance(flags.parse([command, *shlex.split(example)]), usage.commands()[command])


def test_what_the_help_says_of_a_flag(capsys: Capture) -> None:
    assert main(["train", "--rule", "clapp", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "--width FLOAT Factor on the encoder's channel numbers. [1.0]" in said
    assert "--epochs INT Passes over the images. Default: 40 on digits, else 10. --width" in said
    assert "--pipeline" not in said
    assert main(["train", "--help-all"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "--width FLOAT Factor on the encoder's channel numbers. 1 is the paper's. [1.0]" in said
    assert "--pipeline" in said


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


def test_an_unknown_flag_is_one_line_with_the_nearest(capsys: Capture) -> None:
    assert main(["train", "--rule", "clapp++", "--data", "digits", "--out", "x", "--epoch", "2"]) == 2
    said = capsys.readouterr().err
    assert said == "localssl: train has no flag --epoch: did you mean --epochs? localssl train --help-all shows them\n"
    assert main(["certify", "--epochs=2"]) == 2
    assert "certify has no flag --epochs: localssl certify --help-all" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "train --bits eight",
            "--bits takes a whole number, not 'eight'; localssl train --help-all shows what it takes",
        ),
        ("train --width 0.25x", "--width takes a number, not '0.25x';"),
        ("train --seed 1.5", "--seed takes a whole number, not '1.5';"),
        ("train --patches 4 x", "--patches takes a whole number, not 'x';"),
        ("compare --data digits --out x --search-lr fast", "--search-lr takes a number, not 'fast';"),
        (
            "train --optimizer adma",
            "unknown optimizer 'adma': did you mean 'adam' or 'adam-l2'? choices: adam, adam-fac",
        ),
        ("compare --precision 8", "unknown precision '8': choices: 32-true, 64-true, bf16-mixed\n"),
        ("probe x --labels 5", "unknown labels '5': choices: 1, 10, all\n"),
        ("probe", "probe needs the folder of a run, localssl probe runs/x;"),
        ("compare", "compare needs --data and --out;"),
        ("compare --data digits", "compare needs --out;"),
        ("probe a b", "probe takes no 'b' where it stands: flags begin with --; localssl probe --help-all"),
        (
            "train rule clapp++",
            "train takes no 'rule' where it stands: flags begin with --, did you mean --rule? local",
        ),
        ("train --rule", "--rule stands without a value: give a text;"),
        ("--versoin", "localssl has no flag --versoin: did you mean --version? localssl --help shows"),
        ("--rule clapp", "localssl has no flag --rule: flags stand behind a command, localssl --help shows"),
        ("--citation x", "--citation stands alone: leave out 'x'\n"),
        ("--version=2", "--version stands alone: leave out '2'\n"),
        ("help trian", "unknown command 'trian': did you mean 'train'"),
    ],
)
def test_what_a_flag_does_not_take_is_a_line(words: str, said: str, capsys: Capture) -> None:
    assert main(words.split()) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.count("\n") == 1
    assert err.startswith(f"localssl: {said}")


def test_what_training_says_last(tmp_path: Path, capsys: Capture) -> None:
    """What to do next, and that nothing was learnt where no epoch was asked for."""
    tiny = "--rule ff --data digits --limit-images 64 --width 0.25 --threads 1 --epochs"
    for epochs, remark in ((0, True), (1, False)):
        out = tmp_path / f"x{epochs}"
        assert main(["train", *tiny.split(), str(epochs), "--out", str(out)]) == 0
        *said, last = capsys.readouterr().out.splitlines()
        assert ("no epoch was run: the encoder is as its seed drew it" in said) == remark
        words = [f"{command} {shlex.quote(str(out))}" for command in ("probe", "align", "report")]
        assert [next_.partition("localssl ")[2] for next_ in last.partition("; next: ")[2].split(", ")] == words
