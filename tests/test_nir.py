"""The encoder as a NIR graph: read back by nir, run by snnTorch and Norse, refused by name where NIR has no node."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from localssl import encoders, evaluate
from localssl.cli import main
from localssl.encoders import Encoder
from localssl.engine.blocks import leaves
from localssl.errors import UsageError
from localssl.nir_graph import HEADROOM, to_nir

from .train_util import run_tiny

SHAPE = (1, 16, 16)
MOVED = 0.05  # of the length, what spikes that rounding moves may come to


def needs(*packages: str) -> pytest.MarkDecorator:
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(absent), reason=f"not installed: {', '.join(absent)}")


def plain(pool: nn.Module) -> Encoder:
    """Two blocks without activation, all of which NIR has."""
    torch.manual_seed(0)
    first = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1), pool)
    last = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, groups=2, bias=False), nn.Flatten(), nn.Linear(96, 5))
    return Encoder([first, last]).eval()


def image(seed: int = 1) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def snntorch_output(path: Path, x: Tensor) -> Tensor:
    import nir
    from snntorch.import_nir import import_from_nir

    found = import_from_nir(nir.read(str(path)))(x)
    return found[0] if isinstance(found, tuple) else found


def differ(found: Tensor, expected: Tensor) -> float:
    """The length of the difference over that of what is expected."""
    return float((found - expected).norm() / expected.norm())


def own_outputs(encoder: Encoder, scales: tuple[float, ...], x: Tensor, steps: int) -> tuple[Tensor, list[int]]:
    """The last block's activity, a mean over steps, and every ReLU's spikes: trained weights and average pools as they
    are, thresholds of a scale, spikes of its height, in float64."""
    encoder, x = copy.deepcopy(encoder).double(), x.double()
    potentials, counts, total = [torch.zeros(())] * len(scales), [0] * len(scales), torch.zeros(())
    for _ in range(steps):
        at, h = 0, x[None]
        for module in (m for block in encoder.blocks for m in leaves(block)):
            if isinstance(module, nn.ReLU):
                potential = potentials[at] + h
                spikes = potential > scales[at]
                potentials[at] = potential * ~spikes
                counts[at] += int(spikes.sum())
                at, h = at + 1, spikes.double() * scales[at]
            else:
                h = module(h)
        total = total + h[0]
    return total / steps, counts


def norse_outputs(path: Path, x: Tensor, steps: int) -> Tensor:
    """Norse's output summed over some steps with the same input."""
    import nir
    import norse.torch

    network: Any = norse.torch.from_nir(nir.read(str(path)))
    state, total = None, torch.zeros(())
    for _ in range(steps):
        out, state = network(x, state) if state is not None else network(x)
        total = total + out
    return total


def snntorch_outputs_of_leaky(path: Path, x: Tensor, steps: int) -> Tensor:
    """snnTorch's output summed over some steps, with the leaky neurons in place of IF that the documentation has."""
    import nir
    from snntorch.import_nir import import_from_nir

    graph = nir.read(str(path))
    for name, node in graph.nodes.items():
        if isinstance(node, nir.IF):
            o = node.v_threshold
            graph.nodes[name] = nir.LIF(tau=1e4 * o, r=1e8 * o, v_leak=0 * o, v_threshold=o, v_reset=0 * o)
    network = import_from_nir(graph)
    total = torch.zeros(())
    for _ in range(steps):
        out = network(x)
        total = total + (out[0] if isinstance(out, tuple) else out)
    return total


