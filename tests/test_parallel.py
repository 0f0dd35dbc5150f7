"""Several processes with parts of a batch train as one process with the whole of it."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from localssl import engine, parallel, rules, traffic
from localssl.encoders import Encoder
from localssl.errors import UsageError
from localssl.learner import Learner
from localssl.optimizer import FactoredAdamW
from localssl.parallel import Processes
from localssl.rules.base import ScoreRule
from localssl.training import sharding
from localssl.training.prepared import parameter_groups

STEPS = 10
WAYS = ("rows", "matrices", "auto", "sharded")


@dataclass(frozen=True)
class Case:
    """A rule on a small network, and the ways besides rows in which its change of B may come about."""

    rule: str
    options: dict[str, Any] = field(default_factory=dict)
    engine: str = "auto"
    ways: tuple[str, ...] = ()
    patches: tuple[int | None, ...] = (2, 2, 1)
    images: int = 6
    factored_moment: bool = False


CASES = {
    "clapp": Case("clapp"),
    "clapp++": Case("clapp++", engine="hebbian", ways=("sharded",)),
    "clapp++ under autograd": Case("clapp++", engine="autograd", ways=("sharded",)),
    "clapp++, type 1, softplus": Case("clapp++", {"f": "softplus", "loss_type": 1}, ways=("matrices",)),
    "clapp++, low rank": Case("clapp++", {"projection": "low-rank", "rank": 2}, ways=("matrices",)),
    "clapp++dfb": Case("clapp++dfb", engine="hebbian", ways=("matrices", "sharded")),
    "clapp++dfb, lean": Case("clapp++dfb", engine="hebbian-lean", ways=("matrices",), images=8),
    "clapp++both": Case("clapp++both", engine="hebbian", ways=("matrices", "sharded")),
    "clapp++both, some of each": Case("clapp++both", ways=("auto",), patches=(2, None, 1), images=36),
    "clapp++both, patch-local": Case("clapp++both", {"projection": "patch-local"}, ways=("matrices", "sharded")),
    "clapp++both, factored moment": Case("clapp++both", ways=("sharded",), factored_moment=True),
    "lpl": Case("lpl"),
    "bp-clapp++": Case("bp-clapp++", ways=("sharded",)),
    "bp-infonce": Case("bp-infonce", {"projection_dim": 4}),
    "bp-lpl": Case("bp-lpl"),
    "bp-simclr": Case("bp-simclr", images=12),
    "bp": Case("bp", {"classes": 3}),
}


def learner_of(case: str) -> Learner:
    torch.manual_seed(0)
    chosen = CASES[case]
    encoder = Encoder.from_blocks(
        [
            nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            nn.Sequential(nn.Conv2d(6, 5, 3, padding=1), nn.ReLU()),
            nn.Sequential(nn.Conv2d(5, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2)),
        ]
    )
    rule = rules.get(chosen.rule, **chosen.options)
    return Learner(encoder.double(), rule, (2, 8, 8), chosen.patches, chosen.engine).double()


def batch_of(step: int, images: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both views, labels, and negatives for the whole batch."""
    g = torch.Generator().manual_seed(step)
    view_a, view_b = torch.randn(2, images, 2, 8, 8, generator=g, dtype=torch.float64)
    negatives = torch.randint(2 * images, (2 * images,), generator=g)
    return view_a, view_b, torch.randint(3, (images,), generator=g), negatives


def trained(case: str, processes: Processes | None, way: str = "rows") -> dict[str, Any]:
    """Losses and gradients of the first step (as one update), weights after ten."""
    learner = learner_of(case)
    if processes is not None:
        processes.sent, processes.exchange = 0, "auto" if way == "sharded" else way
        if way == "sharded":
            sharding.shard(learner, processes, "adam")
    groups = parameter_groups(learner, CASES[case].factored_moment)
    optimiser = FactoredAdamW(groups, lr=1e-3, weight_decay=0.0)
    found: dict[str, Any] = {"gradients": {}, "losses": []}
    for step in range(STEPS):
        view_a, view_b, labels, negatives = batch_of(step, CASES[case].images)
        if processes is not None:
            part = processes.share(len(view_a))
            view_a, view_b, labels = view_a[part], view_b[part], labels[part]
        drawn = negatives if step % 2 else None  # "next" in the order of the whole batch, and given ones
        first: Tensor | None = None
        for losses in learner.updates(view_a, view_b, drawn, labels, factored=step > 0, processes=processes):
            if step == 0:
                for name, p in learner.named_parameters():
                    if p.grad is not None:
                        found["gradients"][name] = p.grad.clone()
            optimiser.step()
            optimiser.zero_grad()
            first = losses if first is None else first
        if step == 0 and processes is not None:
            found["sent"] = processes.sent
            found["expected"] = expected(learner, processes, len(view_a), CASES[case].factored_moment)
        found["losses"].append(first)
    found["weights"] = {name: p.detach().clone() for name, p in learner.named_parameters()}
    found["state"] = sharding.whole(learner, optimiser)
    found["held"] = held(learner, optimiser)
    return found


def ways_of(case: str) -> tuple[str, ...]:
    return ("rows", *CASES[case].ways)


