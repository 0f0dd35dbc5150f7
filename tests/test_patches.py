"""Views that are two patches of one image: where they lie, that no colour changes, and runs of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from localssl.data.views import PATCHES, Patches, Views
from localssl.errors import UsageError
from localssl.runs.config import RunConfig, TrainConfig
from localssl.runs.run import open_run
from localssl.training.train import train

from .compare_util import in_this_process
from .test_arrays import vectors
from .test_bad_input import Capture, refuse, status
from .test_view_steps import CIFAR
from .train_util import assert_same_run, encoder_bytes, run_tiny
from .util import usage_error
from .views_util import has_rate, textures

SIDES = [(32, 32), (9, 12), (2, 3)]  # even; odd and not square; the smallest
N = 4000


def located(n: int, height: int, width: int) -> Tensor:
    """Three channels of texture, one that says which image it is, and two that say which column and row."""
    whose = torch.arange(n).view(n, 1, 1, 1).expand(n, 1, height, width)
    columns = torch.arange(width).expand(n, 1, height, width)
    rows = torch.arange(height).view(-1, 1).expand(n, 1, height, width)
    return torch.cat((torch.rand(n, 3, height, width), whose, columns, rows), 1)


def boxes(view: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Left, top, width and height of the patches of ``located``, in pixels, and whether they are mirrored."""
    low, high = view[:, 4:].amin((2, 3)).round(), view[:, 4:].amax((2, 3)).round()
    (left, top), (width, height) = low.unbind(1), (high - low + 1).unbind(1)
    return left, top, width, height, view[:, 4, 0, 0] > view[:, 4, 0, -1]


@pytest.mark.parametrize(("height", "width"), SIDES)
def test_two_patches_of_one_image_one_below_the_other(height: int, width: int) -> None:
    torch.manual_seed(3)
    images = located(N, height, width)
    view_a, view_b = Patches()(images)
    h, w = height // 2, width // 2
    (left, top_a, *_), (left_b, top_b, *_) = boxes(view_a), boxes(view_b)
    for view in (view_a, view_b):
        assert view.shape == images.shape
        assert torch.allclose(view[:, 3], images[:, 3], rtol=1e-6)  # of one image, and one colour stays that colour
        x, y, wide, high, _ = boxes(view)
        assert ((wide == w) & (high == h)).all()
        assert ((x >= 0) & (x <= width - w) & (y >= 0) & (y <= height - h)).all()
    assert torch.equal(left, left_b)
    assert ((top_a - top_b).abs() == h).all()
    for place in range(width - w + 1):
        assert has_rate(left == place, 1 / (width - w + 1))
    upper = torch.minimum(top_a, top_b)
    for place in range(height - 2 * h + 1):
        assert has_rate(upper == place, 1 / (height - 2 * h + 1))
    assert has_rate(top_a < top_b, 0.5)
    if w > 1:
        assert torch.equal(boxes(view_a)[4], boxes(view_b)[4])
        assert has_rate(boxes(view_a)[4], 0.5)
        assert has_rate((top_a < top_b) & boxes(view_a)[4], 0.25)  # not one coin for both
        assert has_rate(boxes(view_a)[4][1:] == boxes(view_a)[4][:-1], 0.5)  # each image for itself
    assert has_rate(left[1:] == left[:-1], 1 / (width - w + 1))


