"""Rules from a file of the user's own: from the command line, in what opens such a run, and where they go wrong."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest

from localssl import cli, evaluate, own, rules
from localssl.alignment import measure
from localssl.runs.run import open_run
from localssl.testing import check_rule

from .compare_util import in_this_process
from .train_util import assert_same_run, run_tiny
from .util import usage_error

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "my_rule.py"
HEAD = "from dataclasses import dataclass\nfrom localssl.rules import Rule\n\n@dataclass(frozen=True, kw_only=True)\n"
TINY = "--data digits --epochs 1 --limit-images 64 --batch-size 16 --width 0.25 --threads 1"
COMPARED = "data: digits\nrules: [mine.py:MyRule]\nepochs: 1\nseeds: 1\nlimit-images: 64\nwidth: 0.25\n"


def file(folder: Path, body: str, name: str = "mine.py") -> Path:
    path = folder / name
    path.write_text(HEAD + body)
    return path


def losses(line: str) -> str:
    """A rule whose layer_loss has this line; it is line 7 of the file."""
    return f"class Mine(Rule):\n    def layer_loss(self, batch, layer, projections):\n        {line}\n"


def command(text: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    status = cli.main(text.split())
    said = capsys.readouterr()
    return status, said.out, said.err


UNASKED = ("references", "transport", "engines", "device")  # there is nothing of the kind in it


def test_the_example_has_twenty_lines_and_passes_the_checks() -> None:
    assert len(EXAMPLE.read_text().splitlines()) <= 20
    outcomes = check_rule(f"{EXAMPLE}:MyRule")
    asked = {check: outcome for check, outcome in outcomes.items() if check not in UNASKED}
    assert set(asked.values()) == {"passed"}


def test_a_rule_by_its_path() -> None:
    rule = rules.get(f"{EXAMPLE}:MyRule", apart=0.2)
    assert (rule.name, type(rule).__name__) == ("MyRule", "MyRule")
    assert type(rules.get(f"{EXAMPLE}:MyRule")) is type(rule)  # loaded once
    assert f"{EXAMPLE}:MyRule" not in rules.names()
    with usage_error("did you mean 'apart'"):
        rules.get(f"{EXAMPLE}:MyRule", appart=0.2)
    assert rules.full_name("clapp++") == "clapp++"
    assert own.short_name("clapp++") == "clapp++"
    assert own.short_name(f"{EXAMPLE}:MyRule") == "my_rule.py:MyRule"


def test_a_rule_that_inherits_has_its_own_name(tmp_path: Path) -> None:
    path = file(tmp_path, "class Mine(ClappPP):\n    pass\n")
    path.write_text("from localssl.rules.clapp_pp import ClappPP\n" + path.read_text())
    assert (rules.get(f"{path}:Mine").name, rules.get("clapp++").name) == ("Mine", "clapp++")
    assert rules.get(f"{path}:ClappPP") == rules.get("clapp++")


def test_train_and_all_that_opens_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(EXAMPLE, tmp_path / "other.py")
    run = tmp_path / "run"
    status, out, err = command(f"train --rule other.py:MyRule --rule-options apart=0.3 {TINY} --out {run}", capsys)
    assert (status, err) == (0, "")
    assert "warning" not in out
    monkeypatch.chdir("/")
    config = open_run(run).config
    assert config.rule == f"{tmp_path}/other.py:MyRule"
    assert config.rule_options == {"apart": 0.3}
    assert command(f"train --resume --epochs 2 --out {run}", capsys)[0] == 0
    assert command(f"report {run} --images 0", capsys)[0] == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    assert all(f"{name} {run} --own {tmp_path}/other.py" in page for name in ("probe", "align"))
    status, out, _ = command(f"probe {run} --limit-images 40", capsys)
    assert status == 0
    assert "other.py:MyRule" in out
    status, out, _ = command(f"align {run} --batches 2", capsys)
    assert status == 0
    assert "other.py:MyRule" in (run / "align.csv").read_text()
    assert str(tmp_path) not in (run / "align.csv").read_text()
    assert command(f"export {run} --embeddings --out {tmp_path / 'z.npy'}", capsys)[0] == 0
    opened = open_run(run)
    learner, _ = opened.trained_learner()
    pairs = evaluate.view_batches(opened, opened.images("test"), 2, 8, 0)
    assert measure(learner.encoder.eval(), learner, pairs)[0].rule == "MyRule"
    (tmp_path / "other.py").rename(tmp_path / "moved.py")
    own._LOADED.clear()
    status, _, err = command(f"align {run}", capsys)
    assert (status, err.count("\n")) == (2, 1)
    assert "there is no file" in err


def test_resume_is_bit_identical_and_takes_the_rule_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXAMPLE.parent)
    name = "my_rule.py:MyRule"
    run_tiny(tmp_path / "a", rule=name)
    run_tiny(tmp_path / "b", rule=name, epochs=1)
    run_tiny(tmp_path / "b", rule=name, resume=True)
    assert_same_run(tmp_path / "a", tmp_path / "b")
    run_tiny(tmp_path / "b", rule=name, data=None, resume=True, limit_images=None, batch_size=64, width=1.0, lr=None)


def test_resuming_with_a_changed_file_is_said(tmp_path: Path) -> None:
    path = tmp_path / "changing.py"
    path.write_text(EXAMPLE.read_text())
    name, said = f"{path}:MyRule", list[str]()
    run_tiny(tmp_path / "run", rule=name, epochs=1)
    path.write_text(path.read_text() + "\n# another file\n")
    run_tiny(tmp_path / "run", said, rule=name, epochs=2, resume=True)
    assert any("is not the file that" in line for line in said)
    said.clear()
    run_tiny(tmp_path / "run", said, rule=name, epochs=3, resume=True)
    assert not any("is not the file that" in line for line in said)


@pytest.mark.parametrize(
    ("body", "name", "expected"),
    [
        ("class Mine(Rule):\n    pass\n", "nowhere.py:Mine", "there is no file .*nowhere.py"),
        ("class Mine(Rule):\n    pass\n", "mine.py:Mien", r"unknown rule in .*mine.py 'Mien': did you mean 'Mine'"),
        ("class Mine(Rule):\n    pass\n", "mine.py", "name the rule in it: mine.py:Mine"),
        ("class Mine:\n    pass\n", "mine.py:Mine", "not a rule; it must be a subclass of localssl.rules.Rule"),
        ("class Mine:\n    pass\n", "mine.py:dataclass", "not a rule"),
        ("class Mine:\n    pass\n1 / 0\n", "mine.py:Mine", r"mine.py:7: ZeroDivisionError: division by zero"),
        ("class Mine:\n    pass\nimport nonsuch\n", "mine.py:Mine", r"mine.py:7: ModuleNotFoundError: .*nonsuch"),
        ("class Mine:\n    pass\nraise SystemExit\n", "mine.py:Mine", r"mine.py:7: SystemExit: no message"),
        ("class Mine(Rule)\n    pass\n", "mine.py:Mine", r"mine.py:5: SyntaxError: "),
    ],
)
def test_a_file_that_is_no_good(tmp_path: Path, body: str, name: str, expected: str) -> None:
    file(tmp_path, body)
    with usage_error(expected):
        rules.get(f"{tmp_path}/{name}")


def test_a_file_beside_it_can_be_imported(tmp_path: Path) -> None:
    (tmp_path / "helper_of_mine.py").write_text("STRENGTH = 3.0\n")
    path = file(tmp_path, "class Mine(Rule):\n    strength: float = STRENGTH\n")
    path.write_text("from helper_of_mine import STRENGTH\n" + path.read_text())
    assert getattr(rules.get(f"{path}:Mine"), "strength", None) == 3.0


def test_a_mended_file_is_loaded_anew(tmp_path: Path) -> None:
    path = file(tmp_path, "1 / 0\n")
    with usage_error("SyntaxError"):
        rules.get(f"{path}:Mine")
    file(tmp_path, "class Mine(Rule):\n    pass\n")
    assert rules.get(f"{path}:Mine").name == "Mine"


def test_options_of_a_rule_that_is_no_dataclass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It trains as it is; options are refused in a line that says how to have some."""
    path = tmp_path / "plain.py"
    body = (
        "    def layer_loss(self, batch, layer, projections):\n        return self.strength * batch.z[layer].mean()\n"
    )
    init = "    def __init__(self, strength=2.0):\n        self.strength = strength\n\n"
    path.write_text(
        f"from localssl.rules import Rule\nfrom localssl.rules.clapp_pp import ClappPP\n\n"
        f"class Init(Rule):\n{init}{body}\nclass Field(Rule):\n    strength: float = 2.0\n\n{body}\n"
        f"class Heir(ClappPP):\n    strength: float = 2.0\n",
        encoding="utf-8",
    )
    for name in ("Init", "Field", "Heir"):
        assert command(f"train --rule {path}:{name} {TINY} --out {tmp_path / name}", capsys)[0] == 0
        status, _, err = command(
            f"train --rule {path}:{name} --rule-options strength=3 {TINY} --out {tmp_path / 'x'}", capsys
        )
        assert (status, err.count("\n")) == (2, 1)
        assert f"has no option 'strength': class {name} is no dataclass" in err
        assert (
            "write @dataclass(frozen=True, kw_only=True) above it and each option as a field, strength: float = …"
            in err
        )
        assert ("margin" in err) == (name == "Heir")  # what it has by inheritance
        assert not (tmp_path / "x").exists()
    assert getattr(rules.get(f"{path}:Heir", margin=2.0), "margin", None) == 2.0


