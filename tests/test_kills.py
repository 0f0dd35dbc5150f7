"""SIGKILL at any moment, checkpoints half written included: ``benchmarks/kills.py`` with few kills."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch

from localssl.runs import checkpoint

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def kills(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("kills")


def test_killed_at_any_moment(kills: ModuleType, tmp_path: Path) -> None:
    found = kills.measure(8, 10, tmp_path, seed=1)
    assert found["kills"] == 8
    assert found["finished"] >= 1
    assert found["different"] == 0
    assert found["moments"].get("writing a checkpoint", 0) > 0
    assert not [file for file in (tmp_path / "run-0").rglob(".*.tmp") if (tmp_path / "run-1").exists()]


@pytest.mark.long
def test_a_run_that_forgets_is_seen(kills: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resumed with another state of the random numbers, a run is not the same any more."""
    monkeypatch.setattr(checkpoint, "set_rng_state", lambda state, device=None: torch.manual_seed(5))
    # Kills before the first checkpoint are no resumptions: other moments, then.
    assert any(kills.measure(2, 6, tmp_path / str(seed), seed=seed)["different"] for seed in range(2, 30))