@needs("nir", "snntorch", "nirtorch")
@pytest.mark.parametrize("pool", [nn.AvgPool2d(2), nn.LPPool2d(1, 2)])
@pytest.mark.parametrize("activation", [None, "if"])
@torch.no_grad()
def test_layers_that_nir_has_come_to_the_same_in_snntorch(
    tmp_path: Path, pool: nn.Module, activation: str | None
) -> None:
    """Without a ReLU there are no neurons, whatever would stand for it, and no scales."""
    encoder = plain(pool)
    found = to_nir(encoder, SHAPE, tmp_path / "x.nir", activation)
    assert (found.nodes, found.scales, found.output) == (5, (), 1.0)
    expected = encoder(image()[None])[-1]
    torch.testing.assert_close(snntorch_output(tmp_path / "x.nir", image()).view(1, -1), expected, rtol=1e-5, atol=1e-6)
    encoder.blocks[0][0].weight.mul_(1.01)
    wrong = encoder(image()[None])[-1]
    assert not torch.allclose(snntorch_output(tmp_path / "x.nir", image()).view(1, -1), wrong, rtol=1e-5, atol=1e-6)


@needs("nir", "norse", "nirtorch")
@torch.no_grad()
def test_spikes_in_norse(tmp_path: Path) -> None:
    """Rates times scales against the ReLU network: near, and from below at block 1, as the documentation says."""
    torch.manual_seed(0)
    first = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ReLU())
    second = nn.Sequential(nn.LPPool2d(1, 2), nn.Flatten(), nn.Linear(64, 16), nn.ReLU())
    one, both = Encoder([first]).eval(), Encoder([first, second]).eval()
    steps, drive = 1000, one(image()[None])[-1][0]
    (scale,) = to_nir(one, SHAPE, tmp_path / "one.nir", "if").scales
    rate = norse_outputs(tmp_path / "one.nir", image(), steps) / steps
    wanted = 1 / (torch.floor(scale / drive) + 1)  # after so many steps of a constant drive the threshold is passed
    torch.testing.assert_close(rate, torch.where(drive > 0, wanted, 0.0), rtol=0, atol=1 / steps + 1e-6)
    assert bool((rate * scale <= drive + 1e-6).all())
    scale = to_nir(both, SHAPE, tmp_path / "both.nir", "if").scales[-1]
    found = norse_outputs(tmp_path / "both.nir", image(), steps) / steps * scale
    expected = both(image()[None])[-1][0]
    assert float(torch.cosine_similarity(found.flatten(), expected, dim=0)) > 0.99
    assert differ(found.flatten(), expected) < 0.25


@needs("nir", "norse", "snntorch", "nirtorch")
@pytest.mark.parametrize(("name", "size"), [("vgg5", 16), ("vgg6", 32)])
@torch.no_grad()
def test_what_the_command_writes_of_a_trained_vgg(tmp_path: Path, name: str, size: int) -> None:
    """Spikes against our own neurons on the trained weights: the same, but for the rare one that rounding moves."""
    with torch.enable_grad():
        options = {"encoder": name, "image_size": size, "width": 0.1, "encoder_options": ("pool=avg",)}
        run = run_tiny(tmp_path / "run", epochs=1, **options)
    path, shape, steps = tmp_path / "x.nir", (1, size, size), 100
    assert main(["export", str(run.path), "--nir", str(path), "--nir-activation", "if"]) == 0
    encoder = run.encoder().eval()
    written = to_nir(encoder, shape, tmp_path / "again.nir", "if")
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 3  # spikes in the last block, too
    expected, counts = own_outputs(encoder, written.scales, x, steps)
    assert all(counts), f"a block of which no neuron spikes says nothing: {counts}"
    found = norse_outputs(path, x, steps) / steps * written.output
    assert found.shape == encoder.output_shapes(shape)[-1]
    assert differ(found, expected) < MOVED
    assert differ(snntorch_outputs_of_leaky(path, x, steps) / steps * written.output, expected) < MOVED


