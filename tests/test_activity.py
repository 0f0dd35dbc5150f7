"""Features of a frozen encoder: what they are, and that the encoder stays as it was."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from localssl import encoders, evaluate
from localssl.data.views import Normalise
from localssl.encoders import Encoder
from localssl.errors import UsageError
from localssl.probe.activity import features, settle

from .probe_util import images
from .train_util import run_tiny
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


def test_batch_norms_that_have_seen_nothing() -> None:
    """They take the statistics of what they are shown; trained ones keep theirs, and so do their modes."""
    torch.manual_seed(0)
    encoder = encoders.vgg6(0.05, norm="batch").eval()
    norms = [m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    x = 3 + 2 * torch.randn(64, 3, 32, 32)
    before = encoder(x)[-1]
    settle(encoder, encoder.emitted, [x])
    assert not any(m.training or m.momentum is None for m in norms)
    settled = encoder(x)[-1]
    with torch.no_grad():
        encoder.train()
        of_the_batch = encoder(x)[-1]
        encoder.eval()
    torch.testing.assert_close(settled, of_the_batch, rtol=0.02, atol=0.02)  # running variances are unbiased
    assert not torch.allclose(before, of_the_batch, rtol=0.1, atol=0.1)
    kept = [m.running_mean.clone() for m in norms if m.running_mean is not None]
    settle(encoder, encoder.emitted, [x + 5])
    assert all(torch.equal(m.running_mean, k) for m, k in zip(norms, kept, strict=True) if m.running_mean is not None)


def test_an_untrained_encoder_is_probed_with_settled_norms(tmp_path: Path) -> None:
    run = run_tiny(tmp_path, rule="softhebb", epochs=0, encoder=None, limit_images=None)
    found = evaluate.probe_run(run, evaluate.ProbeOptions())
    assert found["untrained"].rows == found["softhebb"].rows
    encoder = run.learner().encoder
    evaluate.probe_encoder(run, encoder, run.images("train"), run.images("test"), evaluate.ProbeOptions())
    assert all(m.num_batches_tracked > 0 for m in encoder.modules() if isinstance(m, nn.BatchNorm2d))


def test_an_encoder_without_weights_is_probed(tmp_path: Path) -> None:
    run = run_tiny(tmp_path, epochs=0, limit_images=None)
    plain = replace(run, config=replace(run.config, patches=None))
    encoder = Encoder.from_blocks([nn.AvgPool2d(4)])
    found = evaluate.probe_encoder(plain, encoder, run.images("train"), run.images("test"), evaluate.ProbeOptions())
    assert found.rows
