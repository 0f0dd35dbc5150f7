"""Every command as a function, and the card that a notebook shows of a run."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import localssl
from localssl import api
from localssl.cli import flags
from localssl.errors import RunError, UsageError
from localssl.report import measured
from localssl.runs.config import TrainConfig
from localssl.training.train import train

from .browser_util import complaints, keep_screenshot, needs_chromium, opened, requests
from .compare_util import in_this_process

TINY: dict[str, Any] = {
    "rule": "clapp++",
    "data": "digits",
    "epochs": 1,
    "limit_images": 64,
    "batch_size": 16,
    "width": 0.25,
    "threads": 1,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> api.TrainedRun:
    return localssl.train(**TINY, out=str(tmp_path_factory.mktemp("runs") / "x"), rule_options={"margin": 2.0})


def test_train_is_a_function(run: api.TrainedRun) -> None:
    importlib.import_module("localssl.training.train")  # of another name, so that it does not take the function's place
    assert localssl.train is api.train
    assert run.config.rule_options == {"margin": 2.0}
    assert (run.path / "encoder.safetensors").is_file()
    assert localssl.open_run(run.path) == run
    assert repr(run) == f"TrainedRun({str(run.path)!r}: {run.config.rule} on digits, {run.config.epochs} epochs)"


def test_a_run_that_repeats_another(run: api.TrainedRun) -> None:
    said: list[str] = []
    again = localssl.train(expect=str(run.path), report=said.append)
    assert again.path == run.path.with_name("x-again")
    assert said[-1].startswith(f"as in {run.path}: ")
    with pytest.raises(RunError, match="does not repeat"):
        localssl.train(**{**TINY, "out": run.path.with_name("other")}, seed=1, expect=run.path, report=said.append)
    with pytest.raises(UsageError, match=r"call localssl\.dry_run"):
        localssl.train(**TINY, dry_run=True)


def test_from_run_to_report(run: api.TrainedRun, capsys: pytest.CaptureFixture[str]) -> None:
    results = run.probe(labels=["10", "all"], threads=1)
    assert set(results) == {"untrained", "clapp++"}
    said = capsys.readouterr().out  # every accuracy in one line with the untrained encoder's
    lines = {
        tuple(cells[:3]): cells[3:]
        for line in said.splitlines()
        if len(cells := [c.strip() for c in line.split("│")[1:-1]]) == 8
    }
    for trained, untrained in zip(results["clapp++"].rows, results["untrained"].rows, strict=True):
        cells = lines[trained.layer, trained.method, trained.labels]
        shown = [float(cells[i].replace("−", "-")) for i in (0, 2, 4)]
        values = [trained.accuracy, untrained.accuracy, trained.accuracy - untrained.accuracy]
        assert shown == pytest.approx(values, abs=0.006)
        assert bool(cells[1]) == bool(cells[3]) == (trained.low is not None)
    aligned = run.align(batches=2)
    assert {row.block for row in aligned.rows} == {1, 2, 3, 4, 5}
    page = run.report(images=20)
    assert page == run.path / "report.html"
    assert page.is_file()
    out = run.export(embeddings=True, out=str(run.path / "z.npy"))
    assert out.is_file()


def test_a_later_probe_keeps_the_budgets_of_an_earlier_one(run: api.TrainedRun, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "x")
    copy, file = localssl.open_run(tmp_path / "x"), tmp_path / "x" / "probe-fast.csv"
    file.unlink(missing_ok=True)

    def rows() -> dict[tuple[str, ...], str]:
        (probe,) = measured.found(copy.path, measured.PROBES)
        found = {(r["encoder"], r["labels"], r["method"], r["layer"]): r["accuracy"] for r in probe.rows}
        assert len(found) == len(probe.rows)
        return found

    copy.probe(labels=["all"], limit_images=300, threads=1)
    before = rows()
    copy.probe(labels=["1"], draws=2, limit_images=300, threads=1)
    both = rows()
    assert {key: both[key] for key in before} == before
    assert list(dict.fromkeys(key[:2] for key in both)) == [
        (e, b) for e in ("untrained", "clapp++") for b in ("1", "all")
    ]
    first = file.read_text(encoding="utf-8").splitlines()[0]
    assert "(1 label per class: fixed" in first
    assert "; all labels: on a stratified 20% of the training labels" in first

    copy.probe(labels=["1"], draws=3, limit_images=300, threads=1)  # in place of the two draws
    assert rows().keys() == both.keys()
    assert "mean of 3 stratified draws" in (first := file.read_text(encoding="utf-8").splitlines()[0])
    assert "mean of 2" not in first

    copy.probe(labels=["10"], draws=1, limit_images=500, threads=1)  # of other images
    assert {key[1] for key in rows()} == {"10"}
    copy.probe(labels=["1"], draws=1, limit_images=500, threads=1)
    assert {key[1] for key in rows()} == {"1", "10"}
    later = file.stat().st_mtime + 10
    os.utime(copy.path / "encoder.safetensors", (later, later))  # as by a run that went on
    copy.probe(labels=["1"], draws=1, limit_images=500, threads=1)
    assert {key[1] for key in rows()} == {"1"}


def test_the_card(run: api.TrainedRun) -> None:
    shown = run._repr_html_()
    assert "clapp++ on digits" in shown
    assert str(run.path) in shown
    assert "<svg" in shown
    assert "<script" not in shown
    row = localssl.runs.metrics.read(run.path)[-1]
    assert f"{int(row['step'])} (1 epoch, " in shown
    assert re.search(r'aria-label="Loss by block over 1 epoch\. block 1: from', shown)


def test_a_card_of_nothing_yet(tmp_path: Path) -> None:
    run = localssl.train(**{**TINY, "epochs": 0}, out=tmp_path / "x", report=lambda line: None)
    assert "<svg" not in run._repr_html_()
    assert "run.probe()" in run._repr_html_()


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_card_in_a_browser(scheme: str, run: api.TrainedRun, tmp_path: Path) -> None:
    page = tmp_path / "card.html"
    page.write_text(f'<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,">{run._repr_html_()}', "utf-8")
    with opened(page, 700, scheme) as driver:
        keep_screenshot(driver, f"card-{scheme}")
        assert complaints(driver) == []
        assert requests(driver) == []
        ink = driver.execute_script("return getComputedStyle(document.querySelector('svg .role-axis-label text')).fill")
        assert ink == ("rgb(26, 26, 26)" if scheme == "light" else "rgb(230, 230, 230)")


def test_other_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (certificate,) = api.certify("clapp++dfb")
    assert certificate.verdict == "local"
    assert all(outcome.passed for outcome in api.theory(cases=1))
    api.reproduce()
    assert "demo" in capsys.readouterr().out
    assert {f.about for f in api.doctor(quick=True)} >= {"versions", "data"}
    estimate = api.dry_run(**TINY)
    assert estimate.steps == 4
    in_this_process(monkeypatch)
    study: dict[str, Any] = {"data": "digits", "epochs": 0, "seeds": 1, "limit_images": 32, "batch_size": 8}
    study |= {"align_batches": 0, "width": 0.25, "probe_images": 200, "threads": 1}
    lines = api.compare(out=tmp_path / "c", rules=["clapp++"], **study)
    assert [line.label for line in lines] == ["untrained", "clapp++"]


COMMANDS = {
    "train": flags.Train,
    "probe": flags.Probe,
    "align": flags.Align,
    "compare": flags.Compare,
    "certify": flags.Certify,
    "theory": flags.Theory,
    "reproduce": flags.Reproduce,
    "report": flags.Report,
    "export": flags.Export,
    "doctor": flags.Doctor,
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_one_documented_function(name: str) -> None:
    function = getattr(api, name)
    assert f"``localssl {name}``" in function.__doc__
    shown = inspect.signature(function).parameters
    absent = {field.name for field in dataclasses.fields(COMMANDS[name])} - set(shown)
    assert absent == ({"dry_run"} if name == "train" else set())  # a function of its own
    with pytest.raises(UsageError, match=r"unknown option of \w+ 'epohcs'"):
        function(*(["x"] if name in ("probe", "align", "export") else []), epohcs=3)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"optimizer": "adamm"}, "unknown optimizer 'adamm': did you mean 'adam'"),
        ({"schedule": "cosin"}, "unknown schedule 'cosin': did you mean 'cosine'"),
        ({"across": "proces", "devices": 2}, "unknown across 'proces'"),
        ({"precision": "32"}, "unknown precision '32'"),
        ({"epochs": "3"}, "--epochs '3': give a whole number or None"),
        ({"width": "0.25"}, "--width '0.25': give a number"),
        ({"batch_size": 16.0}, "--batch-size 16.0: give a whole number"),
        ({"patches": 4}, "--patches 4: give several in a list, each a whole number or None"),
        ({"patches": (4, "2")}, "--patches: '2' in the list is not a whole number"),
        ({"rule_options": "margin=2"}, "--rule-options 'margin=2': give several in a list, each a text"),
        ({"resume": "no"}, "--resume 'no': give True or False"),
        ({"seed": True}, "--seed True: give a whole number"),
    ],
)
def test_values_that_no_flag_takes(options: dict[str, Any], says: str, tmp_path: Path) -> None:
    """A program may write anything; a misspelt choice trained by another rule of its own."""
    with pytest.raises(UsageError, match=re.escape(says)):
        localssl.train(**{**TINY, **options}, out=tmp_path / "x")
    with pytest.raises(UsageError, match=re.escape(says)):
        train(TrainConfig(**{**TINY, **options}, out=tmp_path / "x"))
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("command", "options", "says"),
    [
        (api.probe, {"protocol": "papr"}, "unknown protocol 'papr': did you mean 'paper'"),
        (api.probe, {"labels": [10]}, "--labels: 10 in the list is not '1' or '10' or 'all'"),
        (api.probe, {"labels": ["all", "5"]}, "--labels: '5' in the list is not '1' or '10' or 'all'"),
        (api.probe, {"own": ["nothere.py"]}, "--own nothere.py: there is no file"),
        (api.align, {"batches": "2"}, "--batches '2': give a whole number"),
        (api.export, {"split": "tets", "embeddings": True}, "unknown split 'tets': did you mean 'test'"),
        (api.report, {"images": 0.5}, "--images 0.5: give a whole number"),
    ],
)
def test_values_that_no_other_flag_takes(
    command: Callable[..., object], options: dict[str, Any], says: str, run: api.TrainedRun
) -> None:
    with pytest.raises(UsageError, match=re.escape(says)):
        command(run.path, **options)


def test_errors_are_raised(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown rule 'clap'"):
        localssl.train(rule="clap", data="digits", out=tmp_path / "x")
    with pytest.raises(UsageError, match="no run in"):
        localssl.open_run(tmp_path)
    assert issubclass(RunError, Exception)
