"""rule.json: every local rule as data, reproduced by an interpreter that knows NumPy alone."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from localssl import certificate, rules
from localssl.blocks import BlackBox
from localssl.cli import main
from localssl.encoders import Encoder
from localssl.errors import UsageError
from localssl.rulefile import OPS
from localssl.runs.run import Run

from .rule_util import INTERPRETER, READS, ROOT, made, worst
from .train_util import run_tiny

TABLE = (ROOT / "docs" / "certificate.md").read_text(encoding="utf-8")
LOCAL = re.findall(r"^\| `([^`]+)` \| local \|", TABLE, re.MULTILINE)  # other tests hold the table against the code


def test_there_are_local_rules() -> None:
    assert {"clapp++", "clapp++dfb", "ff", "scff", "phyll", "clapp-illing"} <= set(LOCAL)


@pytest.mark.parametrize("name", LOCAL)
def test_the_interpreter_reproduces_every_local_rule(name: str) -> None:
    found, learner = made(name)
    assert worst(found) < 1e-9
    (vectors,) = found["vectors"]
    assert vectors["arithmetic"] == "float64"
    ops = [op for program in vectors["programs"] for stage in program["stages"] for op in stage["ops"]]
    assert {op["op"] for op in ops} <= set(OPS) == set(READS["OPS"])
    assert len(json.dumps(found)) < 2e6
    trained = {name for name, p in learner.named_parameters() if p.requires_grad}
    assert {update["update"] for update in found["locality"]["updates"]} == trained
    for step in vectors["steps"]:
        assert step["updates"].keys() == trained
        assert all(np.any(READS["array"](update)) for update in step["updates"].values())


POOLS = {  # whose places an export must find: before the map's edge, and beyond what one byte of an index says
    "padded": (nn.MaxPool2d(3, 2, padding=1), 8),
    "odd and of more than 256 units": (nn.MaxPool2d(2), 27),
}


@pytest.mark.parametrize("what", POOLS)
def test_the_interpreter_finds_the_places_of_max_pools(what: str) -> None:
    pool, side = POOLS[what]
    encoder = Encoder.from_blocks([nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), pool)])
    found, learner = made("clapp++", encoder, patches=(None,), side=side)
    assert learner.engine == "hebbian"
    assert worst(found) < 1e-9


def test_the_interpreter_is_short_and_needs_numpy_alone() -> None:
    text = INTERPRETER.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    imported = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").partition(".")[0])
    assert imported == {"json", "sys", "numpy"}
    assert not [name for name in rules.names() if re.search(rf"[\"']{re.escape(name)}[\"']", text)]


def test_a_wrong_number_is_seen() -> None:
    found, _ = made("clapp++dfb")
    step = found["vectors"][0]["steps"][1]
    update = step["updates"]["encoder.blocks.0.0.weight"]
    before = update["values"][0]
    update["values"][0] += 1e-6 * max(map(abs, update["values"]))
    assert worst(found) > 1e-9
    update["values"][0] = before
    assert worst(found) < 1e-9
    for op in found["vectors"][0]["programs"][0]["stages"][-1]["ops"]:
        if op["op"] == "subtract":
            op["op"] = "add"
    assert worst(found) > 1e-3


@pytest.mark.parametrize("optimizer", ["adam-factored", "adam-l2", "sgd", "plain-sgd", "shift-sgd"])
def test_optimisers(optimizer: str) -> None:
    found, learner = made("clapp++dfb", optimizer=optimizer)
    assert worst(found) < 1e-9
    assert found["version"] == (2 if optimizer == "shift-sgd" else 1)
    names = {entry["name"] for entry in found["state"]}
    assert names == set(found["vectors"][0]["state"])
    if optimizer == "adam-factored":
        assert found["optimiser"]["factored"] == [n for n, _ in learner.named_parameters() if "projections" in n]


def test_forms_and_engines() -> None:
    """Options of the rule, other pools; and both engines write another program with the same vectors."""
    frozen, _ = made("clapp++dfb", options={"projection": "low-rank-frozen", "rank": 2, "f": "softplus"})
    assert worst(frozen) < 1e-9
    assert "projections.feedback.0.inner" in frozen["vectors"][0]["state"]
    blocks = [nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.AvgPool2d(2))]
    blocks += [nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.ReLU())]
    one, _ = made("clapp++both", Encoder(blocks), {"loss_type": 1, "negatives": "random"}, patches=(1, None))
    other, _ = made(
        "clapp++both", Encoder(blocks), {"loss_type": 1, "negatives": "random"}, patches=(1, None), engine="autograd"
    )
    assert max(worst(one), worst(other)) < 1e-9
    assert one["vectors"][0]["programs"] != other["vectors"][0]["programs"]
    for a, b in zip(one["vectors"][0]["steps"], other["vectors"][0]["steps"], strict=True):
        assert [name for name in a["inputs"] if name.startswith("draw")]  # negatives
        for name in a["updates"]:
            here, there = (READS["array"](step["updates"][name]) for step in (a, b))
            np.testing.assert_allclose(here, there, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("engine", ["auto", "autograd"])
@pytest.mark.parametrize("pool", [nn.MaxPool1d(2), nn.AvgPool1d(2)])
def test_series(pool: nn.Module, engine: str) -> None:
    """Convolutions and pools along time, which the engine runs as maps of one row."""
    blocks = [nn.Sequential(nn.Conv1d(2, 6, 5, padding=2), nn.ReLU(), pool)]
    blocks += [nn.Sequential(nn.Conv1d(6, 5, 3, padding=1), nn.ReLU())]
    found, _ = made("clapp++dfb", Encoder(blocks), patches=(4, 2), engine=engine, shape=(2, 16))
    assert worst(found) < 1e-9
    assert found["network"]["image"] == [2, 16]


def test_what_is_read_from_where_and_when() -> None:
    own, _ = made("clapp++")
    above, learner = made("clapp++dfb")
    assert [s.get("after") for s in own["schedule"]["order"] if "learn" in s] == [1, 2, 3]
    assert [s.get("after") for s in above["schedule"]["order"] if "learn" in s] == [3, 3, 3]
    (update,) = (u for u in above["locality"]["updates"] if u["update"] == "encoder.blocks.0.0.weight")
    reads = {r["what"]: r for r in update["reads"]}
    assert {"pre", "gate", "modulator", "own B", "feedback"} <= set(reads)
    program = above["vectors"][0]["programs"][0]
    ops = {op["out"]: op["op"] for stage in program["stages"] for op in stage["ops"]}
    assert reads["pre"]["arrays"] == ["x"]
    assert {ops[at] for at in reads["pre"]["ops"]} == {"conv-weight-gradient"}
    assert reads["feedback"]["source"] == "z^3"
    assert reads["feedback"]["arrays"] == [program["signals"]["z^3"]]
    assert reads["feedback"]["layers away"] == 2
    assert reads["own B"]["arrays"] == ["projections.feedback.0.weight"]
    assert all(r["ops"] for what, r in reads.items() if what != "other samples")
    cost = certificate.certify(learner).cost
    assert above["counts"]["all"] == {"multiply-accumulates": cost.operations, "bytes": cost.bytes}
    sizes = {n: p.numel() for n, p in learner.named_parameters()}
    synapses = [s for s in above["state"] if s["of"] == "synapse"]
    assert {s["name"]: int(np.prod(s["shape"])) for s in synapses} == sizes
    addresses = [(s["address"], int(np.prod(s["shape"]))) for s in above["state"]]
    assert all(a + n == b for (a, n), (b, _) in pairwise(addresses))
    assert {h["made by block"] for h in above["held"]} == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("name", "why"),
    [("bp-clapp++", "weight transport"), ("lpl", "batch statistics"), ("dfa", "error of a layer above")],
)
def test_a_rule_that_is_not_local_is_refused(name: str, why: str) -> None:
    with pytest.raises(UsageError, match=rf"{re.escape(name)} is not local \(.*{why}"):
        made(name)


def test_what_cannot_be_written_down_is_refused() -> None:
    box = nn.Sequential(BlackBox(lambda x: x, (8,)), nn.Linear(8, 4), nn.ReLU())
    first = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU())
    with pytest.raises(UsageError, match="in block 2 is a function, which no manifest can hold"):
        made("clapp++", Encoder([first, box]), patches=None)
    erf = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.GELU())
    with pytest.raises(UsageError, match="no operation for PyTorch's gelu"):
        made("clapp++", Encoder([erf]), patches=None)

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(400, 64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1) @ self.weight.T

    with pytest.raises(UsageError, match=r"no stacks of layers have no small twin, and 25,600 weights"):
        made("clapp++", Encoder([Wide()]), patches=None)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_tiny(tmp_path_factory.mktemp("runs") / "x", epochs=1, rule="ff")


def test_the_command(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run.path), "--rule"]) == 0
    file = run.path / "rule.json"
    assert capsys.readouterr().out.startswith(f"written: {file} (")
    found = json.loads(file.read_text(encoding="utf-8"))
    assert (found["format"], found["version"], found["rule"]["name"]) == ("localssl rule", 1, "ff")
    shapes = {entry["name"]: tuple(entry["shape"]) for entry in found["state"]}
    assert all(shapes[n] == tuple(p.shape) for n, p in run.learner().named_parameters())
    done = subprocess.run([sys.executable, str(INTERPRETER), str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ff: 3 steps, at most ")
    found["vectors"][0]["steps"][2]["state"]["encoder.blocks.0.1.bias"]["values"][0] += 1e-3
    (tmp_path / "wrong.json").write_text(json.dumps(found), encoding="utf-8")
    wrong = [sys.executable, str(INTERPRETER), str(tmp_path / "wrong.json")]
    assert subprocess.run(wrong, capture_output=True, check=False).returncode == 1


def test_refusals_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opened = run_tiny(tmp_path / "x", epochs=0, rule="bp-clapp++", encoder="mlp", width=0.02)
    capsys.readouterr()
    for flags, says in (
        (["--rule"], "bp-clapp++ is not local (weight transport; gradient through a layer above)"),
        (["--rule", "--onnx"], "export needs one of --onnx, --nir, --rule and --embeddings"),
    ):
        assert main(["export", str(opened.path), *flags]) == 2
        said = capsys.readouterr().err
        assert says in said
        assert said.count("\n") == 1
    assert not (opened.path / "rule.json").exists()
