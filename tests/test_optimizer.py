"""AdamW on factors: the numbers of AdamW on the whole gradient, and a state that either of them can go on with."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import localssl
from localssl import encoders, optimizer, rules
from localssl.optimizer import FactoredAdamW, add_grad, factors_of, leave_factors
from localssl.runs.config import TrainConfig
from localssl.training.train import train

from .util import usage_error


def factors(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(6, d, generator=generator, dtype=torch.float64) for d in (9, 5))  # type: ignore[return-value]


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_equal_to_adamw_on_the_whole_gradient(decay: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizer, "TILE", 5 * 8 * 2)  # two rows: the last tile has one
    start = torch.randn(9, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole, tiled = (nn.Parameter(start.clone()) for _ in range(2))
    one = torch.optim.AdamW([whole], lr=0.01, weight_decay=decay, fused=True)
    other = FactoredAdamW([tiled], lr=0.01, weight_decay=decay)
    for step in range(5):
        signal, c = factors(step)
        whole.grad = signal.T @ c
        if step == 3:  # a dense gradient in between is taken as one
            tiled.grad = signal.T @ c
        else:
            leave_factors(tiled, signal[:2], c[:2])  # what is left twice adds up
            leave_factors(tiled, signal[2:], c[2:])
        one.step()
        other.step()
        assert factors_of(tiled) is None
        other.zero_grad()
        torch.testing.assert_close(tiled, whole, rtol=1e-12, atol=1e-14)
    mine, theirs = other.state_dict()["state"][0], one.state_dict()["state"][0]
    assert mine.keys() == theirs.keys()
    for key, value in theirs.items():
        torch.testing.assert_close(mine[key], value, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("overflow", [0.0, 1.0])
def test_what_a_gradient_scaler_left_is_taken(overflow: float) -> None:
    """Dense gradients are divided by its scale, and stay unused where some number overflowed; as under AdamW."""
    found: list[Tensor] = []
    for kind in (torch.optim.AdamW, FactoredAdamW):
        p = nn.Parameter(torch.ones(9, 5))
        options = {"fused": True} if kind is torch.optim.AdamW else {}
        stepped = kind([p], lr=0.01, eps=1.0, **options)
        stepped.grad_scale, stepped.found_inf = torch.tensor(4.0), torch.tensor(overflow)
        for _ in range(2):
            p.grad = torch.full((9, 5), 8.0)
            stepped.step()
        found.append(p.detach())
    assert torch.equal(*found)
    assert bool((found[0] == 1).all()) == bool(overflow)


def test_factors_and_a_gradient_beside_them_are_one_step() -> None:
    """Whichever came first: AdamW's step of their sum, not two."""
    start = torch.randn(9, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole, mixed = (nn.Parameter(start.clone()) for _ in range(2))
    one, other = torch.optim.AdamW([whole], lr=0.01), FactoredAdamW([mixed], lr=0.01)
    for step in range(4):
        (signal, c), (before, after) = factors(step), factors(step + 10)
        whole.grad = signal.T @ c + before.T @ after
        for add in (add_grad, leave_factors)[:: (-1) ** step]:
            add(mixed, *((before.T @ after,) if add is add_grad else (signal, c)))
        one.step()
        other.step()
        other.zero_grad()
        assert other.state[mixed]["step"] == step + 1
        torch.testing.assert_close(mixed, whole, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("option", ["amsgrad", "maximize"])
def test_what_factors_would_be_without_is_refused(option: str) -> None:
    p = nn.Parameter(torch.zeros(9, 5))
    with usage_error(f"FactoredAdamW has no {option}"):
        FactoredAdamW([p], **{option: True})
    with usage_error(f"FactoredAdamW has no {option}"):
        FactoredAdamW([{"params": [p], option: True}])
    FactoredAdamW([p], **{option: False})


@pytest.mark.parametrize("factored", [False, True])
def test_what_a_closure_leaves_is_in_its_step(factored: bool) -> None:
    p, q = (nn.Parameter(torch.zeros(9, 5, dtype=torch.float64)) for _ in range(2))
    made = [FactoredAdamW([{"params": [x], "factored_moment": factored}], lr=0.01) for x in (p, q)]

    def closure() -> float:
        assert torch.is_grad_enabled()
        leave_factors(p, *factors(0))
        return 3.0

    assert made[0].step(closure) == 3.0
    leave_factors(q, *factors(0))
    assert made[1].step() is None
    assert torch.equal(p, q)
    assert p.any()


def test_zero_grad_forgets_factors() -> None:
    p = nn.Parameter(torch.zeros(9, 5, dtype=torch.float64))
    made = FactoredAdamW([p])
    leave_factors(p, *factors(0))
    made.zero_grad()
    made.step()
    assert not p.any()


def test_a_learner_steps_alike_with_factors_and_without() -> None:
    torch.manual_seed(0)
    first = localssl.Learner(encoders.vgg5(0.25), rules.get("clapp++both"), (1, 16, 16), (2, 2, 2, 1, 1)).double()
    second = copy.deepcopy(first)
    made = [FactoredAdamW(learner.parameters(), lr=1e-3) for learner in (first, second)]
    for step in range(3):
        views = torch.randn(2, 4, 1, 16, 16, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        for learner, one in zip((first, second), made, strict=True):
            dense = False
            for _ in learner.updates(*views, factored=learner is first):
                dense = dense or any(p.grad is not None for p in learner.projections.parameters())
                one.step()
                one.zero_grad()
            assert dense == (learner is second)
    for p, q in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


def reference(start: Tensor, gradients: list[Tensor], lr: float, decay: float) -> Tensor:
    """Adam with a factored second moment, entry by entry as it is defined."""
    p, m, r, c = start.clone(), torch.zeros_like(start), torch.zeros(len(start)), torch.zeros(start.shape[1])
    r, c = r.double(), c.double()
    for t, g in enumerate(gradients, start=1):
        m = 0.9 * m + 0.1 * g
        r, c = 0.999 * r + 0.001 * (g**2).mean(1), 0.999 * c + 0.001 * (g**2).mean(0)
        v = r[:, None] * c[None, :] / r.mean() / (1 - 0.999**t)
        p = p * (1 - lr * decay) - lr * (m / (1 - 0.9**t)) / (v.sqrt() + 1e-8)
    return p


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("how", ["factors", "dense", "both"])
def test_factored_moment(how: str, decay: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """As defined, whichever way the gradient comes, tile by tile, and with a state that can be taken up again."""
    monkeypatch.setattr(optimizer, "TILE", 5 * 8 * 2)
    start = torch.randn(9, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p, q = nn.Parameter(start.clone()), nn.Parameter(torch.ones(3, dtype=torch.float64))
    groups = [{"params": [q]}, {"params": [p], "factored_moment": True}]
    made = FactoredAdamW(groups, lr=0.01, weight_decay=decay)
    plain = torch.optim.AdamW([nn.Parameter(q.detach().clone())], lr=0.01, weight_decay=decay)
    gradients: list[Tensor] = []
    for step in range(4):
        signal, c = factors(step)
        gradients.append(signal.T @ c * (1 + (how == "both")))
        if how != "factors":
            p.grad = signal.T @ c
        if how != "dense":
            leave_factors(p, signal, c)
        q.grad = plain.param_groups[0]["params"][0].grad = torch.full_like(q, 0.1 * step + 0.1)
        made.step()
        plain.step()
        made.zero_grad()
        if step == 1:
            state = copy.deepcopy(made.state_dict())
            made = FactoredAdamW(groups, lr=0.01, weight_decay=decay)
            made.load_state_dict(state)
    torch.testing.assert_close(p.detach(), reference(start, gradients, 0.01, decay), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(q, plain.param_groups[0]["params"][0])
    assert made.state[p].keys() == {"step", "exp_avg", "row", "column"}
    assert sum(v.numel() for v in made.state[p].values()) == 9 * 5 + 9 + 5 + 1


def test_factored_moment_is_adam_where_squares_have_rank_one() -> None:
    start = torch.randn(9, 5, dtype=torch.float64)
    p, q = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    made = FactoredAdamW([{"params": [p], "factored_moment": True}], lr=0.01)
    adam = torch.optim.AdamW([q], lr=0.01)
    signal, c = (torch.randn(1, d, dtype=torch.float64) for d in (9, 5))
    for step in range(5):
        leave_factors(p, signal * (-1) ** step, c)
        q.grad = (-1) ** step * signal.T @ c
        made.step()
        adam.step()
    torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


def test_factored_moment_of_no_gradient_stays_finite() -> None:
    p = nn.Parameter(torch.ones(9, 5))
    made = FactoredAdamW([{"params": [p], "factored_moment": True}], lr=0.01, weight_decay=0)
    leave_factors(p, torch.zeros(6, 9), torch.randn(6, 5))
    made.step()
    assert torch.equal(p, torch.ones(9, 5))


def test_train_with_a_factored_moment(tmp_path: Path) -> None:
    """Reachable from train, resumable to the bit, and near Adam."""
    options = {
        "rule": "clapp++both",
        "data": "digits",
        "width": 0.25,
        "limit_images": 128,
        "probe_every": 0,
        "threads": 1,
    }
    end: dict[str, dict[str, Tensor]] = {}
    for name, kind, stages in (
        ("adam", "adam", (2,)),
        ("whole", "adam-factored", (2,)),
        ("parts", "adam-factored", (1, 2)),
    ):
        for epochs in stages:
            train(
                TrainConfig(**options, optimizer=kind, epochs=epochs, out=tmp_path / name, resume=True),  # type: ignore[arg-type]
                lambda _: None,
            )
        last = sorted((tmp_path / name / "checkpoint").glob("*.pt"), key=lambda f: int(f.stem.split("-")[1]))[-1]
        end[name] = torch.load(last, weights_only=True)["learner"]
    for key, value in end["whole"].items():
        assert torch.equal(value, end["parts"][key])
    moved = [float((end[n]["projections.lateral.0.weight"]).norm()) for n in ("adam", "whole")]
    assert moved[0] != moved[1]
    assert moved[0] == pytest.approx(moved[1], rel=0.2)


def test_a_weight_of_another_layout_than_its_gradient_follows_it() -> None:
    """Fused optimisers on the CPU read both in the order of their memory: the engine's gradients lie as weights do."""
    torch.manual_seed(0)
    views = [torch.rand(4, 3, 8, 8).to(memory_format=torch.channels_last) for _ in range(2)]
    moved: list[Tensor] = []
    for fused in (False, True):
        torch.manual_seed(1)
        conv = nn.Conv2d(3, 8, 3, padding=1)
        encoder = encoders.Encoder.from_blocks([nn.Sequential(conv, nn.ReLU())])
        learner = localssl.Learner(encoder, rules.get("clapp++"), (3, 8, 8), engine="hebbian")
        adam = torch.optim.AdamW([conv.weight], lr=0.1, weight_decay=0, fused=fused)
        learner.accumulate_grads(*views)
        adam.step()
        moved.append(conv.weight.detach())
    torch.testing.assert_close(moved[0], moved[1])


@pytest.mark.parametrize(
    ("shape", "rows"),
    [
        ((2048, 2048), 512),  # a quarter of 16 MiB
        ((8192, 8192), 256),  # 8 MiB of 256
        ((1024, 1024), 512),  # 2 MiB of 4
        ((512, 512), 512),  # all of 1 MiB
        ((10, 10), 10),
        ((0, 8), 1),
        ((4, 2**22), 1),  # a row is more than a tile
    ],
)
def test_tiles_are_neither_most_of_a_matrix_nor_too_small_to_be_worth_a_call(shape: tuple[int, int], rows: int) -> None:
    assert optimizer.tile_rows(torch.empty(shape, device="meta")) == rows
