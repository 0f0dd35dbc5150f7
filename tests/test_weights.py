"""The gradient of a convolution's weights place by place: oneDNN's numbers, wherever the engine takes it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from localssl import encoders, rules
from localssl.engine import weights

from .engine_util import RULES, batch, learner, sizes, update
from .test_benchmarks import benchmark
from .test_engine_float32 import assert_near

GEOMETRIES = {
    "usual": {"kernel_size": 3, "padding": 1},
    "bare": {"kernel_size": 3, "bias": False},
    "one": {"kernel_size": 1},
    "strided": {"kernel_size": 3, "stride": 2, "padding": 1},
    "odd": {"kernel_size": (2, 5), "stride": (3, 2), "padding": (2, 3), "dilation": (2, 1)},
    "wide": {"kernel_size": 5, "padding": 7, "dilation": 4},  # places that read the padding alone
}


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers of any size take it, on any processor."""
    monkeypatch.setattr(weights, "WORTH", 0)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")


def case(name: str) -> tuple[nn.Conv2d, Tensor, Tensor]:
    torch.manual_seed(0)
    layer = nn.Conv2d(5, 6, **GEOMETRIES[name])
    x = torch.randn(3, 5, 12, 9).to(memory_format=torch.channels_last)
    return layer, x, torch.randn_like(layer(x).detach())


@pytest.mark.parametrize("name", GEOMETRIES)
def test_it_is_the_gradient(name: str, places: None) -> None:
    layer, x, at_a = case(name)
    assert weights.by_places(layer, x)
    change, bias = weights.change_of(layer, x, at_a, (True, layer.bias is not None))
    assert change is not None
    assert change.shape == layer.weight.shape
    exact = layer.double()
    exact(x.double()).backward(at_a.double())
    assert exact.weight.grad is not None
    pairs = [(change, exact.weight.grad), *([] if bias is None else [(bias, exact.bias.grad)])]
    assert len(pairs) == (1 if name == "bare" else 2)
    for found, gradient in pairs:
        assert gradient is not None
        assert float((found - gradient).norm()) <= 1e-6 * float(gradient.norm())


def test_only_what_is_wanted(places: None) -> None:
    layer, x, at_a = case("usual")
    assert [t is None for t in weights.change_of(layer, x, at_a, (True, False))] == [False, True]
    assert [t is None for t in weights.change_of(layer, x, at_a, (False, True))] == [True, False]


def test_of_any_layout_and_of_nothing(places: None) -> None:
    layer, x, at_a = case("usual")
    exact = weights.change_of(layer, x, at_a, (True, False))[0]
    other = weights.change_of(layer, x.contiguous(), at_a.transpose(2, 3).contiguous().transpose(2, 3), (True, False))
    torch.testing.assert_close(other[0], exact, rtol=0, atol=1e-4)
    nothing = weights.change_of(layer, x[:0], at_a[:0], (True, False))[0]
    assert nothing is not None
    assert torch.equal(nothing, torch.zeros_like(layer.weight))


def test_where_it_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    layer, x = nn.Conv2d(256, 256, 3, padding=1), torch.randn(1, 256, 2, 2)
    assert weights.by_places(layer, x)
    assert not weights.by_places(nn.Conv2d(128, 256, 3, padding=1), x[:, :128])  # copies would cost more
    assert not weights.by_places(nn.Conv2d(256, 256, 3, padding=1, groups=2), x)
    assert not weights.by_places(nn.Conv2d(256, 256, 3, padding="same"), x)
    assert not weights.by_places(layer, x.double())
    assert not weights.by_places(layer, x.to("meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert not weights.by_places(layer, x)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert not weights.by_places(layer, x)


@pytest.mark.parametrize("kind", ["none", "max", "average"])
@pytest.mark.parametrize("name", RULES)
def test_the_engine_is_equal_to_autograd_by_it(
    name: str, kind: str, places: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, calls = weights.by_products, list[nn.Conv2d]()

    def seen(layer: nn.Conv2d, x: Tensor, at_a: Tensor) -> Tensor:
        calls.append(layer)
        return usual(layer, x, at_a)

    monkeypatch.setattr(weights, "by_products", seen)
    rule, views = rules.get(name), batch(kind, 0)
    least = sizes(learner(kind, rules.get(name, f="linear"), "auto", torch.float64, None, 0), views)
    exact = update(learner(kind, rule, "autograd", torch.float64, None, 0), views)  # oneDNN's bias is farther from it
    found = update(learner(kind, rule, "hebbian", torch.float32, None, 0), views)
    assert_near([t if t is None else t.double() for t in found], exact, least, rule.f)
    assert len(calls) == 3  # of the three blocks, and none of autograd's
    again = update(learner(kind, rule, "hebbian", torch.float32, None, 0), views)
    for one, other in zip(found, again, strict=True):
        assert (one is None and other is None) or (one is not None and other is not None and torch.equal(one, other))


def test_backpropagation_with_the_engines_gradient_of_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    module = benchmark("step", monkeypatch)
    monkeypatch.setattr(module.torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    found: list[Tensor] = []
    for turned in (False, True):
        torch.manual_seed(0)
        net = encoders.vgg6(0.05)
        net = module.pool_first(net) if turned else net
        monkeypatch.setattr(module.weights, "WORTH", 0)
        assert not turned or module.weights.by_places(net.blocks[0][0], torch.zeros(1, 3, 32, 32))
        net(torch.rand(2, 3, 32, 32))[-1].square().mean().backward()
        found.append(torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4 * float(found[0].abs().max()))


def test_both_ways_to_a_gradient_of_weights_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    module = benchmark("weights", monkeypatch)
    monkeypatch.setattr(module.torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    row = module.row(torch.nn.Conv2d(4, 6, 3, padding=1), 2, 5, 2)
    assert (row["channels"], row["taken"], row["n"]) == ([4, 6], False, 2)
    assert min(row[f"ms_{way}"] for way in ("forward", "onednn", "places")) > 0
    assert row["low"] <= row["ratio"] <= row["high"]
    assert module.weights.WORTH == 2**16
