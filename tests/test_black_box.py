"""Parts that nobody can differentiate: trained around, refused where a derivative is needed, failing in one line."""

from __future__ import annotations

import copy
import ctypes
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import localssl
from localssl.blocks import BlackBox, BlackBoxError, black_boxes
from localssl.encoders import Encoder
from localssl.learner import Learner

from .util import usage_error, views

SHAPE = (2, 6, 6)
Array = NDArray[Any]


def halves(x: Array) -> Array:
    """Every second column: (N, C, H, W) to (N, C, H, W / 2), rectified and rounded to quarters."""
    return np.round(4 * np.maximum(x[..., ::2], 0)) / 4


class Halves(nn.Module):
    """The same for PyTorch, with what autograd makes of it."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.round(4 * x[..., ::2].clamp_min(0)) / 4


def stack(middle: nn.Module) -> Encoder:
    torch.manual_seed(0)
    one = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU())
    two = nn.Sequential(middle, nn.Conv2d(4, 5, 3, padding=1), nn.ReLU(), nn.MaxPool2d((2, 1)))
    three = nn.Sequential(nn.Conv2d(5, 3, 3, padding=1), nn.ReLU())
    return Encoder.from_blocks([one, two, three]).double()


def learner(rule: str, middle: nn.Module, engine: str = "auto") -> Learner:
    encoder = stack(middle)
    torch.manual_seed(1)
    return Learner(encoder, localssl.rules.get(rule), SHAPE, None, engine)


def gradients(subject: Learner) -> dict[str, Tensor]:
    subject.zero_grad(set_to_none=True)
    torch.manual_seed(2)
    subject.accumulate_grads(*views(shape=SHAPE))
    return {name: p.grad for name, p in subject.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "rule", ["clapp", "clapp++", "clapp++dfb", "clapp++both", "ff", "phyll", "lpl", "softhebb", "dfa"]
)
@pytest.mark.parametrize("engine", ["auto", "autograd"])
def test_a_local_rule_learns_as_with_a_module_in_its_place(rule: str, engine: str) -> None:
    """No derivative of what stands between blocks enters a local update."""
    box, twin = learner(rule, BlackBox(halves, (4, 6, 3)), engine), learner(rule, Halves(), "autograd")
    assert box.engine == ("hebbian" if engine == "auto" and rule.startswith("clapp") else "autograd")
    mine, theirs = gradients(box), gradients(twin)
    assert mine.keys() == theirs.keys()
    assert {name.split(".")[2] for name in mine if name.startswith("encoder")} == {"0", "1", "2"}
    for name, gradient in theirs.items():
        assert gradient.any() or (rule, name[-4:]) == ("softhebb", "bias"), name
        torch.testing.assert_close(mine[name], gradient, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("rule", ["bp-clapp++", "bp-infonce", "optimum", "fa", "sign-symmetric", "pc", "ipc", "bp"])
def test_rules_that_send_errors_through_blocks_refuse_it(rule: str) -> None:
    with usage_error("sends errors through the blocks, and black box 'halves' in block 2 has no derivative"):
        learner(rule, BlackBox(halves, (4, 6, 3)))


def test_a_box_that_is_a_block_of_its_own() -> None:
    boxes = [BlackBox(np.tanh, (4, 6, 6)), BlackBox(np.tanh, (4, 6, 6))]
    layers = [nn.Sequential(nn.Conv2d(c, 4, 3, padding=1), nn.ReLU()) for c in (2, 4)]
    blocks = [layers[0], boxes[0], layers[1], boxes[1]]
    encoder = Encoder.from_blocks(blocks).double()
    for rule in ("clapp++dfb", "ff", "lpl"):
        subject = Learner(encoder, localssl.rules.get(rule), SHAPE)
        assert subject.losses(*views(shape=SHAPE)).shape == (4,)
        found = gradients(subject)
        assert all(found[f"encoder.blocks.{block}.0.weight"].any() for block in (0, 2))
    assert Learner(encoder, localssl.rules.get("clapp"), SHAPE).engine_note == "block 2: it has no weights"
    with usage_error("'dfa' has its only loss at the last block"):
        Learner(encoder, localssl.rules.get("dfa"), SHAPE)
    assert gradients(Learner(Encoder(blocks[:3]).double(), localssl.rules.get("dfa"), SHAPE))
    assert [number for number, _ in black_boxes(encoder.blocks)] == [2, 4]


def test_weights_before_a_box_of_the_same_block_are_refused() -> None:
    blocks = [nn.Conv2d(2, 4, 3, padding=1), nn.Sequential(nn.Conv2d(4, 4, 1), BlackBox(halves, (4, 6, 3)))]
    with usage_error("block 2: no loss reaches its 0.weight, before black box 'halves'"):
        Learner(Encoder.from_blocks(blocks).double(), localssl.rules.get("clapp++"), SHAPE)
    between = nn.Sequential(nn.Conv2d(4, 4, 1), BlackBox(np.tanh, (4, 6, 6)), nn.Conv2d(4, 4, 1))
    with usage_error("block 2: no loss reaches its 0.weight"):
        Learner(Encoder.from_blocks([blocks[0], between]).double(), localssl.rules.get("clapp++"), SHAPE)


def test_the_lean_engine_refuses_to_ask_twice() -> None:
    with usage_error("it runs blocks twice, and black box 'halves' in block 2 may answer otherwise then"):
        learner("clapp++dfb", BlackBox(halves, (4, 6, 3)), "hebbian-lean")


def test_noise_is_drawn_once_a_step() -> None:
    """Reference, loss and change of B rest on the same answer, under the engine too."""
    rng = np.random.default_rng(0)
    calls: list[int] = []

    def noisy(x: Array) -> Array:
        calls.append(len(x))
        return x + rng.standard_normal(x.shape)

    for rule, engine in (("clapp++", "hebbian"), ("clapp++both", "hebbian"), ("lpl", "autograd")):
        subject = learner(rule, BlackBox(noisy, (4, 6, 6)), engine)
        calls.clear()
        gradients(subject)
        assert calls == [6]


def test_alignment_refuses() -> None:
    subject = learner("clapp++", BlackBox(halves, (4, 6, 3)))
    with usage_error("black box 'halves' in block 2 has no derivative; measure a differentiable twin"):
        localssl.alignment.measure(subject.encoder, subject, [views(shape=SHAPE)])


def test_the_certificate_follows_it() -> None:
    found = localssl.certificate.certify(learner("clapp++dfb", BlackBox(halves, (4, 6, 3))))
    assert found.verdict == "local"
    assert localssl.certificate.certify(learner("clapp++dfb", Halves())).reads == found.reads

    def mixing(x: Array) -> Array:
        return x - x.mean(0)

    crossing = localssl.certificate.certify(learner("clapp++", BlackBox(mixing, (4, 6, 6))))
    assert "batch statistics" in crossing.reasons


def test_types_and_devices() -> None:
    seen: list[Array] = []

    def look(x: Array) -> Array:
        seen.append(x)
        x *= 0  # its own to write to
        return np.ones((len(x), 2), dtype=np.int64)

    box = BlackBox(look, [2])
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        x = torch.randn(3, 2, 4, 4, dtype=dtype).to(memory_format=torch.channels_last)
        before = x.clone()
        out = box(x.requires_grad_())
        assert (out.dtype, out.requires_grad, tuple(out.shape)) == (dtype, False, (3, 2))
        assert torch.equal(x, before)
        assert seen[-1].dtype == (np.float64 if dtype == torch.float64 else np.float32)
        assert seen[-1].flags.c_contiguous
    with torch.device("meta"):
        assert box(torch.empty(5, 1)).shape == (5, 2)
    with torch.autocast("cpu", torch.bfloat16):
        subject = learner("clapp++dfb", BlackBox(halves, (4, 6, 3))).float()
        subject.accumulate_grads(*(v.float() for v in views(shape=SHAPE)))
    assert len(seen) == 3


def test_a_copy_shares_the_device() -> None:
    class Device:
        def __deepcopy__(self, memo: Any) -> Any:
            raise AssertionError("a device has no copy")

        def __call__(self, x: Array) -> Array:
            return 2 * x

    box = BlackBox(Device(), (1,), timeout=5).eval()
    copied = copy.deepcopy(box)
    assert (copied.function, copied.timeout, copied.name) == (box.function, 5, "Device")
    assert not copied.training
    del box
    assert copied(torch.ones(1, 1)).item() == 2


def sleeps(x: Array) -> Array:
    time.sleep(1)
    return x


def sleeps_and_keeps_the_lock(x: Array) -> Array:
    ctypes.PyDLL(None).usleep(400_000)
    return x


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda x: x[:, :2], "returned an array (3, 2), expected (3, 4)"),
        (lambda x: x[0], "returned an array (4,), expected (3, 4)"),
        (lambda x: x / 0 * 0, "returned NaN or infinity"),
        (lambda x: 1e300 * x.astype(np.float64), "returned NaN or infinity"),
        (lambda x: None, "returned no array of real numbers, but NoneType"),
        (lambda x: ["a"] * 3, "returned no array of real numbers, but list"),
        (lambda x: 1j * x, "returned no array of real numbers, but ndarray"),
        (lambda x: sys.exit(3), "raised SystemExit: 3"),
        (lambda x: np.load("/nowhere"), "raised FileNotFoundError: [Errno 2] No such file or directory"),
        (sleeps, "gave no answer within 0.2 s"),
        (sleeps_and_keeps_the_lock, "gave no answer within 0.2 s"),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_bad_answers(function: Callable[[Array], Any], says: str) -> None:
    box = BlackBox(function, (4,), timeout=0.2, name="mine")
    with pytest.raises(BlackBoxError) as error:
        box(torch.ones(3, 4))
    assert str(error.value).startswith(f"black box 'mine' {says}")
    assert "\n" not in str(error.value)
    with usage_error("black box 'mine' .*, for inputs of zeros"):
        Learner(
            Encoder.from_blocks([nn.Sequential(BlackBox(lambda x: x[:1], (4,), name="mine"), nn.Linear(4, 2))]),
            localssl.rules.get("clapp"),
            (4,),
        )


def test_the_place_of_an_error_is_named() -> None:
    with pytest.raises(BlackBoxError, match=r"raised ZeroDivisionError: .* by zero \(.*test_black_box.py:\d+\)"):
        BlackBox(lambda x: 1 // 0, (4,), timeout=5)(torch.ones(3, 4))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ((3, (4,)), "takes a function of arrays, got a int"),
        ((np.tanh, 4), "out_shape is 4; give one sample's shape"),
        ((np.tanh, ()), "holds no number"),
        ((np.tanh, (4, 0)), "holds no number"),
        ((np.tanh, (4,), 0), "timeout 0 is not positive"),
        ((np.tanh, (4,), float("nan")), "timeout nan is not positive"),
    ],
)
def test_bad_arguments(given: Any, says: str) -> None:
    with usage_error(says):
        BlackBox(*given)