@pytest.mark.parametrize(("height", "width"), SIDES)
def test_a_patch_is_its_pixels_enlarged(height: int, width: int) -> None:
    """Image by image, cut and mirrored where the ramps say, nothing else done to it."""
    torch.manual_seed(4)
    images = located(40, height, width)
    h, w = height // 2, width // 2
    for view in Patches()(images):
        left, top, _, _, mirrored = boxes(view)
        for i, (x, y) in enumerate(zip(left.long().tolist(), top.long().tolist(), strict=True)):
            patch = images[i : i + 1, :, y : y + h, x : x + w]
            patch = patch.flip(3) if w > 1 and mirrored[i] else patch
            expected = nn.functional.interpolate(patch, (height, width), mode="bilinear")
            torch.testing.assert_close(view[i : i + 1], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_patches_are_normalised_and_come_from_torchs_generator_alone(dtype: torch.dtype) -> None:
    views = Views(CIFAR, (0.5,) * 3, (0.25,) * 3, 3, 32, PATCHES).to(dtype)
    images = (textures(8, 3, 32) * 255).to(torch.uint8)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, next_ones = views(images), views(images)
    torch.set_rng_state(state)
    bare = Patches()(images.to(dtype) / 255)
    torch.set_rng_state(state)
    for a, b, c, patch in zip(first, views(images), next_ones, bare, strict=True):
        assert a.dtype == dtype
        assert torch.equal(a, b)
        assert not torch.equal(a, c)
        torch.testing.assert_close(a, (patch - 0.5) / 0.25)


@pytest.mark.parametrize("shape", [(4, 7), (4, 3, 16), (4, 3, 1, 16)])
def test_what_no_patches_can_be_cut_from(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="--views patches are cut from images"):
        Patches()(torch.zeros(shape))


def test_from_the_command_line(tmp_path: Path, capsys: Capture) -> None:
    """Trained, probed, aligned; repeated from its flags and from its configuration; gone on with as it was begun."""
    sizes = "--epochs 2 --limit-images 64 --batch-size 16 --width 0.25 --threads 1"
    line = f"train --rule clapp --data digits --views patches {sizes}"
    assert status(f"{line} --dry-run --out {tmp_path / 'x'}") == 0
    assert not (tmp_path / "x").exists()
    assert status(f"{line} --out {tmp_path / 'x'}") == 0
    run = open_run(tmp_path / "x")
    assert run.config.views == "patches"
    assert RunConfig.from_yaml(run.config.to_yaml(), "x") == run.config
    assert run.config.own_files() == {}
    assert isinstance(run.views().transform, Patches)
    assert status(f"probe {run.path} --threads 1") == 0
    capsys.readouterr()
    assert status(f"align {run.path} --batches 2 --threads 1") == 0
    assert "two patches each" in " ".join(capsys.readouterr().out.split())
    others = run_tiny(tmp_path / "others", rule="clapp", lr=None)
    assert encoder_bytes(others.path) != encoder_bytes(run.path)
    for name, config in (("flags", run.path), ("resolved", run.path / "config.yaml")):
        assert status(f"train --config {config} --out {tmp_path / name} --threads 1") == 0
        assert_same_run(run.path, tmp_path / name)
    refuse(capsys, f"train --resume --out {others.path} --views patches", "views 'patches' (there: None)")
    assert train(TrainConfig(out=run.path, threads=1, resume=True, epochs=3), print).config.views == "patches"


def test_the_whole_view_of_the_data_is_probed(tmp_path: Path) -> None:
    """The encoder sees patches in training alone: sizes are those of a run of other views."""
    runs = [run_tiny(tmp_path / name, epochs=0, views=views) for name, views in (("a", None), ("b", PATCHES))]
    assert encoder_bytes(runs[0].path) == encoder_bytes(runs[1].path)
    assert [run.config.patches for run in runs] == [runs[0].config.patches] * 2
    assert runs[0].config.input_shape == runs[1].config.input_shape == (1, 16, 16)


def test_arrays_that_are_no_images_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    file = vectors(tmp_path / "v.npz")
    with usage_error(r"--views patches are cut from images .C, H, W. of 2 pixels a side or more, got shape .7,."):
        run_tiny(tmp_path / "x", data=f"npz:{file}", limit_images=None, views=PATCHES)
    assert not (tmp_path / "x").exists()


def test_a_comparison_of_patches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """Patches have no file that could change; the comparison goes on by its flags, and not with other views."""
    asked = in_this_process(monkeypatch)
    sizes = "--epochs 1 --width 0.25 --batch-size 16 --limit-images 64 --probe-images 200 --align-batches 2"
    line = f"compare --rules clapp --data digits {sizes} --seeds 1 --threads 1 --out {tmp_path / 'x'}"
    assert status(f"{line} --views patches") == 0
    cells = [json.loads((tmp_path / "x" / "cells" / f"{name}.json").read_text()) for name in asked]
    assert [cell["config"]["views"] for cell in cells] == ["patches"] * 2
    assert not any("views_source" in cell["task"][0] for cell in cells)
    assert ", views: patches, " in (tmp_path / "x" / "table.md").read_text()
    assert status(f"compare --config {tmp_path / 'x'} --out {tmp_path / 'x'} --threads 1") == 0
    assert asked == ["untrained-s0", "clapp-s0"]
    refuse(capsys, line, "views None (there: 'patches')")
