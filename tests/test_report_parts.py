"""What the page of a run is made of: colours, thinned curves, pictures of filters, units, an embedding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from localssl import encoders
from localssl.encoders import Encoder
from localssl.report import charts, filters, units

from .browser_util import contrast


@pytest.mark.parametrize("dark", [False, True])
def test_colours_stand_out(dark: bool) -> None:
    """3 to 1 is what WCAG asks of graphics, 4.5 to 1 of text."""
    found = {name: [int(c[i : i + 2], 16) for i in (1, 3, 5)] for name, c in charts.colours(dark).items()}
    background = found.pop("paper")
    del found["grid"], found["shade"]  # lines behind the drawing, ground of code
    assert contrast([0, 0, 0], [255, 255, 255]) == pytest.approx(21)
    for name, colour in found.items():
        assert contrast(colour, background) >= (4.5 if name in ("ink", "muted", "link") else 3), name


def test_long_curves_are_means() -> None:
    rows = [{"epoch": float(i), "loss": float(i % 2)} for i in range(1000)]
    thin = charts.thinned(rows, ["epoch", "loss"], points=100)
    assert len(thin) == 100
    assert {row["loss"] for row in thin} == {0.5}
    assert charts.thinned([{"epoch": 1.0}], ["epoch", "loss"]) == [{"epoch": 1.0, "loss": None}]


def test_filters_of_a_layer() -> None:
    conv = encoders.conv_block(3, 4, pool=False)
    assert filters.first_weights(Encoder.from_blocks([conv]), (3, 8, 8)) is not None
    linear = encoders.mlp(3 * 4 * 4, widths=(5,))
    assert filters.first_weights(linear, (3, 16)) is None  # a series
    assert filters.first_weights(linear, (48,)) is None
    weight = filters.first_weights(linear, (3, 4, 4))
    assert weight is not None
    assert weight.shape == (5, 3, 4, 4)
    assert filters.first_weights(encoders.Encoder.from_blocks([nn.ReLU()]), (3, 4, 4)) is None
    assert filters.first_weights(Encoder.from_blocks([encoders.conv_block(5, 4, pool=False)]), (5, 4, 4)) is None
    weight = torch.zeros(2, 1, 3, 3)
    weight[0, 0, 0, 0], weight[1, 0, 2, 2] = -2.0, 4.0
    picture = np.asarray(filters.sheet(weight).resize((7, 3), Image.Resampling.NEAREST))
    assert picture[0, 0, :3].tolist() == [0, 0, 0]  # each filter by its own largest weight
    assert picture[2, 6, :3].tolist() == [255, 255, 255]
    assert picture[1, 1, :3].tolist() == [128, 128, 128]
    assert picture[0, 3, 3] == 0  # the gap is clear


class _Brightest(nn.Module):
    """One unit that is the image's brightest pixel, one its darkest's negative, which is never above 0."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, -x], 1)


def test_most_exciting() -> None:
    run = open_run_images()
    encoder = Encoder.from_blocks([_Brightest()])
    found = units.most_exciting(encoder, run, _Plain(), units=2, best=3, index=torch.arange(20))
    brightest = run.batch(torch.arange(20)).flatten(1).amax(1).float()
    assert [u.channel for u in found] == [1, 2]
    assert found[0].activity == brightest.topk(3).values.tolist()
    assert brightest[found[0].images].tolist() == found[0].activity
    assert found[1].images == []  # black somewhere in every image: 0 at most, so never active


class _Plain(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float()


def open_run_images() -> Any:
    from localssl.data.sources import open_images

    return open_images("digits", "test")


def test_embedding_finds_what_is_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(60, 20, generator=generator)
    z[30:, :10] += 8
    for found in units.embed(z).values():
        assert found.shape == (60, 2)
        centres = found[:30].mean(0), found[30:].mean(0)
        apart = np.linalg.norm(found - centres[0], axis=1) < np.linalg.norm(found - centres[1], axis=1)
        assert apart[:30].all()
        assert not apart[30:].any()
