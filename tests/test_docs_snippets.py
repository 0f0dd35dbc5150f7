"""Snippets run where that takes seconds: Python as it stands, one page one session; commands in small (``ADDED``).

Not all of them. Read as the command line reads them and no more, since they would take minutes, data sets or other
machines: ``reproduce``, the certificate of every rule at once, studies in several processes, whatever has a gap "…"
(``parsed_only``), torchrun's, comparisons of every rule; and the commands that stand in the text but ``theory``. Python
of ``PARSED`` is compiled where no test here runs it. Of ``make`` the target is there, of ``python FILE`` and ``cp`` the
file is. Other tests run them.
"""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
from pathlib import Path

import pytest

import localssl
from localssl import own
from localssl.cli import flags, main, usage
from localssl.data import specs
from localssl.engine import Numbers
from localssl.experiments import EXPERIMENTS
from localssl.runs import flagfile

from .compare_util import in_this_process
from .sources_util import encoded, pictures, write_shards
from .train_util import run_tiny

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
RUN = ("index", "first-hour", "alignment", "certificate", "report", "hardware", "neuroscience", "networks", "own-data")
PARSED = (
    "README.md",
    "CONTRIBUTING.md",
    *(f"docs/{name}.md" for name in ("compare", "engine", "many-machines", "your-own-rule")),
)
OTHERS = ("docs/cite.md",)  # no command and no program: tests/test_site.py
GIVEN = """
import torch, localssl
from torch import nn
stage1, stage2, stage3 = (nn.Sequential(nn.Conv2d(c, 4, 3, 2, 1), nn.ReLU()) for c in (3, 4, 4))
view_a, view_b = torch.randn(2, 8, 3, 32, 32)
images = view_a
batches = training_batches = pairs = [(view_a, view_b), (view_b, view_a)]
images_uint8 = torch.randint(256, (2, 1, 16, 16), dtype=torch.uint8)
encoder = localssl.encoders.Encoder.from_blocks([stage1, stage2, stage3])
learner = localssl.Learner(encoder, localssl.rules.get("clapp++"), input_shape=(3, 32, 32), patches=(4, 4, 2))
optimiser = torch.optim.Adam(learner.parameters())
"""  # what the reader has at these places
FENCE = re.compile(r"^```(\w*)(?: file=(\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^(localssl|make|torchrun|python|import|[\w.]+ = |localssl\.)", re.MULTILINE)
TINY = "--epochs 1 --batch-size 16 --limit-images 64 --threads 1"
ADDED = {
    "train": TINY,
    "probe": "--limit-images 300 --threads 1",
    "align": "--batches 2",
    "report": "--images 20",
    "doctor": "--quick",
    "export": "",
    "certify": "",
    "theory": "--cases 1",
    "compare": f"{TINY} --width 0.25 --seeds 1 --probe-images 200 --align-batches 2",
}


def parsed_only(words: list[str]) -> bool:
    """A command with a gap, or one that takes minutes to hours whatever is added to it."""
    given = set(words)
    long = {"reproduce": True, "certify": "--rule" not in given, "compare": "--jobs" in given}
    return "…" in given or long.get(words[1], False)


def run(line: str) -> None:
    """A command of a page, with sizes that take seconds, on the digits: a clone has no other data set of a name."""
    words = shlex.split(line, comments=True)
    words = ["digits" if word in specs.SPECS else word for word in words]
    added = ADDED[words[1]]
    if any(word.startswith("torchvision:") for word in words):  # whose networks have widths of their own
        added = added.replace("--width 0.25", "")
    assert main([*words[1:], *added.split()]) == 0, line


def run_page(page: Path, section: str = "") -> int:
    """Run a page's snippets, or those of one section, in the present folder; returns how many there were."""
    session: dict[str, object] = {"__name__": "snippet"}
    exec(GIVEN, session)
    text = page.read_text(encoding="utf-8")
    if section:
        text = text.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    found = FENCE.findall(text)
    for language, file, text in found:
        if file:
            Path(file).write_text(text, encoding="utf-8")
        elif language == "python":
            exec(compile(text, str(page), "exec"), session)
        elif language == "yaml":
            Path("flags.yaml").write_text(text, encoding="utf-8")
            assert flagfile.read(Path("flags.yaml"), flags.TrainConfig)
        else:
            assert not language, language
            for line in filter(None, text.splitlines()):
                words = shlex.split(line, comments=True)
                read(line)
                if words[0] == "localssl" and not parsed_only(words):
                    run(line)
    return len(found)


