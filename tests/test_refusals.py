"""Misuse from Python: one clear line instead of a traceback from the depths, or worse, a wrong number."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import localssl
from localssl.encoders import Encoder
from localssl.errors import UsageError

SHAPE = (2, 8, 8)


def conv(c_in: int, c_out: int) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 3, padding=1)


def learner(rule: str = "clapp++", patches: object = (8, 8)) -> localssl.Learner:
    torch.manual_seed(0)
    encoder = Encoder.from_blocks([nn.Sequential(conv(2, 3), nn.ReLU()), nn.Sequential(conv(3, 3), nn.ReLU())])
    return localssl.Learner(encoder, localssl.rules.get(rule), SHAPE, patches)  # pyright: ignore[reportArgumentType]


def views(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    a, b = torch.randn(2, 3, *SHAPE, generator=torch.Generator().manual_seed(1)).to(dtype)
    return a, b


@pytest.mark.parametrize("rule", ["clapp++", "bp-clapp++"])
def test_a_block_that_overwrites_its_input_is_refused(rule: str) -> None:
    # It would change the block before's output after the fact, and with it that block's loss.
    encoder = Encoder.from_blocks([conv(2, 3), nn.Sequential(nn.ReLU(inplace=True), conv(3, 3))])
    with pytest.raises(UsageError, match="block 2 changes its input in place"):
        localssl.Learner(encoder, localssl.rules.get(rule), SHAPE).losses(*views())


def test_in_place_inside_a_block_is_fine() -> None:
    encoder = Encoder.from_blocks([nn.Sequential(conv(2, 3), nn.ReLU(inplace=True)), conv(3, 3)])
    assert len(localssl.Learner(encoder, localssl.rules.get("clapp++"), SHAPE).losses(*views())) == 2


def test_a_rule_by_name_or_class() -> None:
    encoder = Encoder.from_blocks([conv(2, 3)])
    with pytest.raises(UsageError, match=r"rules\.get"):
        localssl.Learner(encoder, "clapp++", SHAPE)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("patches", [4, (4.0, 4)])
def test_patches_of_another_kind(patches: object) -> None:
    with pytest.raises(UsageError, match="patch"):
        learner(patches=patches)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64])
def test_views_of_another_dtype(dtype: torch.dtype) -> None:
    with pytest.raises(UsageError, match="convert one of them"):
        learner().losses(*views(dtype))


def test_negatives_as_a_list() -> None:
    with pytest.raises(UsageError, match="LongTensor"):
        learner().losses(*views(), [1, 2, 3, 4, 5, 0])  # pyright: ignore[reportArgumentType]


def test_rules_that_draw_none_ignore_any_negatives() -> None:
    infonce = learner("bp-infonce")
    assert torch.equal(infonce.losses(*views(), torch.zeros(1)), infonce.losses(*views()))


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        ("clapp++", {"margin": float("nan")}),
        ("clapp++", {"margin": "1"}),
        ("clapp++", {"loss_type": True}),
        ("bp-infonce", {"projection_dim": "8"}),
        ("bp-infonce", {"projection_dim": 8.5}),
    ],
)
def test_options_of_the_wrong_kind(rule: str, options: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        localssl.rules.get(rule, **options)


def test_shapes_that_no_block_accepts() -> None:
    encoder = Encoder.from_blocks([nn.BatchNorm2d(2)])
    with pytest.raises(UsageError, match="does not accept inputs"):
        localssl.Learner(encoder, localssl.rules.get("clapp++"), (2, 8))


def test_a_block_that_refuses_without_a_word() -> None:
    class Silent(nn.Identity):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            raise ValueError

    with pytest.raises(UsageError, match=r"does not accept inputs .*: ValueError$"):
        Encoder.from_blocks([Silent()]).output_shapes((3, 8, 8))


ENCODERS = {"vgg6": (3, 32, 32), "vgg5": (1, 16, 16), "mlp": (1, 16, 16)}  # and images that suit them


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("rule_name", localssl.rules.names())
def test_every_rule_takes_every_encoder_or_says_why_not(rule_name: str, name: str) -> None:
    shape, rule = ENCODERS[name], localssl.rules.get(rule_name)
    torch.manual_seed(0)
    encoder = localssl.encoders.build(name, shape, 0.0625, rule.encoder_options)
    if (rule_name, name) == ("clapp-illing", "mlp"):
        with pytest.raises(UsageError) as refused:
            localssl.Learner(encoder, rule, shape)
        assert str(refused.value) == (
            "rule 'clapp-illing' makes samples of shape (1, 8, 8) of images of shape (1, 16, 16), and the encoder "
            "takes images alone; use one that takes both sizes, of convolutions (the encoder does not accept inputs of "
            "shape (1, 8, 8): its first layer takes 256 numbers a sample, these have 64)"
        )
        return
    a, b = torch.randn(2, 4, *shape)
    losses = localssl.Learner(encoder, rule, shape).accumulate_grads(a, b, labels=torch.arange(4))
    assert losses.isfinite().all()


@pytest.mark.parametrize(
    ("blocks", "says"),
    [
        ([conv(3, 3)], "its first layer takes 3 channels, these have 2"),
        ([nn.Sequential(nn.Flatten(), nn.Linear(9, 3))], "its first layer takes 9 numbers a sample, these have 128"),
    ],
)
def test_images_that_the_first_layer_does_not_take(blocks: list[nn.Module], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        localssl.Learner(Encoder.from_blocks(blocks), localssl.rules.get("clapp++"), SHAPE)