@needs("nir", "norse", "nirtorch")
@pytest.mark.parametrize("pool", [nn.AvgPool2d(2), nn.LPPool2d(1, 2)])
@torch.no_grad()
def test_pools_between_drive_and_neurons(tmp_path: Path, pool: nn.Module) -> None:
    """The neurons' drive is measured behind the pool: nobody spikes sooner than elsewhere."""
    torch.manual_seed(0)
    encoder = Encoder([nn.Sequential(nn.Conv2d(1, 4, 3), pool, nn.ReLU())]).eval()
    found = to_nir(encoder, SHAPE, tmp_path / "x.nir", "if")
    noise = torch.randn(64, *SHAPE, generator=torch.Generator().manual_seed(0))
    assert found.scales == (pytest.approx(HEADROOM * float(encoder(noise)[-1].max())),)
    expected, counts = own_outputs(encoder, found.scales, image(), 100)
    assert counts[0] > 100
    torch.testing.assert_close(norse_outputs(tmp_path / "x.nir", image(), 100) / 100 * found.output, expected.float())


@needs("nir", "norse", "nirtorch")
@torch.no_grad()
def test_the_benchmark_of_spikes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates after some steps of many images are those of one image after as many steps; 0 steps are the encoder."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    spikes = importlib.import_module("spikes")
    with torch.enable_grad():
        run = run_tiny(tmp_path / "run", epochs=1, width=0.1, encoder_options=("pool=avg",))
    rows = spikes.measured(run, tmp_path, [1, 60])
    assert [row["steps"] for row in rows] == [0, 1, 60]
    probed = evaluate.probe_run(run, evaluate.ProbeOptions())["clapp++"]
    of_last = [row.accuracy for row in probed.rows if (row.layer, row.method, row.labels) == ("5", "linear", "all")]
    assert rows[0]["accuracy"] == pytest.approx(of_last[0], abs=0.21), "one of 500 images"
    assert rows[0]["accuracy"] > rows[2]["accuracy"] > rows[1]["accuracy"], "nothing spikes at the first step"
    assert (rows[1]["spikes"], rows[1]["difference"]) == (0, 1)
    assert rows[2]["spikes"] > 0
    x = torch.stack([image(1), image(2)]) * 3
    found = spikes.rates(tmp_path / "x.nir", x, [30, 60])
    for steps, both in zip((30, 60), found, strict=True):
        for one, alone in zip(both, x, strict=True):
            assert differ(one, norse_outputs(tmp_path / "x.nir", alone, steps) / steps) < MOVED


@needs("nir", "norse", "nirtorch")
@torch.no_grad()
def test_neurons_that_never_spike(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = Encoder([nn.Sequential(nn.Flatten(), nn.Linear(256, 8), nn.ReLU())]).eval()
    encoder.blocks[0][1].bias.fill_(-100.0)  # nobody spikes
    to_nir(encoder, SHAPE, tmp_path / "x.nir", "if")
    assert not norse_outputs(tmp_path / "x.nir", image(), 20).any()


@needs("nir")
def test_read_back(tmp_path: Path) -> None:
    import nir

    encoder = encoders.vgg6(width=0.02, in_channels=3, pool="avg")
    found = to_nir(encoder, (3, 32, 32), tmp_path / "x.nir", "if")
    graph = nir.read(str(tmp_path / "x.nir"))
    kinds = [type(node).__name__ for node in graph.nodes.values()]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        **{"Conv2d": 6, "IF": 6, "SumPool2d": 4, "Input": 1, "Output": 1}
    }
    assert len(graph.edges) == found.nodes + 1
    below = 1.0
    for number, scale in enumerate(found.scales, start=1):
        conv, spikes = (graph.nodes[f"block_{number}_{place}"] for place in ("1_conv2d", "2_relu"))
        layer = encoder.blocks[number - 1][0]
        np.testing.assert_allclose(conv.weight * scale / below, layer.weight.detach(), rtol=1e-5)
        np.testing.assert_allclose(conv.bias * scale, layer.bias.detach(), rtol=1e-5)
        assert spikes.v_threshold.shape == tuple(encoder.output_shapes((3, 32, 32))[0]) or number > 1
        assert (spikes.v_threshold == 1).all()
        assert float(spikes.metadata["activity of one spike a step"]) == pytest.approx(scale)
        pooled = isinstance(encoder.blocks[number - 1][-1], nn.AvgPool2d)
        below = scale / 4 if pooled else scale  # the graph sums four spikes, of which the encoder takes the mean
    assert found.output == below == found.scales[-1] / 4
    assert float(graph.nodes["output"].metadata["activity of 1 a step"]) == pytest.approx(below)