def expected(learner: Learner, processes: Processes, images: int, moments: bool) -> int:
    """Bytes that a process sends in a step with "next" negatives, by formula, where there is one."""
    if not isinstance(learner.rule, ScoreRule) or learner.engine == "autograd":
        return processes.sent
    sizes = engine.sizes(learner.rule, learner.parts, learner.lengths, images, processes.size)
    matrices = learner.matrices(processes, images)
    if processes.exchange == "auto" and not sharding.shards(learner):
        assert matrices == {1}
    around = 2 * (processes.size - 1) / processes.size
    weights = sum(p.numel() for p in learner.encoder.parameters())
    numbers = traffic.numbers(sizes, matrices) + around * (weights + len(matrices))  # a loss each
    found = sharding.shards(learner).values()
    numbers += sum(around * 2 * 2 * images * processes.size for _ in found)  # scores of all samples
    parts = {module.d_z: len(module.weight) for module in found}.values()  # of each layer the signals, once
    numbers += sum((processes.size - 1) * 2 * images * part for part in parts)
    if moments:  # sums over columns, and one over all
        numbers += around * sum(module.weight.shape[1] + 1 for module in found)
    return round(8 * numbers)


def held(learner: Learner, optimiser: torch.optim.Optimizer) -> dict[str, int]:
    """Numbers of B and of those of its moments that are as large, that are here."""
    weights = list(learner.projections.parameters())
    moments = [m for p in weights for m in optimiser.state[p].values() if m.ndim == 2]
    return {"B": sum(p.numel() for p in weights), "moments": sum(m.numel() for m in moments)}


def work(rank: int, size: int, folder: str, cases: list[str]) -> None:
    torch.set_num_threads(1)
    traffic.THREAD = traffic.BYTES_ALONE  # so that a tiny network has some of each
    parallel.LARGE = 200  # some gradients are summed where they lie
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=size)
    try:
        processes = Processes()
        ff = Learner(learner_of("clapp").encoder, rules.get("ff"), (2, 8, 8))
        with pytest.raises(UsageError, match="cannot compare samples across processes: its samples"):
            ff.updates(*batch_of(0, 6)[:2], processes=processes)
        found = {f"{case}, {way}": trained(case, processes, way) for case in cases for way in ways_of(case)}
        torch.save(found, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("size", "cases"), [(2, list(CASES)), (3, ["clapp++both", "bp-simclr"]), (4, ["clapp++dfb, lean", "bp-simclr"])]
)
def test_as_one_process(size: int, cases: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        # processes that need not import everything anew
        mp.start_processes(work, (size, folder, cases), nprocs=size, start_method="fork")  # pyright: ignore
        results = [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(size)]
    for case in cases:
        one = trained(case, None)
        for way in ways_of(case):
            many = [result[f"{case}, {way}"] for result in results]
            for rank, found in enumerate(many):
                compare(found, one, f"{case}, {way}", (rank, size) if way == "sharded" else None)
                assert found["sent"] == pytest.approx(found["expected"], abs=8), f"{case}, {way}: bytes"
            for what, count in one["held"].items() if way == "sharded" and not CASES[case].options else ():
                assert sum(found["held"][what] for found in many) == count, f"{case}: {what}"
                # 5 and 6 channels, so that parts are not all of one size
                assert max(found["held"][what] for found in many) <= 1.1 * count / size, f"{case}: {what}"
            assert_close_states(many[0]["state"], one["state"])


def compare(many: dict[str, Any], one: dict[str, Any], case: str, share: tuple[int, int] | None = None) -> None:
    """Many processes against one; of a sharded B the rows of one of so many."""

    def here(found: Tensor, whole: Tensor) -> Tensor:
        if share is None or found.shape == whole.shape:
            return whole
        rank, size = share
        return whole[len(whole) * rank // size : len(whole) * (rank + 1) // size]

    assert many["gradients"].keys() == one["gradients"].keys() != set()
    for name, gradient in one["gradients"].items():
        found = many["gradients"][name]
        close(found, here(found, gradient), 1e-9, f"{case}: gradient of {name}")
    for mine, theirs in zip(many["losses"], one["losses"], strict=True):
        close(mine, theirs, 1e-9, f"{case}: losses")
    for name, weight in one["weights"].items():
        found = many["weights"][name]
        close(found, here(found, weight), 1e-6, f"{case}: {name} after ten steps")


def assert_close_states(found: Any, expected: Any, where: str = "state") -> None:
    """The same keys and shapes, and numbers that are close: what a checkpoint holds."""
    if isinstance(expected, Tensor):
        assert found.shape == expected.shape, where
        close(found, expected, 1e-6, where)
    elif isinstance(expected, dict):
        assert list(found) == list(expected), where
        for key in expected:
            assert_close_states(found[key], expected[key], f"{where}/{key}")
    else:
        assert found == expected or isinstance(expected, list), where


def close(found: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    difference = (found - expected).norm()
    assert difference <= tolerance * expected.norm(), f"{what} differs by {float(difference / expected.norm()):.1e}"


def test_no_group() -> None:
    with pytest.raises(UsageError, match="init_process_group"):
        Processes()
