"""The views of a batch do not depend on how many processes share it, nor does a run, but for rounding."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from localssl.data.part import Part
from localssl.data.specs import SPECS, Augmentation
from localssl.data.views import PATCHES, Views
from localssl.errors import RunError
from localssl.parallel import Processes
from localssl.training import sharing

from .train_util import folder, rows, run_tiny, weights

SHAPES: dict[str, tuple[Augmentation, tuple[int, ...], str | None]] = {
    "simclr": (SPECS["cifar10"].augmentation, (3, 32, 32), None),
    "grey simclr": (SPECS["cifar10"].augmentation, (1, 20, 20), None),
    "affine": (SPECS["digits"].augmentation, (1, 16, 16), None),
    "crops": (Augmentation("crops", pad=2), (3, 9, 12), None),
    "maps": (Augmentation("signal"), (2, 5, 12), None),
    "series": (Augmentation("signal"), (4, 20), None),
    "vectors": (Augmentation("signal"), (30,), None),
    "patches": (SPECS["cifar10"].augmentation, (3, 9, 12), PATCHES),
}
OWN = "import torch\n\n\ndef mine(x):\n    return x + torch.rand_like(x)\n"
LEAKY = """
import torch
import torch.distributed as dist
from torch import nn


class Draws(nn.Module):
    def forward(self, x):
        if dist.is_initialized() and dist.get_rank() == 1:
            torch.rand(1)
        return x


def net(shape):
    return nn.Sequential(nn.Conv2d(shape[0], 4, 3), nn.ReLU()), nn.Sequential(Draws(), nn.Conv2d(4, 4, 3), nn.ReLU())
"""


@pytest.fixture(autouse=True)
def _forked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("localssl.training.launch.START", "fork")


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("count", [4, 8])  # the colour jitter has four steps, which are not four images
def test_parts_have_the_views_of_the_whole(kind: str, count: int) -> None:
    augmentation, shape, name = SHAPES[kind]
    channels, side = shape[0], shape[-1]
    views = Views(augmentation, (0.5,) * channels, (0.25,) * channels, channels, side, name).double()
    torch.manual_seed(1)
    images = torch.rand(count, *shape, dtype=torch.float64)
    state = torch.get_rng_state()
    for size in (1, 2, 4):
        torch.set_rng_state(state)
        whole, after = views(images), torch.get_rng_state()
        for rank in range(size):
            each = count // size
            part = Part(rank * each, each, count)
            torch.set_rng_state(state)
            for view, expected in zip(views(part.own(images), part), whole, strict=True):
                torch.testing.assert_close(view, part.own(expected), rtol=0, atol=1e-12)
            assert torch.equal(torch.get_rng_state(), after)
    assert not torch.equal(whole[0], whole[1])


def colour(path: Path) -> str:
    return f"imagefolder:{folder(path)}"


def series(path: Path) -> str:
    path.mkdir()
    np.savez(path / "x.npz", x=np.random.default_rng(0).standard_normal((64, 3, 40)).astype(np.float32))
    return f"npz:{path / 'x.npz'}"


@pytest.mark.parametrize(
    "changes",
    [
        {"rule_options": ("negatives=random",)},
        {"rule": "clapp++dfb", "engine": "autograd"},
        {"rule": "clapp++both", "rule_options": ("negatives=random",), "exchange": "matrices"},
        {"rule": "bp-clapp++", "rule_options": ("negatives=random",)},
        {"data": colour, "rule": "clapp++dfb"},
        {"data": colour, "views": PATCHES},
        {"data": series},
    ],
    ids=lambda changes: " ".join(str(v if not callable(v) else v.__name__) for v in changes.values()),
)
def test_two_processes_are_the_run_of_one(changes: dict[str, Any], tmp_path: Path) -> None:
    """In float64, so that losses that differ in their views would show: ten steps of the command itself."""
    data = changes.get("data", "digits")
    given = {**changes, "data": data(tmp_path / "data") if callable(data) else data}
    given |= {"precision": "64-true", "epochs": 5, "batch_size": 16, "lr": 1e-3, "probe_every": 0}
    alone = {k: v for k, v in given.items() if k != "exchange"}
    one, two = run_tiny(tmp_path / "one", **alone), run_tiny(tmp_path / "two", **given, devices=2)
    for a, b in zip(rows(one.path), rows(two.path), strict=True):
        for name in a:
            if name.startswith("loss"):
                np.testing.assert_allclose(float(b[name]), float(a[name]), rtol=1e-6, atol=1e-9, err_msg=name)
    expected = weights(one.path)
    for name, w in weights(two.path).items():
        torch.testing.assert_close(w, expected[name], rtol=0, atol=1e-6)


def test_another_number_of_processes_goes_on_with_the_same_views(tmp_path: Path) -> None:
    given: dict[str, Any] = {"precision": "64-true", "rule_options": ("negatives=random",), "lr": 1e-3}
    whole = run_tiny(tmp_path / "whole", **given, epochs=3)
    run_tiny(tmp_path / "x", **given, epochs=1, devices=4)
    run_tiny(tmp_path / "x", **given, epochs=2, devices=2, resume=True)
    run_tiny(tmp_path / "x", **given, epochs=3, resume=True)
    for name, w in weights(tmp_path / "x").items():
        torch.testing.assert_close(w, weights(whole.path)[name], rtol=0, atol=1e-6)


def test_views_of_ones_own_draw_for_themselves(tmp_path: Path) -> None:
    """And all go on alike: negatives would differ otherwise, and the run end."""
    (tmp_path / "own.py").write_text(OWN)
    own = f"{tmp_path / 'own.py'}:mine"
    given: dict[str, Any] = {"views": own, "rule_options": ("negatives=random",), "precision": "64-true"}
    first = run_tiny(tmp_path / "x", **given, devices=2)
    again = run_tiny(tmp_path / "y", **given, devices=2)
    assert rows(first.path) == rows(again.path)


def test_views_of_ones_own_differ_between_processes(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    views = Views(SPECS["digits"].augmentation, (0.5,), (0.25,), 1, 8, f"{tmp_path / 'own.py'}:mine")
    images, state = torch.rand(4, 1, 8, 8), torch.get_rng_state()
    found: list[torch.Tensor] = []
    ends: list[torch.Tensor] = []
    for rank in (0, 1):
        torch.set_rng_state(state)
        found += sharing.seen(views, images, cast(Processes, SimpleNamespace(rank=rank, size=2)))
        ends.append(torch.get_rng_state())
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(found, 2))
    assert torch.equal(*ends)


def test_what_each_process_draws_for_its_own_samples() -> None:
    """Noise and negatives of another process are others, and no matter of the common generator."""
    drawn: dict[int, torch.Tensor] = {}
    for rank in (0, 1):
        one = cast(Processes, SimpleNamespace(rank=rank, size=2))
        state = torch.get_rng_state()
        with sharing.drawing(one, None, 0, 3):
            drawn[rank] = torch.rand(5 + rank)
        assert torch.equal(torch.get_rng_state(), state)
        with sharing.drawing(one, one, 0, 3):
            torch.rand(1)
        assert not torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(drawn[0], drawn[1][:5])


def test_processes_that_draw_apart_are_found(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(LEAKY)
    with pytest.raises(RunError, match=r"by step 1 the processes no longer draw the same random numbers: something of"):
        run_tiny(tmp_path / "x", encoder=f"{tmp_path / 'net.py'}:net", devices=2, width=1.0)
