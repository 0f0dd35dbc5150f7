"""Every snippet of some pages runs: Python as it stands, one page one session; commands with tiny sizes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from localssl.cli import main
from localssl.rules import own

from .sources_util import encoded, pictures, write_shards
from .train_util import run_tiny

DOCS = Path(__file__).resolve().parents[1] / "docs"
FENCE = re.compile(r"^```(\w*)(?: file=(\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TINY = "--epochs 1 --batch-size 16 --limit-images 64 --threads 1"
ADDED = {
    "train": TINY,
    "probe": "--limit-images 300 --threads 1",
    "align": "--batches 2",
    "report": "--images 20",
    "doctor": "--quick",
    "export": "",
}


def run_page(page: Path, section: str = "") -> int:
    """Run a page's snippets, or those of one section, in the present folder; returns how many there were."""
    session: dict[str, object] = {"__name__": "snippet"}
    text = page.read_text(encoding="utf-8")
    if section:
        text = text.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    found = FENCE.findall(text)
    for language, file, text in found:
        if file:
            Path(file).write_text(text, encoding="utf-8")
        elif language == "python":
            exec(compile(text, str(page), "exec"), session)
        else:
            assert not language, language
            for line in filter(None, text.splitlines()):
                words = shlex.split(line, comments=True)
                assert words[0] == "localssl", line
                if words[1] == "reproduce":  # hours: its own tests run it
                    from localssl.experiments import EXPERIMENTS

                    assert words[2] in EXPERIMENTS
                    continue
                assert main([*words[1:], *ADDED[words[1]].split()]) == 0, line
    return len(found)


@pytest.mark.parametrize("page", ["index.md", "hardware.md", "neuroscience.md", "networks.md", "own-data.md"])
def test_snippets(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if page != "index.md":  # begins with nothing
        run_tiny(Path("runs/x"))
    assert run_page(DOCS / page) >= 2
    for name in ("net.py", "mine.py"):
        own._LOADED.pop(tmp_path / name, None)


def test_parts_of_b(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("localssl.launch.START", "fork")
    assert run_page(DOCS / "many-machines.md", "What is sent") == 1
    assert run_page(DOCS / "many-machines.md", "B in parts") == 1


def test_shards_in_two_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("localssl.launch.START", "fork")  # nothing to import anew
    write_shards(tmp_path / "shards", [encoded(picture) for picture in pictures(100)], list(range(10)) * 10)
    assert run_page(DOCS / "many-machines.md", "Images on disk") == 1


def test_a_wrong_snippet_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nassert 1 == 2\n```\n", encoding="utf-8")
    with pytest.raises(AssertionError):
        run_page(page)
    page.write_text("```\nlocalssl train --rule clap --data digits --out x\n```\n", encoding="utf-8")
    with pytest.raises(AssertionError, match="localssl train"):
        run_page(page)
