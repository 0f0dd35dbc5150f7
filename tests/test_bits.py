"""Rules at several precisions side by side: rows, table, pictures; the descent by powers of two."""

from __future__ import annotations

import csv
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from localssl import cli, experiments
from localssl.experiments import bits, precision
from localssl.experiments.cells import Settings
from localssl.experiments.comparison import Compared
from localssl.experiments.rows import Row, Study, named, untrained_row
from localssl.optimizer import ShiftSGD
from tests.util import usage_error


def test_the_bits_of_a_command_line() -> None:
    assert precision.bits_of(("4,6", "8", "4")) == [4, 6, 8]
    assert precision.bits_of(()) == []
    for wrong in ("1", "17", "4.5", "float", "-2"):
        with usage_error("from 2 to 16"):
            precision.bits_of((wrong,))


def test_rows() -> None:
    found = precision.rows(named(["clapp++", "softhebb"], "digits"), [4, 8], {"dead": (0.1,), "mismatch": ()})
    assert [row.label for row in found][:5] == [
        "clapp++ float",
        "clapp++ 4 bits",
        "clapp++ 4 bits dead 0.1",
        "clapp++ 8 bits",
        "clapp++ 8 bits dead 0.1",
    ]
    assert found[0].changes == {"optimizer": "shift-sgd"}
    assert found[2].changes == {"bits": 4, "dead": 0.1}
    assert found[5].changes == {"lr": 2.0**-7}, "SoftHebb keeps its own descent, by a power of two"
    with usage_error("'lpl' cannot learn in integers: its update is not made of three factors"):
        precision.rows(named(["clapp++", "lpl"], "digits"), [4])


def record(accuracy: float, cosine: float, seed: int) -> dict[str, object]:
    return {
        "seed": seed,
        "probe": [["all", "linear", "all", accuracy]],
        "align": [["1", cosine, 0, 0], ["2", cosine, 0, 0], ["3", 1.0, 0, 0]],
        "saturated": None,
        "facts": [],
        "images": 64,
        "config": {"epochs": 1, "encoder": {"name": "vgg5"}, "lr": 0.1},
    }


def test_table_and_pictures(tmp_path: Path) -> None:
    rows = precision.rows([Row("clapp++ f=linear", "clapp++", {"f": "linear"})], [4], {"dead": (0.2,)})
    compared = [Compared(untrained_row(()), [record(10, 0, s) for s in (0, 1)], None, "")]
    compared += [
        Compared(row, [record(50 + i + s, 0.5 + i / 10, s) for s in (0, 1)], "untrained", "")
        for i, row in enumerate(rows)
    ]
    made = precision.write(compared, Study("digits"), Settings(tmp_path))
    assert [path.name for path in made] == ["bits.csv", "bits.png", "dead.png"]
    lines = [line for line in made[0].read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    table = list(csv.DictReader(lines))
    assert [(r["rule"], r["bits"], float(r["dead"]), r["quantity"], float(r["mean"])) for r in table] == [
        ("clapp++ f=linear", "float", 0.0, "accuracy", 50.5),
        ("clapp++ f=linear", "float", 0.0, "cosine", 0.5),
        ("clapp++ f=linear", "4", 0.0, "accuracy", 51.5),
        ("clapp++ f=linear", "4", 0.0, "cosine", 0.6),
        ("clapp++ f=linear", "4", 0.2, "accuracy", 52.5),
        ("clapp++ f=linear", "4", 0.2, "cosine", 0.7),
    ]
    assert all(path.stat().st_size > 5000 for path in made[1:])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--bits", "1"], "bits 1: use a whole number from 2 to 16"),
        (["--bits", "4,17"], "bits 17: use a whole number from 2 to 16"),
        (["--bits", "8", "--dead", "2"], "--dead 2.0: use a number from 0 to 1"),
        (["--dead", "0.1"], "go with --bits"),
        (["--bits", "8", "--batch-size", "24"], "use a power of two"),
        (["--bits", "8", "--rules", "bp-clapp++"], "not local"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_refusals(flags: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rules = [] if "--rules" in flags else ["--rules", "clapp++"]
    assert cli.main(["compare", "--data", "digits", "--out", str(tmp_path / "x"), *rules, *flags]) == 2
    said = capsys.readouterr().err.strip()
    assert words in said
    assert "\n" not in said
    assert not (tmp_path / "x").exists()


def test_the_study() -> None:
    assert experiments.EXPERIMENTS["bits"] is bits.run
    rows = precision.rows(named(bits.RULES, bits.STUDY.data), bits.BITS)
    assert len(rows) == 4 * (1 + 7)


def words_and_numbers(file: Path) -> tuple[str, list[float]]:
    text, number = file.read_text(encoding="utf-8"), r"(?<![\w.])-?\d+\.\d+(?![\w.])"
    return re.sub(number, "#", text), [float(found) for found in re.findall(number, text)]


def test_the_committed_study_is_what_its_cells_come_to(tmp_path: Path) -> None:
    """Nothing is trained; what stands above the numbers, and in the picture, names the data."""
    there = Path(__file__).resolve().parents[1] / "docs" / "results" / "bits"
    shutil.copytree(there / "cells", tmp_path / "cells")
    bits.run(Settings(tmp_path, threads=1))
    for name in ("bits.csv", "table.csv", "seeds.csv"):
        (words, found), (text, numbers) = words_and_numbers(tmp_path / name), words_and_numbers(there / name)
        assert words == text, name
        assert found == pytest.approx(numbers, rel=1e-14, abs=0), name  # Python 3.12 adds floats more exactly than 3.11
    assert (there / "bits.csv").read_text(encoding="utf-8").startswith("# mnist: trained on 6,000 images, vgg6")


def test_a_closure_is_asked_for_loss_and_gradient() -> None:
    w = nn.Parameter(torch.ones(3))
    optimizer = ShiftSGD([w], 0.5, shifted=False)

    def closure() -> float:
        optimizer.zero_grad()
        loss = w.square().sum()
        loss.backward()  # pyright: ignore[reportUnknownMemberType]
        return loss.item()

    assert optimizer.step(closure) == 3
    assert w.tolist() == [0, 0, 0]


def test_descent_by_powers_of_two() -> None:
    torch.manual_seed(0)
    w = nn.Parameter(torch.randn(50, 40))
    before, rate = w.detach().clone(), 2.0**-4
    optimizer = ShiftSGD([w], rate)
    g = 1e-5 * torch.randn(50, 40)
    w.grad = g.clone()
    optimizer.step()
    u, s = (2.0 ** round(math.log2(float(x.abs().mean()))) for x in (before, g))
    expected = before - rate * u * (g / s).clamp(-8, 8)
    torch.testing.assert_close(w.detach(), expected)
    assert 0.5 < float((w.detach() - before).abs().mean()) / (rate * float(before.abs().mean())) < 2
    for _ in range(3):  # a gradient a thousand times as large is met by doublings, and clipped until then
        before = w.detach().clone()
        w.grad = 1000 * g
        optimizer.step()
        assert float((w.detach() - before).abs().max()) <= 8 * rate * u * 1.001
    assert optimizer.state[w]["s"] == 8 * s
    w.grad = torch.zeros_like(w)
    before = w.detach().clone()
    optimizer.step()
    assert torch.equal(w, before)
    again = ShiftSGD([w], rate)
    again.load_state_dict(optimizer.state_dict())
    assert again.state[w] == optimizer.state[w]