def read(line: str) -> None:
    """A line of a shell: its flags are there, or its target of make, or its program."""
    words = shlex.split(line, comments=True)
    if "localssl" in words:  # torchrun and variables of the environment may stand before
        words = words[words.index("localssl") :]
        gaps = ("x" if before.startswith("--") else "" for before in words)  # what "…" stands for after each word
        arguments = [
            gap if word == "…" else word for word, gap in zip(words[1:], gaps, strict=False) if gap or word != "…"
        ]
        if {"--help", "--help-all"} & set(arguments):
            assert arguments[0] in usage.commands()
            return
        if "--config" in arguments:  # names a file that the reader has
            place = arguments.index("--config")
            del arguments[place : place + 2]
        if arguments[0] in ("train", "compare") and "--out" not in arguments:
            arguments += ["--out", "x"]
        command = flags.parse(arguments)
        if isinstance(command, flags.Reproduce):
            assert set(command.names) <= set(EXPERIMENTS), line
    elif words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert words[1] in targets, line
    elif words[0] == "cp":
        assert all((ROOT / word).exists() for word in words[1:-1] if not word.startswith("-")), line
    else:
        assert words[0] == "python", line
        assert (ROOT / words[1]).is_file(), line


def test_every_page_with_snippets_is_here() -> None:
    pages = [*DOCS.glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "ARCHITECTURE.md"]
    with_some = {str(page.relative_to(ROOT)) for page in pages if COMMAND.search(_fenced(page))}
    assert with_some == {*(f"docs/{name}.md" for name in RUN), *PARSED}
    assert [page for page in OTHERS if COMMAND.search(_fenced(ROOT / page))] == []


def _fenced(page: Path) -> str:
    return "\n".join(text for _, _, text in FENCE.findall(page.read_text(encoding="utf-8")))


BY_LENGTH = [pytest.param(page, marks=[pytest.mark.long] * (page in ("first-hour", "index", "report"))) for page in RUN]


