"""Several processes with parts of a batch train as one process with the whole of it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from localssl import rules, sharding
from localssl.encoders import Encoder
from localssl.errors import UsageError
from localssl.learner import Learner
from localssl.optimizer import FactoredAdamW
from localssl.parallel import Processes
from localssl.prepared import parameter_groups

IMAGES, STEPS = 6, 10
CASES: dict[str, tuple[str, dict[str, Any], str]] = {
    "clapp": ("clapp", {}, "auto"),
    "clapp++": ("clapp++", {}, "hebbian"),
    "clapp++ under autograd": ("clapp++", {}, "autograd"),
    "clapp++, type 1, softplus": ("clapp++", {"f": "softplus", "loss_type": 1}, "auto"),
    "clapp++, low rank": ("clapp++", {"projection": "low-rank", "rank": 2}, "auto"),
    "clapp++dfb": ("clapp++dfb", {}, "hebbian"),
    "clapp++dfb, lean": ("clapp++dfb", {}, "hebbian-lean"),
    "clapp++both": ("clapp++both", {}, "hebbian"),
    "clapp++both, factored moment": ("clapp++both", {}, "hebbian"),
    "lpl": ("lpl", {}, "auto"),
    "bp-clapp++": ("bp-clapp++", {}, "auto"),
    "bp-infonce": ("bp-infonce", {"projection_dim": 4}, "auto"),
    "bp-lpl": ("bp-lpl", {}, "auto"),
    "bp-simclr": ("bp-simclr", {}, "auto"),
    "bp": ("bp", {"classes": 3}, "auto"),
}
SHARDED = (
    "clapp++",
    "clapp++ under autograd",
    "clapp++dfb",
    "clapp++dfb, lean",
    "clapp++both",
    "bp-clapp++",
    "clapp++both, factored moment",
)


def learner_of(case: str) -> Learner:
    torch.manual_seed(0)
    name, options, engine = CASES[case]
    encoder = Encoder.from_blocks(
        [
            nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            nn.Sequential(nn.Conv2d(6, 5, 3, padding=1), nn.ReLU()),
            nn.Sequential(nn.Conv2d(5, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2)),
        ]
    )
    return Learner(encoder.double(), rules.get(name, **options), (2, 8, 8), [2, 2, 1], engine).double()


def batch_of(step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both views, labels, and negatives for the whole batch."""
    g = torch.Generator().manual_seed(step)
    view_a, view_b = torch.randn(2, IMAGES, 2, 8, 8, generator=g, dtype=torch.float64)
    negatives = torch.randint(2 * IMAGES, (2 * IMAGES,), generator=g)
    return view_a, view_b, torch.randint(3, (IMAGES,), generator=g), negatives


def trained(case: str, processes: Processes | None, sharded: bool = False) -> dict[str, Any]:
    """Losses and gradients of the first step (as one update), weights after ten."""
    learner = learner_of(case)
    if processes is not None:
        processes.sent = 0
    if sharded:
        assert processes is not None
        sharding.shard(learner, processes, "adam")
    groups = parameter_groups(learner, factored_moment="factored moment" in case)
    optimiser = FactoredAdamW(groups, lr=1e-3, weight_decay=0.0)
    found: dict[str, Any] = {"gradients": {}, "losses": []}
    for step in range(STEPS):
        view_a, view_b, labels, negatives = batch_of(step)
        if processes is not None:
            part = slice(processes.rank * IMAGES // processes.size, (processes.rank + 1) * IMAGES // processes.size)
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
        found["losses"].append(first)
    found["weights"] = {name: p.detach().clone() for name, p in learner.named_parameters()}
    found["sent"] = 0 if processes is None else processes.sent
    found["state"] = sharding.whole(learner, optimiser)
    found["held"] = held(learner, optimiser)
    return found


def held(learner: Learner, optimiser: torch.optim.Optimizer) -> dict[str, int]:
    """Numbers of B and of those of its moments that are as large, that are here."""
    weights = list(learner.projections.parameters())
    moments = [m for p in weights for m in optimiser.state[p].values() if m.ndim == 2]
    return {"B": sum(p.numel() for p in weights), "moments": sum(m.numel() for m in moments)}


def work(rank: int, size: int, folder: str, cases: list[str]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=size)
    try:
        processes = Processes()
        ff = Learner(learner_of("clapp").encoder, rules.get("ff"), (2, 8, 8))
        with pytest.raises(UsageError, match="cannot compare samples across processes: its samples"):
            ff.updates(*batch_of(0)[:2], processes=processes)
        found = {case: trained(case, processes) for case in cases}
        found |= {f"{case}, sharded": trained(case, processes, sharded=True) for case in cases if case in SHARDED}
        torch.save(found, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(("size", "cases"), [(2, list(CASES)), (3, ["clapp++both", "bp-simclr"])])
def test_as_one_process(size: int, cases: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        # processes that need not import everything anew
        mp.start_processes(work, (size, folder, cases), nprocs=size, start_method="fork")  # pyright: ignore
        results = [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(size)]
    for case in cases:
        one = trained(case, None)
        for rank, result in enumerate(results):
            compare(result[case], one, case)
            if case in SHARDED:
                compare(result[f"{case}, sharded"], one, f"{case}, sharded", (rank, size))
        if case in SHARDED:
            many = [result[f"{case}, sharded"] for result in results]
            for what, count in one["held"].items():
                assert sum(m["held"][what] for m in many) == count, f"{case}: {what}"
                # 5 and 6 channels, so that parts are not all of one size
                assert max(m["held"][what] for m in many) <= 0.6 * count + (size == 3), f"{case}: {what}"
            assert_close_states(many[0]["state"], one["state"])
    for case in results[0]:
        assert all(result[case]["sent"] == results[0][case]["sent"] > 0 for result in results), case


def compare(many: dict[str, Any], one: dict[str, Any], case: str, share: tuple[int, int] | None = None) -> None:
    """Many processes against one; of a sharded B the rows of one of so many."""

    def here(name: str, whole: Tensor) -> Tensor:
        if share is None or not name.startswith("projections."):
            return whole
        rank, size = share
        return whole[len(whole) * rank // size : len(whole) * (rank + 1) // size]

    assert many["gradients"].keys() == one["gradients"].keys() != set()
    for name, gradient in one["gradients"].items():
        close(many["gradients"][name], here(name, gradient), 1e-9, f"{case}: gradient of {name}")
    for mine, theirs in zip(many["losses"], one["losses"], strict=True):
        close(mine, theirs, 1e-9, f"{case}: losses")
    for name, weight in one["weights"].items():
        close(many["weights"][name], here(name, weight), 1e-6, f"{case}: {name} after ten steps")


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