def test_an_exception_in_training_names_the_users_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for line, what in (
        ("return batch.z[layer].mean() / (1 // 0)", "ZeroDivisionError: "),
        ("return open('/nowhere/at/all').read()", "FileNotFoundError: "),
        ("raise ValueError('two\\nlines')", "ValueError: two lines"),
        ("return batch.z[layer] @ batch.z[layer]", "RuntimeError: "),
    ):
        path = file(tmp_path, losses(line), f"m{abs(hash(line))}.py")
        status, out, err = command(f"train --rule {path}:Mine {TINY} --out {tmp_path / path.stem}", capsys)
        assert status == 1
        assert "warning: rule 'Mine' fails check 'encoders'" in out
        assert f"{path}:7 (layer_loss)" in out
        assert "Traceback" in err
        assert err.splitlines()[-1].startswith(f"localssl: {path}:7 (layer_loss): {what}")


def test_a_run_goes_on_once_its_rule_is_mended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The last line is the command that does; the run is then that of the mended rule alone."""
    good = losses("return batch.z[layer].square().mean()")
    path, out = file(tmp_path, good), tmp_path / "x"
    assert command(f"train --rule {path}:Mine {TINY} --out {tmp_path / 'whole'} --epochs 2", capsys)[0] == 0
    own._LOADED.pop(path, None)
    assert command(f"train --rule {path}:Mine {TINY} --out {out}", capsys)[0] == 0
    file(tmp_path, losses("return batch.z[layer].square().mean() / (1 // (layer // 9))"))
    own._LOADED.pop(path, None)
    status, _, err = command(f"train --resume --epochs 2 --threads 1 --out {out} --own {path}", capsys)
    assert (status, "Traceback" in err) == (1, True)
    start, advice = err.splitlines()[-1].split("; the last checkpoint is untouched: mend that, then go on with: ")
    assert start.startswith(f"localssl: {path}:7 (layer_loss): ZeroDivisionError: ")
    file(tmp_path, good)
    own._LOADED.pop(path, None)
    words = shlex.split(advice)
    assert words[words.index("train") :] == [
        "train",
        "--resume",
        "--out",
        str(out),
        "--threads",
        "1",
        "--own",
        str(path),
    ]
    assert cli.main([*words[words.index("train") :], "--epochs", "2"]) == 0
    assert_same_run(tmp_path / "whole", out)


def test_a_rule_that_fails_a_check_trains_with_one_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = file(tmp_path, losses("return batch.z[layer].square().mean(1).sum()"))
    status, out, _ = command(f"train --rule {path}:Mine {TINY} --out {tmp_path / 'run'}", capsys)
    assert status == 0
    assert [line[:43] for line in out.splitlines() if "warning" in line] == [
        "warning: rule 'Mine' fails check 'mean': wi"
    ]
    assert "done: " in out
    said: list[str] = []
    run_tiny(tmp_path / "again", said, rule=f"{path}:Mine", epochs=1)
    run_tiny(tmp_path / "again", said, rule=f"{path}:Mine", resume=True)
    assert sum("warning: rule" in line for line in said) == 1
    run_tiny(tmp_path / "built-in", said, rule="clapp", epochs=1)
    assert sum("warning: rule" in line for line in said) == 1


def test_the_check_leaves_the_run_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"{EXAMPLE}:MyRule"
    run_tiny(tmp_path / "a", rule=name)
    monkeypatch.setattr("localssl.training.train._check_own_rule", lambda *_: None)
    run_tiny(tmp_path / "b", rule=name)
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_what_opens_a_run_names_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every command with --own, the two that train prints among them, and none without; paths with spaces, too."""
    folder = tmp_path / "my folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    in_this_process(monkeypatch)
    path = Path(shutil.copy(EXAMPLE, folder / "mine.py"))
    assert cli.main(["train", "--rule", "mine.py:MyRule", *TINY.split(), "--out", "my run"]) == 0
    done, advice = capsys.readouterr().out.splitlines()[-1].split("; next: ")
    assert done == f"done: {shlex.quote('my run')}"
    probe, align, report = (shlex.split(each) for each in advice.split(", "))
    Path("rules.yaml").write_text(COMPARED, encoding="utf-8")
    named = ["--own", "mine.py"]
    for words in (
        [*probe[probe.index("probe") :], "--limit-images", "40"],
        [*align[align.index("align") :], "--batches", "2"],
        [*report[report.index("report") :], "--images", "0"],
        ["train", "--resume", "--out", "my run", "--epochs", "2", *named],
        ["train", "--expect", "my run", *named],
        ["compare", "--config", "rules.yaml", "--align-batches", "0", "--threads", "1", "--out", "compared", *named],
    ):
        at = words.index("--own")
        own._LOADED.pop(path, None)
        assert cli.main([*words[:at], *words[at + 2 :]]) == 2, words
        assert f"add --own {shlex.quote(str(path))}" in capsys.readouterr().err
        own._LOADED.pop(path, None)
        assert cli.main(words) == 0, words
        capsys.readouterr()
    own._LOADED.pop(path, None)
