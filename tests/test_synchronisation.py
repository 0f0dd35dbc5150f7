"""How often a training step makes the host wait for the device: operations whose answer the host reads, counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch.utils._python_dispatch import TorchDispatchMode
from typing_extensions import override

from localssl.training import divergence
from localssl.training.loop import Loop

from .train_util import ENGINE, run_tiny

READ = {  # by the host, which then waits for all that the device was told before
    f"aten::{name}"
    for name in ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "unique_dim")
}
BLOCKS, STEPS = 5, 4


class Reads(TorchDispatchMode):
    """Counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func._schema.name in READ
        return func(*args, **(kwargs or {}))


def counted(monkeypatch: pytest.MonkeyPatch, owner: type, method: str) -> list[int]:
    """Reads in every call of a method from now on."""
    found, original = list[int](), getattr(owner, method)

    def call(*given: Any, **named: Any) -> Any:
        with Reads() as reads:
            answer = original(*given, **named)
        found.append(reads.count)
        return answer

    monkeypatch.setattr(owner, method, call)
    return found


@pytest.mark.parametrize(
    ("changes", "reads"),
    [
        ({"rule": "clapp++", **ENGINE}, BLOCKS),  # every block is applied before the next one runs
        ({"rule": "clapp", **ENGINE}, BLOCKS),
        ({"rule": "clapp++", "rule_options": ("negatives=random",), **ENGINE}, BLOCKS),
        ({"rule": "clapp++dfb", "engine": "hebbian-lean"}, BLOCKS),
        ({"rule": "clapp++dfb", "optimizer": "sgd", **ENGINE}, BLOCKS),  # dense changes of B are not held together
        ({"rule": "clapp++dfb", **ENGINE}, 1),
        ({"rule": "clapp++both", "rule_options": ("negatives=random",), **ENGINE}, 1),
        ({"rule": "clapp++both", "rule_options": ("projection=patch-local", "rank=4"), **ENGINE}, 1),
        ({"rule": "clapp++", "on_nan": "skip", **ENGINE}, 1),
        ({"rule": "clapp++"}, 1),  # autograd, which auto takes of a step so small
        ({"rule": "lpl"}, 1),
        ({"rule": "bp-clapp++"}, 1),
        ({"rule": "bp-simclr"}, 1),
    ],
)
def test_one_look_at_an_update_and_nothing_else(
    changes: dict[str, Any], reads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(divergence, "host_waits", lambda _learner: True)  # as on a device
    found = counted(monkeypatch, Loop, "train_step")
    rows = counted(monkeypatch, Loop, "log")
    run_tiny(tmp_path / "x", epochs=1, probe_every=0, **changes)
    assert found == [reads] * STEPS
    assert len(rows) == 2  # after the first step and after the epoch: losses are read there alone
    assert all(rows)


def test_on_the_cpu_a_block_is_applied_when_it_has_learnt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There a look makes nobody wait, and no block's ΔW is held until the last one has its own."""
    found = counted(monkeypatch, Loop, "train_step")
    run_tiny(tmp_path / "x", epochs=1, probe_every=0, rule="clapp++dfb", **ENGINE)
    assert found == [BLOCKS] * STEPS


def test_nothing_is_read_between_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for rows and checkpoints."""
    steps, rows, saves = (counted(monkeypatch, Loop, method) for method in ("train_step", "log", "save"))
    epochs = counted(monkeypatch, Loop, "train_on")
    run_tiny(tmp_path / "x", epochs=2, probe_every=0)
    assert len(epochs) == 2
    assert sum(epochs) == sum(steps) + sum(rows) + sum(saves[1:])  # the first is of the start
