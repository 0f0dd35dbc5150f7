"""Updates that descend no loss: no cosine with its backpropagation, in whichever way it is asked for."""

from __future__ import annotations

import html
from pathlib import Path

import pytest
import torch

import localssl
from localssl import alignment, encoders, rules
from localssl.alignment import references
from localssl.callbacks import Align
from localssl.cli import main
from localssl.errors import UsageError
from localssl.learner import Learner
from localssl.report import card, measured
from localssl.runs.config import program
from localssl.training.train import train

from .train_util import BUILT_IN, rows, run_tiny, tiny

SAYS = "softhebb's updates descend no loss whose backpropagation they could be held against"
OTHER = f"{SAYS}; choose the reference bp-clapp\\+\\+ or bp-infonce"


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half of a run as versions left it that measured what descends nothing, too."""
    out = tmp_path_factory.mktemp("runs") / "old"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(references, "refusal", lambda rule: None)  # pyright: ignore[reportUnknownLambdaType]
        patched.setattr(alignment, "refusal", lambda rule: None)  # pyright: ignore[reportUnknownLambdaType]
        run_tiny(out, rule="softhebb", epochs=1, align_every=1)
        assert main(["align", str(out), "--batches", "2", "--batch-size", "8", "--threads", "1"]) == 0
    return out


@pytest.fixture
def learner() -> Learner:
    torch.manual_seed(0)
    rule = rules.get("softhebb")
    return Learner(encoders.build("vgg5", (1, 16, 16), 0.25, rule.encoder_options), rule, (1, 16, 16)).eval()


def test_which_rules_have_none() -> None:
    assert [name for name in BUILT_IN if alignment.refusal(rules.get(name))] == ["softhebb"]


def test_in_python(learner: Learner) -> None:
    """Neither as the rule nor as another rule's reference; held against another loss it has one."""
    pairs = [torch.randn(2, 8, 1, 16, 16).unbind()]
    encoder = learner.encoder
    with pytest.raises(UsageError, match=OTHER):
        alignment.measure(encoder, learner, pairs)
    with pytest.raises(UsageError, match=OTHER):
        alignment.measure(
            encoder, {"softhebb": learner, "clapp": Learner(encoder, rules.get("clapp"), (1, 16, 16))}, pairs
        )
    with pytest.raises(UsageError, match=OTHER):
        Align(learner, pairs)()
    other = Learner(encoder, rules.get("clapp++"), (1, 16, 16))
    with pytest.raises(UsageError, match=SAYS):
        alignment.measure(encoder, other, pairs, reference=learner)
    found = alignment.measure(encoder, learner, pairs, reference=other)
    assert found[0].reference == "backpropagation of the clapp++ given"
    assert -1 <= found[0].mean <= 1


def test_of_a_run(old: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = (old / "align.csv").read_bytes()
    assert main(["align", str(old), "--batches", "2", "--batch-size", "8", "--threads", "1"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line == f"localssl: {OTHER}".replace("\\", "")
    with pytest.raises(UsageError, match=OTHER):
        localssl.align(old, batches=2, batch_size=8)
    assert (old / "align.csv").read_bytes() == before
    against = ["--reference", "bp-clapp++", "--fit-batches", "1"]
    assert main(["align", str(old), "--batches", "2", "--batch-size", "8", "--threads", "1", *against]) == 0


def test_what_is_advised_can_be_done(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """After training and in a notebook: the command that works."""
    small = "--data digits --epochs 0 --width 0.05 --limit-images 32 --batch-size 16 --threads 1"
    for rule, against, call in (
        ("softhebb", " --reference bp-clapp++", "run.align(reference='bp-clapp++')"),
        ("clapp++", "", "run.align()"),
    ):
        out = tmp_path / rule
        assert main(["train", "--rule", rule, *small.split(), "--out", str(out)]) == 0
        assert f" align {out}{against}, " in capfd.readouterr().out
        assert f", {call}, " in html.unescape(card.html(localssl.open_run(out)))


def test_while_training(old: Path, tmp_path: Path) -> None:
    """Typed, it is refused before anything is written; a run that was begun with it goes on without."""
    with pytest.raises(UsageError, match=f"--align-every: {SAYS}; leave it out"):
        run_tiny(tmp_path / "new", rule="softhebb", align_every=1)
    assert not (tmp_path / "new").exists()
    said: list[str] = []
    assert rows(old)[-1]["align_1"]
    went_on = train(tiny(old, rule=None, data=None, lr=None, epochs=2, resume=True), report=said.append)
    assert f"no alignment while training: {SAYS}" in said
    assert went_on.config.align_every == 0
    assert rows(old)[-1]["align_1"] == ""


def test_on_the_page(old: Path) -> None:
    """Not what earlier versions measured, and how to measure what can be."""
    (old / "align-bp-clapp++.csv").unlink(missing_ok=True)
    assert measured.found(old, measured.ALIGNMENTS)
    assert main(["report", str(old), "--images", "20"]) == 0
    text = html.unescape((old / "report.html").read_text(encoding="utf-8"))
    assert f"No cosine with backpropagation of its own loss: {SAYS}." in text
    assert f"Not measured at the last checkpoint yet: {program()} align {old} --reference bp-clapp++" in text
    assert "align.csv" not in text
    assert "Alignment while training" not in text
