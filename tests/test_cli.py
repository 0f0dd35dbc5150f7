"""The command line around its commands: overview, version, citation, completion."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

import localssl
from localssl import citation
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