@pytest.mark.parametrize("page", BY_LENGTH)
def test_snippets(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if page not in ("index", "first-hour", "report"):  # begin with nothing
        run_tiny(Path("runs/x"))
    if page == "certificate":  # has a rule of its own
        shutil.copy(ROOT / "examples" / "my_rule.py", "my_rule.py")
    assert run_page(DOCS / f"{page}.md") >= 1
    for name in ("net.py", "mine.py", "my_rule.py"):
        own._LOADED.pop(tmp_path / name, None)


def test_parts_of_b(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("localssl.training.launch.START", "fork")
    assert run_page(DOCS / "many-machines.md", "What is sent") == 1
    assert run_page(DOCS / "many-machines.md", "B in parts") == 1


@pytest.mark.parametrize("page", PARSED)
def test_commands_can_be_typed(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # files of one's own are named from here
    commands = 0
    for language, _, text in FENCE.findall((ROOT / page).read_text(encoding="utf-8")):
        for line in filter(None, text.splitlines()):
            if not language:
                read(line)
                commands += 1
            elif language == "python":
                compile(text, page, "exec")
    assert commands >= 1


def test_a_rule_of_ones_own() -> None:
    """The Python of that page, about the class that it shows."""
    mine = runpy.run_path(str(ROOT / "examples" / "my_rule.py"))["MyRule"]
    session: dict[str, object] = {"localssl": localssl, "MyRule": mine, "__name__": "snippet"}
    page = (DOCS / "your-own-rule.md").read_text(encoding="utf-8")
    shown, *others = [text for language, _, text in FENCE.findall(page) if language == "python"]
    assert (ROOT / "examples" / "my_rule.py").read_text(encoding="utf-8").endswith(shown)
    for text in others:
        exec(compile(text, "your-own-rule.md", "exec"), session)


@pytest.mark.parametrize("page", sorted(path.name for path in DOCS.glob("*.md")))
def test_commands_in_the_text(page: str) -> None:
    text = FENCE.sub("", (DOCS / page).read_text(encoding="utf-8"))
    for found in re.findall(r"`(localssl [a-z]+ [^`]*)`", text):
        line = " ".join(found.split())
        if not re.search(r"…|\b[A-Z]{2,}\b|\bX\b|\\|\.\.\.", line):  # with a gap to be filled
            read(line)
    for file in re.findall(r"`python ((?:examples|benchmarks|tests)/\S+?\.py)\b", text):
        assert (ROOT / file).is_file(), file


def test_every_grid_of_an_integer_learner_is_on_the_page() -> None:
    """By the call that gives it; and what gives it stands among the API."""
    encoder = localssl.encoders.vgg5(width=0.125, bits=6)
    learner = localssl.Learner(encoder, localssl.rules.get("clapp++both"), (1, 16, 16), (2, 2, 2, 1, 1))
    text = (DOCS / "hardware.md").read_text(encoding="utf-8")
    for numbers in learner.parts["integer"]:
        assert isinstance(numbers, Numbers)
        calls = [
            *(f'`store("{name}").grid`' for name in numbers.synapses),
            *(f'`of("{name}")`' for name in numbers.grids),
        ]
        assert [call for call in calls if call not in text] == []
        modules = {type(numbers).__module__, type(numbers.of("signal")).__module__}
    hook = (ROOT / "website" / "hook.py").read_text(encoding="utf-8")
    assert all(f'"{module}"' in hook for module in modules)


@pytest.mark.long
def test_comparisons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    in_this_process(monkeypatch)
    lines = [line for line in _fenced(DOCS / "compare.md").splitlines() if line.startswith("localssl compare")]
    assert len(lines) == 7  # the last four are days and minutes of every rule: their results stand on the page
    for line in lines[1:3]:
        run(line)
    run(lines[0])
    rows = re.findall(r"^\| (\S+) \| \d", Path("runs/compare/table.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert rows[:4] == ["untrained", "clapp++", "clapp++dfb", "bp-clapp++"]  # each with its accuracy


def test_readmes_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_page(ROOT / "README.md") >= 2
    assert Path("runs/x/report.html").is_file()


def test_ones_own_rule_from_training_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "examples", "examples", ignore=shutil.ignore_patterns("notebooks"))
    lines = [line for line in _fenced(DOCS / "your-own-rule.md").splitlines() if line.startswith("localssl ")]
    assert len(lines) == 4
    for line in lines:
        run(line.replace("--epochs 80", ""))  # the smaller number is given by ``run``
    own._LOADED.pop(tmp_path / "examples" / "my_rule.py", None)


@pytest.mark.long
def test_the_engines_commands_on_the_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("localssl.training.launch.START", "fork")
    lines = [line for line in _fenced(DOCS / "engine.md").splitlines() if line.startswith("localssl train")]
    assert len(lines) == 9
    for number, line in enumerate(lines):  # some go where others have been
        line, _, _ = line.partition("#")
        run(line.replace("--out runs/", f"--out runs/{number}") + " --encoder vgg6 --image-size 32")


@pytest.mark.long
def test_commands_for_many_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But those with gaps, and torchrun's: tests/test_torchrun.py."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("localssl.training.launch.START", "fork")
    lines = [line for line in _fenced(DOCS / "many-machines.md").splitlines() if line.startswith("localssl train")]
    assert [" … " in line for line in lines] == [False, True, False, False, False]
    run(lines[0])
    run_tiny(Path("runs/one"))  # what one process made is repeated
    assert main([*shlex.split(lines[-1].replace("runs/x", "runs/one"))[1:], "--threads", "1"]) == 0


def test_the_theory_on_one_case_each() -> None:
    assert "`localssl theory`" in (DOCS / "theory.md").read_text(encoding="utf-8")
    run("localssl theory")


def test_shards_in_two_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("localssl.training.launch.START", "fork")  # nothing to import anew
    write_shards(tmp_path / "shards", [encoded(picture) for picture in pictures(100)], list(range(10)) * 10)
    assert run_page(DOCS / "many-machines.md", "Images on disk") == 1


def test_the_rule_with_a_running_rate() -> None:
    assert run_page(DOCS / "your-own-rule.md", "Three factors, and a running rate") == 1


def test_a_wrong_snippet_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nassert 1 == 2\n```\n", encoding="utf-8")
    with pytest.raises(AssertionError):
        run_page(page)
    page.write_text("```\nlocalssl train --rule clap --data digits --out x\n```\n", encoding="utf-8")
    with pytest.raises(AssertionError, match="localssl train"):
        run_page(page)