@needs("nir")
def test_what_nir_cannot_express_is_named(tmp_path: Path) -> None:
    def says(encoder: Encoder, activation: str | None = None) -> str:
        with pytest.raises(UsageError) as error:
            to_nir(encoder, SHAPE, tmp_path / "x.nir", activation)
        assert not (tmp_path / "x.nir").exists()
        return str(error.value)

    said = says(encoders.vgg5(0.1))
    for layer in ("block 1: ReLU", "block 2: ReLU", "block 2: MaxPool2d", "block 5: MaxPool2d"):
        assert layer in said
    assert "--nir-activation if" in said
    assert "pool=avg" in said
    assert "ReLU" not in says(encoders.vgg5(0.1), "if")
    said = says(encoders.vgg5(0.1, norm="length", activation="tanh", pool="avg"), "if")
    assert "block 1: LengthNorm, block 1: Tanh" in said
    said = says(encoders.vgg5(0.1, bits=8))
    assert "a run without --bits rounds nothing" in said
    assert "block 1" not in said, "one line, not every layer"
    padded = Encoder([nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect"), nn.AvgPool2d(3, ceil_mode=True)])
    assert "block 1: Conv2d padded by other than a number of zeros, block 2: AvgPool2d with options" in says(padded)


def test_pools_are_an_option() -> None:
    pools = [m for m in encoders.vgg6(0.02, pool="avg").modules() if isinstance(m, nn.AvgPool2d | nn.MaxPool2d)]
    assert [type(m) for m in pools] == [nn.AvgPool2d] * 4
    assert (
        encoders.from_config(encoders.vgg5(0.1, pool="avg").config or {}).config
        == encoders.vgg5(0.1, pool="avg").config
    )
    with pytest.raises(UsageError, match="unknown pool 'mean'"):
        encoders.vgg6(0.02, pool="mean")
    with pytest.raises(UsageError, match="mlp has no pools"):
        encoders.mlp(16, pool="avg")
    with pytest.raises(UsageError, match="scff3 has pools of its own"):
        encoders.published("scff3", 0.02, pool="avg")


@needs("nir")
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_tiny(tmp_path / "x", epochs=1, encoder_options=("pool=avg",))
    out = str(tmp_path / "x.nir")
    capsys.readouterr()
    assert main(["export", str(run.path), "--nir", out, "--nir-activation", "if"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"written: {out}, 13 nodes; activity of one spike a step, by ReLU: ")
    by_relu, output = said.split("by ReLU: ")[1].split("; of 1 a step of the output: ")
    assert float(output) == pytest.approx(float(by_relu.split(", ")[-1]) / 4, rel=0.01)
    for flags, says in (
        (["--nir", out], "NIR has no node for block 1: ReLU"),
        (["--nir", out, "--rule"], "export needs one of"),
        (["--rule", "--nir-activation", "if"], "--nir-activation goes with --nir PATH"),
        (["--nir", str(tmp_path / "no" / "x.nir")], "there is no folder"),
    ):
        assert main(["export", str(run.path), *flags]) == 2
        error = capsys.readouterr().err
        assert says in error
        assert error.count("\n") == 1
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["export", str(run.path), "--nir", out]) == 2  # what no package would mend comes first
    assert "NIR has no node for block 1: " in capsys.readouterr().err
    assert main(["export", str(run.path), "--nir", out, "--nir-activation", "if"]) == 2
    assert capsys.readouterr().err == "localssl: --nir needs nir: pip install 'localssl[nir]', in a clone '.[nir]'\n"
