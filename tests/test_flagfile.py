"""Flags from a file, from the command line, and from both."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

import localssl
from localssl.cli import flags, main
from localssl.errors import UsageError
from localssl.runs import flagfile
from localssl.runs.config import TrainConfig

from .train_util import run_tiny

Capture = pytest.CaptureFixture[str]

FILE = """
rule: clapp++dfb
data: digits
batch-size: 16
limit_images: 64
epochs: 1
width: 0.25
lr: 1e-2
threads: 1
rule-options: {f: softplus, margin: 2.0}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(FILE, encoding="utf-8")
    return path


def asked(run: Path) -> dict[str, Any]:
    return yaml.safe_load((run / "flags.yaml").read_text(encoding="utf-8"))


def test_file_only(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "x"
    file.write_text(f"{FILE}out: {out}\n", encoding="utf-8")
    assert main(["train", "--config", str(file)]) == 0
    config = localssl.open_run(out).config
    assert (config.rule, config.batch_size, config.lr) == ("clapp++dfb", 16, 0.01)
    assert config.rule_options == {"f": "softplus", "margin": 2.0}
    assert asked(out) == {"format": 1, "rule": "clapp++dfb", "data": "digits", "epochs": 1, "width": 0.25, "lr": 0.01,
                          "rule-options": ["f=softplus", "margin=2.0"], "batch-size": 16, "limit-images": 64,
                          "threads": 1}  # fmt: skip


def test_flags_only(tmp_path: Path) -> None:
    run = run_tiny(tmp_path / "x", patches=(4, 4, 2, 2, 1))
    kept = flagfile.read(run.path, TrainConfig)
    assert kept == {"rule": "clapp++", "data": "digits", "epochs": 2, "limit_images": 64, "batch_size": 16,
                    "width": 0.25, "lr": 0.01, "threads": 1, "patches": (4, 4, 2, 2, 1)}  # fmt: skip
    again = localssl.train(config=run.path, out=tmp_path / "y", report=lambda line: None)  # the folder will do
    assert (again.path / "config.yaml").read_bytes() == (run.path / "config.yaml").read_bytes()
    assert (again.path / "encoder.safetensors").read_bytes() == (run.path / "encoder.safetensors").read_bytes()


def test_both_and_flags_win(file: Path) -> None:
    given = flags.parse(["train", "--rule", "clapp", f"--config={file}", "--width", "1.0", "--dry-run"])
    assert isinstance(given, flags.Train)
    assert (given.rule, given.width, given.dry_run) == ("clapp", 1.0, True)  # 1.0 is the default, and was given
    assert (given.lr, given.batch_size) == (0.01, 16)
    assert given.command().startswith("localssl train --rule clapp --data digits --epochs 1 --rule-options")
    assert "--config" not in given.command()  # the command repeats the run without the file
    estimate = localssl.api.dry_run(config=str(file), epochs=3, rule="clapp++")
    assert estimate.steps == 3 * 4


def test_a_switch_of_the_file_can_be_turned_off(file: Path) -> None:
    file.write_text("skip-bad: yes\n", encoding="utf-8")
    assert dataclasses.asdict(flags.parse(["train", "--config", str(file)]))["skip_bad"] is True  # pyright: ignore
    assert dataclasses.asdict(flags.parse(["train", "--config", str(file), "--no-skip-bad"]))["skip_bad"] is False  # pyright: ignore


def test_going_on_keeps_what_was_asked_for(tmp_path: Path) -> None:
    run_tiny(tmp_path / "x")
    assert main(["train", "--resume", "--out", str(tmp_path / "x"), "--epochs", "3"]) == 0
    assert (asked(tmp_path / "x")["epochs"], asked(tmp_path / "x")["rule"]) == (3, "clapp++")


def test_compare_takes_one(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("rules: clapp++\ndata: digits\nseeds: 1\nlabels: [10, all]\n", encoding="utf-8")
    given = flags.parse(["compare", "--config", str(file), "--out", "c", "--seeds", "3"])
    assert isinstance(given, flags.Compare)
    assert (given.rules, given.labels, given.seeds, given.out) == (("clapp++",), ("10", "all"), 3, Path("c"))
    flagfile.write(tmp_path / "flags.yaml", given)
    kept = {"rules": ("clapp++",), "data": "digits", "seeds": 3, "labels": ("10", "all")}
    assert flagfile.read(tmp_path, flags.Compare) == kept
    assert main(["compare", "--config", str(file)]) == 2
    assert "--out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("batchsize: 3", "unknown key in {f} 'batchsize': did you mean 'batch-size'"),
        ("config: other.yaml", "unknown key in {f} 'config'"),
        ("format: 2\nrule: clapp", "{f} has format 2, this version of localssl reads 1"),
        ("format: 1\nmean: [0.5]\naugmentation: {}", "{f} lacks rule, "),
        ("epochs: many", "{f}: epochs is 'many', expected a whole number"),
        ("epochs: true", "expected a whole number"),
        ("lr: fast", "expected a number"),
        ("download: 1", "expected True or False"),
        ("patches: 4 4 2", "expected several in a list, each a whole number"),
        ("schedule: linear", "expected 'constant' or 'cosine'"),
        ("rule: 3", "expected a text"),
        ("batch-size: 3\nbatch_size: 4", "{f} has batch_size twice"),
        ("rule: [", "{f} is not readable YAML"),
        ("- rule", "{f} holds no flags"),
    ],
)
def test_refused(text: str, said: str, tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "f.yaml"
    file.write_text(text, encoding="utf-8")
    assert main(["train", "--config", str(file), "--out", str(tmp_path / "x")]) == 2
    line = capsys.readouterr().err
    assert said.format(f=file) in line
    assert line.count("\n") == 1
    assert not (tmp_path / "x").exists()
    with pytest.raises(UsageError):
        localssl.train(config=file, out=tmp_path / "x")


def test_no_such_file(tmp_path: Path, capsys: Capture) -> None:
    assert main(["train", "--config", str(tmp_path / "none.yaml")]) == 2
    assert "there is no such file" in capsys.readouterr().err


def test_what_a_run_came_to_is_no_file_for_compare(tmp_path: Path, capsys: Capture) -> None:
    run = run_tiny(tmp_path / "x")
    assert main(["compare", "--config", str(run.path / "config.yaml"), "--out", str(tmp_path / "y")]) == 2
    assert "is what a run's flags came to" in capsys.readouterr().err


def test_every_flag_survives_the_file(tmp_path: Path) -> None:
    """Whatever a flag's type: written and read again it is the same."""
    values = {"str | None": "ä b", "Path | None": Path("p q"), "bool": True, "int | None": 7, "float": 0.125, "int": 9}
    values |= {"float | None": 1e-9, "tuple[int, ...] | None": (1, 2), "tuple[str, ...]": ("a=1", "b=x y")}
    for field in dataclasses.fields(TrainConfig):
        kind = str(field.type)
        if field.name in flagfile.NOT_KEPT:
            continue
        choices = [c.strip("'\"") for c in kind.partition("[")[2].partition("]")[0].split(", ")]
        value = values[kind] if kind in values else choices[-1]
        value = (value,) if kind.startswith("tuple[Literal") else value
        flagfile.write(tmp_path / "f.yaml", dataclasses.replace(TrainConfig(), **{field.name: value}))
        assert flagfile.read(tmp_path / "f.yaml", TrainConfig) == {field.name: value}


def test_code_is_found_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = {"rule": "mine.py:R", "data": "npz:a.npz", "rule_options": ("a=b.py",)}
    flagfile.write(tmp_path / "f.yaml", TrainConfig(**given))  # pyright: ignore[reportArgumentType]
    assert flagfile.read(tmp_path / "f.yaml", TrainConfig) == {**given, "rule": f"{tmp_path / 'mine.py'}:R"}


def test_a_file_of_ones_own_is_named_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = TrainConfig(rule=f"{tmp_path / 'mine.py'}:R", data="other.py:f", own=(Path("mine.py"),))
    assert given.own_files() == ["mine.py", "other.py"]
