"""Callbacks in a training loop of one's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import localssl
from localssl import callbacks
from localssl.errors import RunError, UsageError
from localssl.runs import metrics


def learner_of(rule: str = "clapp++") -> localssl.Learner:
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Conv2d(c, 6, 3, 2, 1), nn.ReLU()) for c in (3, 6, 6)]
    encoder = localssl.encoders.Encoder.from_blocks(blocks)
    return localssl.Learner(encoder, localssl.rules.get(rule), input_shape=(3, 16, 16), patches=(4, 2, 1))


def pairs(seed: int, count: int = 4) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [tuple(torch.randn(2, 8, 3, 16, 16, generator=generator)) for _ in range(count)]  # pyright: ignore


def train(learner: localssl.Learner, curves: callbacks.Curves | None) -> list[Tensor]:
    torch.manual_seed(1)
    optimiser = torch.optim.Adam(learner.parameters(), lr=1e-3)
    found: list[Tensor] = []
    for step in range(1, 7):
        a, b = torch.randn(2, 8, 3, 16, 16)  # random numbers that a measurement might move
        losses = learner.accumulate_grads(a, b)
        optimiser.step()
        optimiser.zero_grad()
        if curves is not None:
            curves(step, losses)
        found.append(losses)
    return found


def test_rows_hold_means_and_measurements_and_change_nothing(tmp_path: Path) -> None:
    plain, watched = learner_of("clapp++dfb"), learner_of("clapp++dfb")
    expected = train(plain, None)
    a, b = pairs(2)[0]
    measured = (callbacks.Align(watched, pairs(3)), callbacks.Observe(watched, a, b, a, torch.arange(8) % 2))
    with callbacks.Curves(tmp_path, *measured, lambda: {"mine": torch.rand(()).item()}, every=3) as curves:
        train(watched, curves)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, watched.state_dict()[name]), name
    assert watched.training
    rows = metrics.read(tmp_path)
    assert [row["step"] for row in rows] == ["1", "3", "6"]
    mean = torch.stack(expected[1:3]).mean(0)
    assert [float(rows[1][f"loss_{block}"]) for block in (1, 2, 3)] == pytest.approx(mean.tolist())
    assert float(rows[1]["loss"]) == pytest.approx(float(mean.sum()), rel=1e-6)
    own = localssl.alignment.measure(watched.encoder, watched, pairs(3))
    cosines = {r.block: r.mean for r in own if r.quantity == "cosine" and r.parameter == "weights"}
    assert {block: float(rows[2][f"align_{block}"]) for block in (1, 2, 3)} == pytest.approx(cosines)
    assert {"rank_1", "dead_3", "active_2", "knn"} <= set(rows[0])
    assert rows[0]["mine"] == rows[1]["mine"] == rows[2]["mine"]  # the same random numbers every time
    assert list((tmp_path / "tensorboard").iterdir())


def test_one_loss_in_all(tmp_path: Path) -> None:
    curves = callbacks.Curves(tmp_path / "new" / "own", every=2, trackers=())
    assert curves(1, torch.tensor(2.0)) == {"step": 1, "loss": 2.0, "loss_1": 2.0}
    assert curves(2, torch.tensor(4.0)) == {"step": 2, "loss": 4.0, "loss_1": 4.0}
    assert curves(3, torch.tensor(4.0)) is None
    assert [path.name for path in (tmp_path / "new" / "own").iterdir()] == ["metrics.csv"]


def test_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    curves = callbacks.Curves(tmp_path, every=2, trackers=())
    curves(1, torch.ones(2))
    curves(3, torch.tensor([1.0, torch.inf]))
    with pytest.raises(RunError, match="loss_2 became NaN or infinite by step 4"):
        curves(4, torch.ones(2))
    assert len(metrics.read(tmp_path)) == 1


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="every must be 1 or more"):
        callbacks.Curves(tmp_path, every=0)
    names = iter(["a", "b"])
    curves = callbacks.Curves(tmp_path, lambda: {next(names): 1.0}, every=1, trackers=())
    curves(1, torch.ones(2))
    with pytest.raises(UsageError, match="b: not measured at the first row"):
        curves(2, torch.ones(2))
    with pytest.raises(UsageError, match=r"holds metrics.csv already"):
        callbacks.Curves(tmp_path)
    align = callbacks.Align(learner_of(), pairs(3), reference="bp-clap")
    with pytest.raises(UsageError, match="bp-clap"):
        align()
    assert align.learner.training
