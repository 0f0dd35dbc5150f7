"""Other people's networks: whole when cut, refused where a skip connection would be cut, block-local in training."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import localssl
from localssl.encoders import Encoder, networks
from localssl.errors import UsageError
from localssl.learner import Learner

from .test_bad_input import Capture, refuse, status
from .util import usage_error


class Residual(nn.Module):
    def __init__(self, c_in: int, c: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(c, c, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c)
        self.down = nn.Conv2d(c_in, c, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return torch.relu(out + self.down(x))


class Small(nn.Module):
    """Two residual stages and a classifier."""

    def __init__(self, long_skip: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True))
        self.stage1 = nn.Sequential(Residual(4, 6, 2))
        self.stage2 = nn.Sequential(Residual(6, 8, 2))
        self.head = nn.Linear(8, 3)
        self.long_skip = long_skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.stage1(x)
        if self.long_skip:
            y = y + x.mean()
        return self.head(self.stage2(y).mean((2, 3)))


def test_the_blocks_are_the_network() -> None:
    torch.manual_seed(0)
    for blocks in (4, ["layer1.0", "layer3", "layer4"]):
        model = networks.network("torchvision", "resnet18")
        features = nn.Sequential(*list(copy.deepcopy(model).children())[:-2])
        found = networks.blocks_of(model, blocks, name="resnet18")
        x = torch.randn(2, 3, 32, 32)
        for mode in (False, True):  # batch norms: their own statistics, or the batch's
            y = x
            for block in found:
                y = block.train(mode)(y)
            assert torch.equal(y, features.train(mode)(x))
        parameters = {id(p) for block in found for p in block.parameters()}
        assert len(parameters) == len(list(features.parameters()))
        assert len(found) == len(blocks) if isinstance(blocks, list) else len(found) == blocks
        assert "layer4" in dict(found[-1].named_modules())


def test_stages_of_any_network() -> None:
    for count, shapes in ((1, [(8, 4, 4)]), (2, [(6, 8, 8), (8, 4, 4)]), (3, [(4, 16, 16), (6, 8, 8), (8, 4, 4)])):
        encoder = Encoder.from_blocks(networks.blocks_of(Small(), count))
        assert encoder.output_shapes((3, 16, 16)) == shapes
    assert not any(getattr(m, "inplace", False) for m in encoder.modules())
    one = networks.blocks_of(Small(), 3, in_channels=1)[0]
    assert one(torch.zeros(2, 1, 16, 16)).shape == (2, 4, 16, 16)
    assert networks.blocks_of(one, 1)[0](torch.zeros(2, 1, 16, 16)).shape == (2, 4, 16, 16)  # one channel, as it is


def test_a_cut_through_a_skip_connection_is_refused() -> None:
    with usage_error(
        "ends with stage2.0.conv1 of Small would cut a skip connection; whole ones end with stem.0, stem.1,"
    ):
        networks.blocks_of(Small(), ["stage1", "stage2.0.conv1", "stage2"])
    with usage_error(
        "ends with stage1 of Small would cut a skip connection; whole ones end with stem.0, stem.1, stage2"
    ):
        networks.blocks_of(Small(long_skip=True), ["stage1", "stage2"])
    assert len(networks.blocks_of(Small(long_skip=True), ["stem", "stage2"])) == 2
    with usage_error("has no more stages than 2: use blocks=1 to 2"):  # stage1 alone cannot end a block
        networks.blocks_of(Small(long_skip=True), 3)


def test_the_ends_that_are_offered_can_be_taken() -> None:
    with pytest.raises(UsageError) as refused:
        Encoder.from_torchvision("resnet18", blocks=["layer1.0.conv1", "layer4"])
    offered = str(refused.value).split("whole ones end with ")[1].split(", ")
    assert "layer1.0" in offered  # its last module runs twice
    for end in offered[: offered.index("layer4")]:
        assert len(Encoder.from_torchvision("resnet18", blocks=[end, "layer4"]).blocks) == 2


@pytest.mark.parametrize(
    ("blocks", "says"),
    [
        (["stage1", "stage3"], "unknown module of Small 'stage3': did you mean"),
        (["stage2", "stage1"], "name the module that each block ends with, in the order"),
        ([], "name the module that each block ends with"),
        (["head", "down"], "unknown module of Small 'down'"),
        (4, "Small has no more stages than 3: use blocks=1 to 3"),
        (0, "Small has no more stages than 3: use blocks=1 to 3"),
    ],
)
def test_refused_cuts(blocks: Any, says: str) -> None:
    with usage_error(says):
        networks.blocks_of(Small(), blocks)


def test_refused_networks() -> None:
    class Branches(Small):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if x.sum() > 0 else -x)

    class Twice(Small):
        def forward(self, x: Tensor) -> Tensor:
            return self.stage1(self.stem(self.stem(x)[:, :3]))

    with usage_error("the way through Branches cannot be followed"):
        networks.blocks_of(Branches(), 2)
    with usage_error("stem.1 of Twice runs 2 times, so that no block can end there"):
        networks.blocks_of(Twice(), ["stem.1"])
    with usage_error("unknown inner_norm 'layer'"):
        networks.blocks_of(Small(), 2, inner_norm="layer")
    with usage_error("Linear does not take images of 224 x 224"):
        networks.blocks_of(nn.Linear(3, 2), 1)
    with usage_error("unknown network of torchvision 'resnet17': did you mean 'resnet1"):
        Encoder.from_torchvision("resnet17")
    with usage_error("blocks is 'layer1'"):
        Encoder.from_torchvision("resnet18", "layer1")
    with usage_error("vit_b_16 has no maps|cannot be followed"):
        Encoder.from_torchvision("vit_b_16")


def test_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with usage_error("pip install timm"):
        Encoder.from_timm("resnet18")


def test_timm_where_it_is() -> None:
    pytest.importorskip("timm")
    encoder = Encoder.from_timm("mobilenetv3_small_050", blocks=4, in_channels=1)
    assert encoder.output_shapes((1, 64, 64)) == [(8, 16, 16), (16, 8, 8), (24, 4, 4), (288, 2, 2)]
    with usage_error("unknown network of timm 'mobilenetv3_small_51'"):
        Encoder.from_timm("mobilenetv3_small_51")


def small_learner(rule: str, inner_norm: str) -> Learner:
    torch.manual_seed(0)
    encoder = Encoder.from_blocks(networks.blocks_of(Small(), 3, inner_norm=inner_norm))
    return Learner(encoder, localssl.rules.get(rule), (3, 16, 16))


def test_the_certificate_says_block_local() -> None:
    """A loss reaches its own block, all of it; batch norms cross samples and are named."""
    found = localssl.certificate.certify(small_learner("clapp++dfb", "group"))
    assert (found.verdict, found.reasons) == ("block-local", ("gradient inside a block",))
    crossing = localssl.certificate.certify(small_learner("clapp++dfb", "batch"))
    assert (crossing.verdict, crossing.reasons) == ("not local", ("batch statistics", "gradient inside a block"))
    assert any("BatchNorm2d" in r.source + r.evidence for r in crossing.because("batch statistics"))


@pytest.mark.parametrize("rule", ["clapp++both", "bp-clapp++"])
def test_losses_stay_in_their_block(rule: str) -> None:
    learner = small_learner(rule, "batch")
    a, b = torch.randn(2, 4, 3, 16, 16)
    losses = learner.losses(a, b)
    losses[-1].backward()
    reached = [any(p.grad is not None and p.grad.any() for p in block.parameters()) for block in learner.encoder.blocks]
    assert reached == ([False, False, True] if rule == "clapp++both" else [True] * 3)
    assert learner.engine == "autograd"


def test_batch_norms_count_a_step_once() -> None:
    """In training the statistics of the 2n samples, both views; running averages move once a step; eval leaves them."""
    learner = small_learner("clapp++dfb", "batch")
    norm = next(m for m in learner.encoder.modules() if isinstance(m, nn.BatchNorm2d))
    assert int(norm.num_batches_tracked) == 0
    learner.accumulate_grads(*torch.randn(2, 4, 3, 16, 16))
    assert int(norm.num_batches_tracked) == 1
    learner.eval().accumulate_grads(*torch.randn(2, 4, 3, 16, 16))
    assert int(norm.num_batches_tracked) == 1


def test_a_rate_that_is_another_encoders_is_said(tmp_path: Path, capsys: Capture) -> None:
    """Once, where the run begins; not where a rate was given, a run goes on or repeats another, or the net is ours."""
    tiny = "--data digits --epochs 1 --batch-size 16 --limit-images 32 --probe-every 0 --threads 1"
    net = "--encoder torchvision:mobilenet_v3_small"
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from torch import nn\n\ndef net(shape):\n    return [nn.Conv2d(shape[0], 4, 3)]\n", encoding="utf-8"
    )

    def said(line: str) -> list[str]:
        assert status(f"train {line}") == 0
        return [text for text in capsys.readouterr().out.splitlines() if "learning rate" in text]

    wants = "as none was given: {} may want a lower one, for instance --lr {}"
    assert said(f"--rule clapp {tiny} {net} --dry-run") == [
        "learning rate 0.002, vgg5's, " + wants.format("torchvision:mobilenet_v3_small", "0.0006")
    ]
    x = tmp_path / "x"
    assert said(f"--rule clapp {tiny} --encoder {mine}:net --out {x}") == [
        "learning rate 0.002, vgg5's, " + wants.format("mine.py:net", "0.0006")
    ]
    assert said(f"--resume --epochs 2 --out {x} --own {mine}") == []
    assert said(f"--config {x}/config.yaml --own {mine} --out {tmp_path / 'y'}") == []
    assert said(f"--rule clapp {tiny} {net} --lr 1e-3 --dry-run") == []
    assert said(f"--rule clapp {tiny} --width 0.1 --dry-run") == []
    rate = localssl.rules.get("softhebb").lr
    assert rate is not None
    (line,) = said(f"--rule softhebb {tiny} --encoder {mine}:net --dry-run")
    assert line == f"learning rate {rate:g}, softhebb's own, " + wants.format("mine.py:net", f"{0.3 * rate:g}")


def test_from_the_command_line(tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "x"
    line = f"train --rule clapp++dfb --data digits --encoder torchvision:resnet18 --out {out} --threads 1"
    tiny = "--epochs 1 --batch-size 16 --limit-images 32 --probe-every 0"
    assert status(f"{line} {tiny} --encoder-options blocks=3 inner_norm=group") == 0
    encoder = localssl.load(out)
    wanted = {"name": "torchvision:resnet18", "blocks": 3, "in_channels": 1, "inner_norm": "group"}
    assert encoder.config == wanted
    assert not any(isinstance(m, nn.BatchNorm2d) for m in encoder.modules())
    assert len(encoder(torch.zeros(2, 1, 16, 16))) == 3
    x = tmp_path / "y"
    for flags, says in (
        ("--encoder torchvision:resnet", "unknown network of torchvision 'resnet': did you mean"),
        ("--encoder torchvison:resnet18", "unknown encoder 'torchvison:resnet18'"),
        ("--encoder torchvision:resnet18 --width 0.5", "has widths of its own; leave it out"),
        (
            "--encoder torchvision:resnet18 --encoder-options depth=3",
            "unknown option of encoder",
        ),
        (
            '--encoder torchvision:resnet18 --encoder-options blocks=["layer1","layer2.0.conv1"]',
            "cut a skip connection",
        ),
    ):
        refuse(capsys, f"train --rule clapp --data digits --out {x} {flags}", says)
    refuse(capsys, f"train --rule softhebb --data digits --out {x} --encoder torchvision:resnet18", "the rule asks for")
