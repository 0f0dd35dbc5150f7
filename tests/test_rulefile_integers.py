"""rule.json of a run of --bits: whole numbers, which the interpreter gives to the last bit."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from localssl import encoders, rules
from localssl.cli import main
from localssl.encoders import Encoder
from localssl.encoders.layers import LengthNorm
from localssl.errors import UsageError
from localssl.grids import Grid
from localssl.learner import Learner
from localssl.rulefile import OPS, manifest

from .rule_util import INTERPRETER, READS, config_of, in_bits, worst
from .train_util import run_tiny

RULES = ("clapp", "clapp++", "clapp++dfb", "clapp++both")
OTHER = {  # another operation of the same operands
    **{"add": "subtract", "subtract": "add", "minimum": "maximum", "maximum": "minimum", "multiply": "add"},
    **{"less": "less-equal", "outside": "round", "maxpool": "sumpool", "sumpool": "maxpool"},
}


def whole(rule: dict[str, Any]) -> dict[str, Any]:
    (vectors,) = (v for v in rule["vectors"] if v["arithmetic"] == "integer")
    return vectors


def ops_of(rule: dict[str, Any]) -> Iterator[dict[str, Any]]:
    (program,) = whole(rule)["programs"]  # the same in all steps, whatever exponents do
    for stage in program["stages"]:
        yield from stage["ops"]


def seen(rule: dict[str, Any]) -> bool:
    """Whether the interpreter notices that a file is wrong."""
    try:
        return worst(rule, "integer") > 0
    except (ValueError, TypeError, IndexError):
        return True


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", RULES)
def test_whole_numbers_are_reproduced_to_the_last_bit(name: str, bits: int) -> None:
    found, learner = in_bits(name, bits)
    assert worst(found, "integer") == 0
    assert worst(found) < 1e-9
    assert [v["arithmetic"] for v in found["vectors"]] == ["float64", "integer"]
    vectors = whole(found)
    for step in [vectors, *vectors["steps"]]:
        assert {data["type"] for data in step["state"].values()} == {"int64"}
    ops = list(ops_of(found))
    assert {op["op"] for op in ops} <= set(OPS) == set(READS["OPS"])
    assert not {op["op"] for op in ops} & {"divide", "power", "avgpool", "exp", "sigmoid"}, "no shifts, adds, products"
    trained = {n for n, p in learner.named_parameters() if p.requires_grad}
    assert {u["update"] for u in found["locality"]["updates"]} == trained
    assert all(r["ops"] for u in found["locality"]["updates"] for r in u["reads"] if r["what"] != "other samples")
    for step in vectors["steps"]:
        assert set(step["updates"]) == trained | {f"{n} exponent" for n in trained}
        assert all(np.any(READS["array"](step["updates"][n])) for n in trained)


@pytest.mark.parametrize("bits", [4, 8])
def test_no_number_is_a_float_and_no_factor_wide(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = in_bits("clapp++both", bits)
    seen_wide: list[int] = []

    def watched(kind: str, operation: Any) -> Any:
        def run(*operands: Any, **how: Any) -> Any:
            result = operation(*operands, **how)
            assert all(np.asarray(o).dtype.kind in "ib" for o in (*operands, result)), kind
            if kind in ("conv", "matmul", "conv-weight-gradient"):
                assert all(np.abs(o).max() < 2 ** (bits - 1) for o in operands), kind
                seen_wide.append(int(np.abs(result).max()))
            return result

        return run

    for kind, operation in list(READS["OPS"].items()):
        monkeypatch.setitem(READS["OPS"], kind, watched(kind, operation))
    assert worst(found, "integer") == 0
    assert max(seen_wide) >= 2**bits


def test_operands_have_their_widths() -> None:
    found, learner = in_bits("clapp++dfb", 8)
    states = {entry["name"]: entry for entry in found["state"]}
    assert set(states) == set(whole(found)["state"])
    for name, p in learner.named_parameters():
        assert (states[name]["bits"], states[name]["shape"]) == (8, list(p.shape))
        assert states[states[name]["exponent"]]["of"] == "exponent"
        assert np.abs(READS["array"](whole(found)["state"][name])).max() <= 127
    assert {entry["bits"] for entry in found["held"]} == {1, 6, 8}, "gates, places in a map of 64, activities"
    (program,) = whole(found)["programs"]
    rounded = [op["with"]["bits"] for op in ops_of(found) if op["op"] == "round"]
    assert len(rounded) == 13, "images; of three layers activity, readout, g and signal"
    assert set(rounded) == {8}
    assert [stage["stage"] for stage in program["stages"]] == 3 * ["run"] + 3 * ["learn"] + 3 * ["write"]
    assert program["exponents"]["encoder.blocks.0.1.weight"] == states["encoder.blocks.0.1.weight"]["exponent"]


def test_numbers_are_the_engines() -> None:
    """Whole numbers times their powers of two stay near the float vectors of the same network, at 16 bits."""
    found, _ = in_bits("clapp++dfb", 16)
    assert worst(found, "integer") == 0
    floats, integers = found["vectors"][0], whole(found)
    first = floats["steps"][0]["updates"], integers["steps"][0]["updates"]
    distances: list[float] = []
    for name, want in ((n, READS["array"](u)) for n, u in first[0].items()):
        k, exponent = READS["array"](first[1][name]), READS["array"](first[1][f"{name} exponent"])
        distances.append(float(np.linalg.norm(k * 2.0**exponent - want) / np.linalg.norm(want)))
    assert np.median(distances) < 0.001
    assert max(distances) < 0.1, "a readout that is clipped, on a grid of another batch"


@pytest.fixture(scope="module")
def good() -> dict[str, Any]:
    """A file in whose steps grids are doubled, those of weights, too."""
    found, _ = in_bits("clapp++dfb", 4, lr=0.25)
    return found


def test_grids_grow_and_the_program_stays(good: dict[str, Any]) -> None:
    assert worst(good, "integer") == 0
    vectors = whole(good)
    before, after = vectors["state"], vectors["steps"][-1]["state"]
    grown = {n for n in before if n.endswith(".step") and before[n] != after[n]}
    assert any("synapses" in n for n in grown)
    assert any("grids" in n for n in grown)
    assert any(n.startswith("encoder") for n in grown)
    assert any(before[n] != after[n] for n in before if n.endswith(" s"))
    assert all(before[n] == after[n] for n in before if n.endswith(" u"))


@pytest.mark.parametrize("kind", OTHER)
def test_a_wrong_operation_is_seen(kind: str, good: dict[str, Any]) -> None:
    wrong = copy.deepcopy(good)
    changed = [op for op in ops_of(wrong) if op["op"] == kind]
    assert changed
    for op in changed:
        op["op"] = OTHER[kind]
    assert seen(wrong)


def test_a_wrong_exponent_is_seen(good: dict[str, Any]) -> None:
    """Of every state that is one; and every number in the program that exponents follow from."""
    names = [n for n, data in whole(good)["state"].items() if data["shape"] == []]
    assert len(names) == 3 * 5 + 4 + 2 * 9
    for name in names:
        wrong = copy.deepcopy(good)
        whole(wrong)["state"][name]["values"][0] += 3 if name.endswith(" s") else 1  # s follows, by one a step
        assert seen(wrong), name
    wrong = copy.deepcopy(good)
    ops = {op["out"]: op for op in ops_of(wrong)}
    edges = {out for out, op in ops.items() if op["op"] == "shift" and out.startswith("e")}  # of clipping: no exponents
    missed, tried, rare = list[str](), 0, list[bool]()
    for op in ops.values():
        operands = op["in"]
        if not op["out"].startswith("e") or op["op"] not in ("add", "subtract") or edges & set(operands):
            continue
        for k, operand in enumerate(operands):
            if isinstance(operand, int):
                operands[k] += 1
                if (op["op"], operand) in (("subtract", 0), ("add", 3)):
                    rare.append(seen(wrong))  # margins, edges of clipping: where some number lies between both
                elif not seen(wrong):
                    missed.append(str(op))
                operands[k], tried = operand, tried + 1
    assert not missed
    assert rare.count(True) > 5
    assert tried > 25


def test_wrong_widths_are_seen(good: dict[str, Any]) -> None:
    wrong = copy.deepcopy(good)
    for op in ops_of(wrong):
        if op["op"] == "round":
            op["with"]["bits"] -= 1
    assert seen(wrong)


def test_wrong_random_words_are_seen() -> None:
    """Of every tensor, in one step or another."""
    found, _ = in_bits("clapp++dfb", 4)
    noticed = _flipped(found, " random", 2**23)
    assert len(noticed) == 9
    assert all(noticed.values()), noticed


def test_wrong_random_bits_are_seen(good: dict[str, Any]) -> None:
    """Where a grid was doubled."""
    noticed = _flipped(good, " random bit", 1)
    assert noticed
    assert all(noticed.values()), noticed


def _flipped(rule: dict[str, Any], end: str, flip: int) -> dict[str, bool]:
    """By input, whether the interpreter notices that one bit of all its numbers is another, in one of the steps."""
    noticed: dict[str, bool] = {}
    for i, step in enumerate(whole(rule)["steps"]):
        for name, data in step["inputs"].items():
            words = READS["array"](data)
            if not name.endswith(end) or not words.any():
                continue
            assert words.min() >= 0
            assert words.max() < 2 * flip
            wrong = copy.deepcopy(rule)
            values = (words ^ flip).flatten().tolist()
            whole(wrong)["steps"][i]["inputs"][name] = {"type": "int64", "shape": data["shape"], "values": values}
            noticed[name] = noticed.get(name, False) or seen(wrong)
    return noticed


@pytest.mark.parametrize(
    "changes",
    [
        {"options": {"loss_type": 1, "negatives": "random"}},
        {"options": {"f": "linear"}},
        {"options": {"margin": 0.375}},
        {"optimizer": "plain-sgd"},
        {"bits": 2},
        {"lr": 2.0**-12},
    ],
    ids=str,
)
def test_other_forms(changes: dict[str, Any]) -> None:
    found, _ = in_bits("clapp++both", **{"bits": 4, **changes})
    assert worst(found, "integer") == 0
    assert worst(found) < 1e-9


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", ["ff", "ff-supervised"])
def test_forward_forward(name: str, bits: int) -> None:
    """Lengths by a root and a division a sample, sigmoids by a table."""
    length = rules.get(name).encoder_options
    layers = [nn.Conv2d(1, 9, 3, padding=1), nn.Conv2d(9, 11, 3, padding=1)]
    layers += [nn.Sequential(nn.Flatten(), nn.Linear(11 * 16, 8))]
    encoder = encoders.Options(**length, bits=bits).stack(layers, (True, False, False), {"name": "small"})
    found, _ = in_bits(name, bits, encoder=encoder)
    assert worst(found, "integer") == 0
    assert worst(found) < 1e-9
    (program,) = whole(found)["programs"]
    assert len(program["constants"]["sigmoid"]["values"]) == 2 ** (bits - 1)
    for kind, other in (("root", "shift"), ("below", "less"), ("floor-divide", "subtract")):
        wrong = copy.deepcopy(found)
        for op in ops_of(wrong):
            if op["op"] == kind:
                op.update({"op": other, "in": [*op["in"], -2] if kind == "root" else op["in"]})
        assert seen(wrong), kind
    wrong = copy.deepcopy(found)
    values = whole(wrong)["programs"][0]["constants"]["sigmoid"]["values"]
    values[:] = [v + 2**38 for v in values]
    assert seen(wrong)


@pytest.mark.parametrize("bits", [8, None])
def test_vgg6_on_mnist(bits: int | None) -> None:
    """Blocks whose every hinge is active: what one of their biases learns cancels to rounding noise in some twins."""
    shape, patches = (1, 32, 32), (4, 4, 4, 2, 2, 1)
    given = {"lr": 2.0**-6, "weight_decay": 0.0, "optimizer": "shift-sgd", "schedule": "constant", "bits": bits}
    engine = {"engine": "auto"} if bits is None else {"engine": "integer", "precision": "64-true"}
    config = config_of("clapp++", shape, patches=patches, **given, **engine)
    encoder = encoders.vgg6(width=0.0625, in_channels=1, bits=bits)
    learner = Learner(encoder, config.make_rule(), shape, patches, config.engine)
    rule = json.loads(json.dumps(manifest(config, learner)))
    assert worst(rule) < 1e-9
    assert bits is None or worst(rule, "integer") == 0


def test_what_has_no_whole_numbers_is_refused() -> None:
    with pytest.raises(UsageError, match=r"0\.3 is no whole number of 8 bits times a power of two"):
        in_bits("clapp++", 8, options={"margin": 0.3})
    layer = nn.Sequential(LengthNorm(), Grid(16), nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), Grid(16))
    with pytest.raises(UsageError, match="needs more than 64 bits here; use fewer --bits"):
        in_bits("ff", 16, encoder=Encoder([layer]), patches=None)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_tiny(tmp_path / "x", epochs=1, bits=6, lr=None, dead=0.1, weight_noise=0.05)
    capsys.readouterr()
    assert main(["export", str(run.path), "--rule"]) == 0
    out = capsys.readouterr().out
    assert "golden vectors of 3 steps in float64 and integer" in out
    assert out.endswith("of flawless synapses: --weight-noise, --dead of the run are not in it\n")
    file = run.path / "rule.json"
    found = json.loads(file.read_text(encoding="utf-8"))
    assert (found["format"], found["version"], found["rule"]["engine"]) == ("localssl rule", 2, "integer")
    done = subprocess.run([sys.executable, str(INTERPRETER), str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "'integer': 0.0" in done.stdout
    data = whole(found)["steps"][1]["state"]["encoder.blocks.0.1.weight"]
    data["values"][0] += 1
    file.write_text(json.dumps(found), encoding="utf-8")
    done = subprocess.run([sys.executable, str(INTERPRETER), str(file)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "not reproduced\n")
    assert main(["export", str(run.path), "--nir", str(tmp_path / "x.nir")]) == 2
    said = capsys.readouterr().err
    assert "no node that rounds" in said
    assert said.count("\n") == 1
