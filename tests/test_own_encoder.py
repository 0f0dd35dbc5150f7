"""An encoder of a user's own file, PATH.py:NAME, on the command line; a device in it that fails."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import localssl
from localssl import own
from localssl.errors import RunError
from localssl.training.train import train

from .test_bad_input import Capture, refuse, status
from .train_util import assert_same_run, run_tiny, steps, tiny

NET = Path(__file__).with_name("black_box_net.py")
HERE = {"encoder": f"{NET}:net", "batch_size": 16, "limit_images": 64, "width": 1.0}


@pytest.fixture
def net() -> Generator[ModuleType]:
    """The file's module as the library has loaded it."""
    own.load(f"{NET}:net", "encoder", callable)
    module = own._LOADED[NET]
    module.CALLS.clear()
    module.FAILS.clear()
    yield module
    module.FAILS.clear()


def test_from_training_to_the_probe(
    tmp_path: Path, net: ModuleType, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "x"
    line = f"train --rule clapp++dfb --data digits --encoder {NET}:net --encoder-options channels=3 --epochs 1"
    assert status(f"{line} --batch-size 16 --limit-images 32 --threads 1 --out {out}") == 0
    encoder = localssl.load(out)
    assert encoder.config == {"name": f"{NET}:net", "input_shape": [1, 16, 16], "channels": 3}
    assert [tuple(z.shape) for z in encoder(torch.zeros(2, 1, 16, 16))] == [(2, 3, 8, 8), (2, 6, 4, 4)]
    assert status(f"probe {out} --threads 1 --limit-images 64") == 0
    refuse(capsys, f"align {out}", "black box 'device' in block 2 has no derivative")
    assert status(f"export {out} --embeddings --out {tmp_path / 'z.npy'}") == 0
    assert np.load(tmp_path / "z.npy").shape == (500, 9)
    monkeypatch.setattr(net, "net", None)
    refuse(capsys, f"train --resume --out {out}", "is a NoneType; an encoder of your own is a function")


@pytest.mark.parametrize("rule", ["clapp++", "clapp++dfb", "ff"])
@pytest.mark.parametrize(
    ("fail", "says"),
    [
        ("hang", "black box 'device' gave no answer within 0.5 s in step 3; the run is saved as it was before"),
        ("nan", "black box 'device' returned NaN or infinity in step 3"),
        ("raise", "black box 'device' raised ConnectionError: bench is off"),
    ],
)
def test_a_device_that_fails_costs_nothing(tmp_path: Path, net: ModuleType, rule: str, fail: str, says: str) -> None:
    """The run stops with one line and goes on bit for bit, the device's own noise included."""

    def off(x: Any) -> Any:
        raise ConnectionError("bench is off")

    fails: dict[str, Callable[[Any], Any]] = {"hang": net.hang, "nan": lambda x: x * np.nan, "raise": off}
    settings = {**HERE, "rule": rule, "probe_every": 0}
    whole = run_tiny(tmp_path / "whole", **settings)
    called = len(net.CALLS)
    assert steps(whole.path)[-1] == 8
    net.CALLS.clear()
    building = called - 8
    net.FAILS[building + 3] = fails[fail]
    with pytest.raises(RunError) as error:
        run_tiny(tmp_path / "x", **settings)
    assert str(error.value).startswith(says)
    assert "go on with: " in str(error.value)
    assert "\n" not in str(error.value)
    assert steps(tmp_path / "x")[-1] == 2
    net.FAILS.clear()
    train(tiny(tmp_path / "x", **settings, resume=True), lambda line: None)
    assert_same_run(tmp_path / "x", whole.path)


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_device_that_fails_in_a_measurement_costs_nothing(tmp_path: Path, net: ModuleType, epoch: int) -> None:
    """The run is saved as it is, and goes on with the row that could not be measured."""
    settings = {**HERE, "rule": "clapp++dfb", "probe_every": 1}
    whole = run_tiny(tmp_path / "whole", **settings)
    calls = list(net.CALLS)
    measured = [i for i, n in enumerate(calls) if n == 64]  # the sample of images, with which the monitors begin
    assert len(measured) == 2
    net.CALLS.clear()
    net.FAILS[measured[epoch - 1] + 1] = lambda x: x[:1]
    with pytest.raises(RunError) as error:
        run_tiny(tmp_path / "x", **settings)
    says = r"returned an array \(1, .* in the measurements after step N; the run is saved as it is: .* go on with: "
    assert re.search(says.replace("N", str(4 * epoch)), str(error.value))
    assert steps(tmp_path / "x")[-1] == 4 * epoch
    net.FAILS.clear()
    train(tiny(tmp_path / "x", **settings, resume=True), lambda line: None)
    assert_same_run(tmp_path / "x", whole.path)


def test_measurements_leave_the_devices_noise_alone(tmp_path: Path, net: ModuleType) -> None:
    """What a box draws from NumPy's generator while the monitors run is not missing in the run."""
    runs = [run_tiny(tmp_path / str(n), **HERE, rule="clapp++dfb", probe_every=n) for n in (0, 1)]
    states = [torch.load(sorted((r.path / "checkpoint").iterdir())[-1], weights_only=True)["learner"] for r in runs]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (
            "--rule bp-clapp++ --encoder NET:net",
            ["black box 'device' in block 2 has no derivative", "use a local rule"],
        ),
        ("--rule clapp --encoder NET:net --align-every 1", ["--align-every needs derivatives"]),
        ("--rule clapp --encoder NET:nett", ["unknown encoder in", "did you mean 'net'"]),
        ("--rule clapp --encoder NET", ["names a file; name the encoder in it: black_box_net.py:device"]),
        ("--rule clapp --encoder NET:CALLS", ["is a list; an encoder of your own is a function of the input's shape"]),
        ("--rule clapp --encoder NET:nothing", ["returned a str; return an Encoder, or a list of blocks"]),
        (
            "--rule clapp --encoder NET:whole",
            ["returned a Flatten; return", "blocks_of(model, 3) cuts a whole network"],
        ),
        ("--rule clapp --encoder NET:refuses", ["black_box_net.py:", "ValueError: no such bench"]),
        ("--rule clapp --encoder NET:net --width 0.5", ["cannot be called so", "unexpected keyword argument 'width'"]),
        ("--rule clapp --encoder NET:net --encoder-options depth=3", ["cannot be called so", "'depth'"]),
        ("--rule clapp --encoder NET:net --encoder-options timeout=-1", ["timeout -1 is not positive"]),
        ("--rule clapp --encoder /nowhere/net.py:net", ["there is no file /nowhere/net.py", "an encoder of your own"]),
    ],
)
def test_refused(tmp_path: Path, net: ModuleType, capsys: Capture, flags: str, says: list[str]) -> None:
    refuse(capsys, f"train --data digits --out {tmp_path / 'x'} {flags.replace('NET', str(NET))}", *says)
    assert not (tmp_path / "x").exists()


def test_a_dead_device_is_seen_before_training(tmp_path: Path, net: ModuleType, capsys: Capture) -> None:
    net.FAILS[1] = net.hang
    line = f"train --rule clapp --data digits --encoder {NET}:net --out {tmp_path / 'x'}"
    refuse(capsys, line, "black box 'device' gave no answer within 0.5 s, for inputs of zeros (1, 16, 16)")


def test_a_rules_wishes_for_the_encoder(tmp_path: Path) -> None:
    """What the rule asks of the encoder reaches a function that takes it, and no other."""
    file = tmp_path / "net.py"
    text = "from torch import nn\ndef {}: return [nn.Sequential(nn.Flatten(), nn.Linear(256, 4), nn.ReLU())]\n"
    file.write_text(text.format("plain(input_shape)") + text.format("asked(input_shape, norm)"), encoding="utf-8")
    wished = localssl.rules.get("ff").encoder_options
    assert "norm" in wished
    assert "norm" not in (localssl.encoders.build(f"{file}:plain", (1, 16, 16), wished=wished).config or {})
    assert (localssl.encoders.build(f"{file}:asked", (1, 16, 16), wished=wished).config or {})["norm"] == wished["norm"]
