"""Features of a frozen encoder: what they are, and that the encoder stays as it was."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from localssl import encoders
from localssl.data.views import Normalise
from localssl.encoders import Encoder
from localssl.errors import UsageError
from localssl.features import features

from .probe_util import images
from .util import assert_close_report


class Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def test_features_are_patch_means_channels_first():
    pixels = torch.arange(2 * 2 * 4 * 4, dtype=torch.uint8).view(2, 2, 4, 4)  # two images of two channels
    encoder = Encoder.from_blocks([Double(), Double(), Double()])
    normalise = Normalise((0.0, 0.0), (1 / 255, 1 / 255))  # pixels as they are
    got = features(encoder, images(pixels), patches=(2, 1, None), normalise=normalise, batch_size=1)
    # image 0, channel 0 is 0..15 in rows of four: the patches' means are 2.5, 4.5, 10.5, 12.5; channel 1 is 16 more
    patches = [2.5, 4.5, 10.5, 12.5, 18.5, 20.5, 26.5, 28.5]
    assert_close_report(got[0][0], 2 * np.array(patches), 1e-6)
    assert_close_report(got[0][1], 2 * np.array(patches) + 64, 1e-6)
    assert_close_report(got[1], 4 * pixels.flatten(1).double(), 1e-6)
    assert_close_report(got[2], 8 * np.array([[7.5, 23.5], [39.5, 55.5]]), 1e-6)
    assert all(f.dtype == torch.float32 for f in got)


def test_features_leave_every_mode_and_the_running_averages():
    torch.manual_seed(0)
    encoder = Encoder.from_blocks([nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)), nn.Dropout()])
    encoder.train()
    encoder.blocks[0].eval()
    before, modes = copy.deepcopy(encoder.state_dict()), [m.training for m in encoder.modules()]
    pixels = torch.randint(0, 256, (5, 1, 4, 4), dtype=torch.uint8)
    normalise = Normalise((0.5,), (0.5,))
    got = [features(encoder, images(pixels), patches=None, normalise=normalise, batch_size=size)[1] for size in (2, 5)]
    assert_close_report(got[0], got[1], 1e-6)  # dropout off, no batch statistics
    assert [m.training for m in encoder.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())


def test_features_errors():
    normalise = Normalise((0.5,), (0.5,))
    pixels = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    encoder = Encoder.from_blocks([Double()])
    with pytest.raises(UsageError, match="patch 3 does not divide the 4x4 map of block 1"):
        features(encoder, images(pixels), patches=(3,), normalise=normalise)
    with pytest.raises(UsageError, match="has 2 entries, the encoder 1 block"):
        features(encoder, images(pixels), patches=(2, 2), normalise=normalise)
    with pytest.raises(UsageError, match="toy has no images"):
        features(encoder, images(pixels[:0]), patches=(2,), normalise=normalise)
    with pytest.raises(UsageError, match="does not accept inputs of shape"):
        features(encoders.vgg5(in_channels=3), images(pixels), patches=None, normalise=normalise)
