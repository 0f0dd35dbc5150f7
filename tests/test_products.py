"""The flat products of B by either library: equal, wherever the engine takes the one or the other."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from localssl import optimizer, products, rules
from localssl.optimizer import FactoredAdamW
from localssl.products import by_onednn, product

from .engine_util import RULES, batch, learner, sizes, update
from .test_engine_float32 import assert_near

onednn = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise") or platform.machine() not in ("x86_64", "AMD64"),
    reason="no oneDNN in this PyTorch, or a processor on which nothing is chosen",
)


def pair(n: int, d: int, e: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    return torch.randn(n, e, generator=generator), torch.randn(d, e, generator=generator)


@onednn
@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize(("n", "d", "e"), [(64, 1024, 1024), (33, 1030, 1001), (700, 900, 64), (1, 6000, 6000)])
def test_both_libraries_make_the_same(n: int, d: int, e: int, strided: bool) -> None:
    x, w = pair(n, d, e)
    if strided:
        x, w = x.T.contiguous().T, w.T.contiguous().T
    assert by_onednn(x, w)
    found = product(x, w)
    assert found.is_contiguous()  # as a weight is: fused optimisers read both in the order of their memory
    exact = x.double() @ w.double().T
    bound = 2**-23 * e**0.5  # sums of e terms, one after the other on some processors, each rounded
    assert float((found - exact).norm()) < bound * float(exact.norm())


@onednn
def test_where_it_is_not_onednns() -> None:
    x, w = pair(64, 1024, 1024)
    assert by_onednn(x, w)
    assert not by_onednn(x[:16], w)  # too little to do
    assert not by_onednn(x.double(), w.double())
    assert not by_onednn(x.bfloat16(), w.bfloat16())
    assert not by_onednn(x.to("meta"), w.to("meta"))
    with torch.backends.mkldnn.flags(enabled=False):  # pyright: ignore[reportUnknownMemberType]
        assert not by_onednn(x, w)
    with torch.autocast("cpu", torch.bfloat16):
        assert not by_onednn(x, w)
        assert product(x, w).dtype == torch.bfloat16


@onednn
def test_tiles_on_intels_processors_are_mkls(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = pair(64, 1024, 1024)
    for name, by in (("Intel(R) Xeon(R) Processor", False), ("AMD EPYC", True)):
        monkeypatch.setattr(products, "processor", lambda name=name: name)
        assert by_onednn(x, w, tile=True) == by
        assert by_onednn(x, w)


def test_room_is_taken() -> None:
    x, w = pair(3, 4, 5)
    room = torch.zeros(3, 4)
    assert product(x, w, room) is room
    torch.testing.assert_close(room, x @ w.T)


def test_no_graph() -> None:
    x, w = pair(64, 1024, 1024)
    for n in (64, 1):
        assert not product(x[:n].requires_grad_(), w.requires_grad_()).requires_grad


@onednn
@pytest.mark.parametrize("kind", ["linear", "max"])
@pytest.mark.parametrize("name", RULES)
def test_the_engine_is_equal_to_autograd_by_it(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rule, views = rules.get(name), batch(kind, 0)
    least = sizes(learner(kind, rules.get(name, f="linear"), "auto", torch.float64, None, 0), views)
    exact = update(learner(kind, rule, "autograd", torch.float32, None, 0), views)
    monkeypatch.setattr(products, "WORTH", 0)
    assert_near(update(learner(kind, rule, "hebbian", torch.float32, None, 0), views), exact, least, rule.f)


@onednn
def test_a_step_by_factors_is_equal_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "processor", lambda: "AMD EPYC")
    monkeypatch.setattr(optimizer, "LEAST", 0)  # several tiles of each B, and no buffer where they are oneDNN's
    found: list[Tensor] = []
    for worth in (products.WORTH, 0):
        monkeypatch.setattr(products, "WORTH", worth)
        made = learner("max", rules.get("clapp++both"), "hebbian", torch.float32, None, 0)
        optimiser = FactoredAdamW(made.parameters(), lr=1e-3, eps=1e-3)
        for _ in made.updates(*batch("max", 0).float(), factored=True):
            optimiser.step()
            optimiser.zero_grad()
        found.append(torch.cat([p.detach().flatten() for p in made.parameters()]))
    torch.testing.assert_close(*found, rtol=0, atol=1e-6)


@onednn
@pytest.mark.parametrize("name", ["Intel(R) Xeon(R) Processor", "AMD EPYC"])
def test_the_same_bits_again(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a product and of training steps, from memory that lies elsewhere; runs on digits are too small for it."""
    monkeypatch.setattr(products, "processor", lambda: name)
    x, w = pair(64, 1024, 1024)
    assert torch.equal(product(x, w), product(x.clone(), w.clone()))
    monkeypatch.setattr(products, "WORTH", 0)
    monkeypatch.setattr(optimizer, "LEAST", 0)
    found: list[Tensor] = []
    for _ in range(2):
        made = learner("max", rules.get("clapp++both"), "hebbian", torch.float32, None, 0)
        optimiser = FactoredAdamW(made.parameters(), lr=1e-3)
        for seed in range(3):
            for _ in made.updates(*batch("max", seed).float(), factored=True):
                optimiser.step()
                optimiser.zero_grad()
        found.append(torch.cat([p.detach().flatten() for p in made.parameters()]))
    assert torch.equal(*found)


@onednn
def test_no_layout_takes_the_slow_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN takes a thousand times as long for a slice of transposed weights; a tile of ΔB must not become that."""
    monkeypatch.setattr(products, "on_intel", lambda: True)
    signal, c = torch.randn(64, 2048), torch.randn(64, 2048)
    tile = signal[:, 512:1024].T

    def seconds(make: Callable[[], Tensor]) -> float:
        taken: list[float] = []
        for _ in range(3):
            began = time.perf_counter()
            make()
            taken.append(time.perf_counter() - began)
        return min(taken)

    assert seconds(lambda: product(tile, c.T)) < 50 * seconds(lambda: tile @ c)
