"""The examples run."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
import torch

from localssl import rules
from localssl.runs.config import TrainConfig
from localssl.training.train import train

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def test_own_rule(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "own_rule.py"))["main"](steps=21)
    printed = capsys.readouterr().out
    assert "step 20" in printed
    assert "block 5: cosine with backpropagation 1.00" in printed


def test_align_own(capsys: pytest.CaptureFixture[str]) -> None:
    rows = runpy.run_path(str(EXAMPLES / "align_own.py"))["main"](steps=5)
    printed = capsys.readouterr().out
    assert "Agree  block 3:  1.00" in printed
    assert {row.rule for row in rows} == {"Agree", "clapp"}


def test_my_rule(tmp_path: Path) -> None:
    said: list[str] = []
    name = f"{EXAMPLES / 'my_rule.py'}:MyRule"
    run = train(TrainConfig(rule=name, data="digits", out=tmp_path / "run", epochs=1, width=0.25), said.append)
    assert run.config.make_rule() == rules.get(name)
    assert not [line for line in said if "warning" in line]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_integer_update(tmp_path: Path, capsys: pytest.CaptureFixture[str], bits: int) -> None:
    """NumPy's int64 gives the integers that were recorded; from another weight it does not."""
    example = runpy.run_path(str(EXAMPLES / "integer_update.py"))
    first, *_ = example["main"](bits=bits, out=tmp_path / "vectors.json")
    assert capsys.readouterr().out.count(": 0 of ") == 5
    (written, *others) = json.loads((tmp_path / "vectors.json").read_text())
    assert len(others) == 4
    assert written["dB"] == first["dB"].tolist()
    assert first["dB"].any()
    first["B"][...] = -first["B"]
    assert (example["update"](first)["dW"] != first["dW"]).any()


def test_black_box(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = runpy.run_path(str(EXAMPLES / "black_box.py"))
    found = example["main"](data_root=tmp_path, seeds=2, epochs=1, limit=128, out=tmp_path / "x.csv")
    assert "using the embedded digits" in capsys.readouterr().out
    assert len(found) == 5
    assert found["clapp++dfb, black boxes"] != found["untrained, black boxes"]
    comment, header, *rows = (tmp_path / "x.csv").read_text().splitlines()
    assert "digits, 16 x 16; 128 images, 1 epochs" in comment
    assert header == "network,accuracy,low,high,seeds"
    assert len(rows) == 5


def test_the_twins_of_the_black_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of the example's two transforms give the same, and the quantiser has a derivative of 0 and 1."""
    example = runpy.run_path(str(EXAMPLES / "black_box.py"))
    x = torch.randn(5, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    monkeypatch.setitem(example["scatter"].__globals__, "NOISE", 0.0)
    torch.testing.assert_close(torch.from_numpy(example["scatter"](x.numpy())).float(), example["Scatter"]()(x))
    y = (3 * x).requires_grad_()
    z = example["Quantise"]()(y)
    torch.testing.assert_close(z, torch.from_numpy(example["quantise"](y.detach().numpy())))
    assert len(z.unique()) == 8
    z.sum().backward()
    assert torch.equal(y.grad, ((y >= 0) & (y <= 4)).float())
