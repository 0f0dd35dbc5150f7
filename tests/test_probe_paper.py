"""The paper's protocol: what it trains, on which images, and what it leaves alone."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

from localssl import encoders
from localssl.data.sources import Images, open_images
from localssl.data.specs import Augmentation
from localssl.data.views import Normalise
from localssl.encoders import Encoder
from localssl.errors import UsageError
from localssl.probe import paper_probe
from localssl.probe.activity import features
from localssl.probe.paper import _augmentation, _test_view  # pyright: ignore[reportPrivateUsage]

from .probe_util import accuracies, images
from .util import assert_close_report


@pytest.fixture(scope="module")
def digits() -> tuple[Images, Images]:
    return open_images("digits", "train", limit=300), open_images("digits", "test", limit=200)


def paper(encoder: Encoder, train: Images, test: Images, **options):
    normalise = Normalise((0.3,), (0.35,))
    settings = {"patches": (4, 4, 4, 2, 1), "normalise": normalise, "augmentation": Augmentation(kind="affine")}
    return paper_probe(encoder, train, test, **(settings | options))


def test_paper_protocol_beats_chance_and_leaves_the_encoder_alone(digits: tuple[Images, Images]):
    torch.manual_seed(0)
    encoder = encoders.vgg5(0.5)
    encoder.train()
    encoder.blocks[1].eval()
    before, modes = copy.deepcopy(encoder.state_dict()), [m.training for m in encoder.modules()]
    generator = torch.get_rng_state()
    reports: list[tuple[int, int, float]] = []
    result = paper(encoder, *digits, epochs=6, lr=3e-3, report=lambda *args: reports.append(args))
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())
    assert [m.training for m in encoder.modules()] == modes
    assert all(p.grad is None for p in encoder.parameters())
    assert torch.equal(torch.get_rng_state(), generator)
    found = accuracies(result)
    assert [r.layer for r in result.rows] == ["1", "2", "3", "4", "5", "all"]
    assert found["all", "all"] > 60
    assert result.rows[-1].features == sum(r.features for r in result.rows[:-1])
    assert [r[:2] for r in reports] == [(i, 6) for i in range(1, 7)]
    assert reports[-1][2] < reports[0][2] < 2.4
    for words in ("300 training labels", "affine", "Adam 0.003", "6 epochs", "after the last epoch"):
        assert words in result.protocol
    once, again = (paper(encoder, *digits, epochs=1, lr=3e-3) for _ in range(2))
    assert once.rows == again.rows != result.rows


def test_paper_protocol_is_adam_on_each_layers_features_alone(digits: tuple[Images, Images]):
    """Without augmentation and with one batch per epoch, the first layer's classifier is a plain loop's."""
    train, test = digits
    torch.manual_seed(0)
    encoder = Encoder(encoders.vgg5(0.5).blocks[:2])
    still = Augmentation("affine", degrees=0.0, translate=0.0, scale=(1.0, 1.0), shear=0.0)
    options = {"patches": (4, 4), "augmentation": still, "batch_size": len(train), "seed": 7, "lr": 0.01}
    normalise = Normalise((0.3,), (0.35,))
    x, x_test = (features(encoder, part, patches=(4, 4), normalise=normalise)[0] for part in (train, test))
    assert train.labels is not None
    assert test.labels is not None
    torch.manual_seed(7)
    head = nn.Linear(x.shape[1], 10)
    adam = torch.optim.Adam(head.parameters(), lr=0.01)
    want: list[float] = []
    for _ in range(20):
        adam.zero_grad()
        nn.functional.cross_entropy(head(x), train.labels).backward()
        adam.step()
        want.append(100 * float((head(x_test).argmax(1) == test.labels).double().mean()))
    got = [accuracies(paper(encoder, train, test, epochs=n, **options))["1", "all"] for n in (3, 20)]
    assert got == [pytest.approx(want[2], abs=0.51), pytest.approx(want[19], abs=0.51)]  # one image may be on the edge
    assert want[19] > want[2] + 10


def test_paper_protocol_augments_colour_images_by_crops(digits: tuple[Images, Images]):
    pixels = torch.randint(0, 256, (40, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    y = torch.arange(40) % 2
    pixels[y == 1] = pixels[y == 1] // 4
    part = images(pixels, y)
    torch.manual_seed(0)
    encoder = encoders.vgg5(0.5, in_channels=3)
    normalise = Normalise((0.5,) * 3, (0.5,) * 3)
    result = paper(encoder, part, part, normalise=normalise, augmentation=Augmentation(), epochs=10, batch_size=8)
    assert accuracies(result)["all", "all"] == 100  # dark against bright survives any crop
    assert "random resized crop of 8 to 100 %" in result.protocol


def test_training_crops_cover_8_to_100_percent_and_half_are_flipped():
    torch.manual_seed(0)
    ramp = torch.linspace(0, 1, 32)
    x = torch.stack((ramp.expand(32, 32), ramp[:, None].expand(32, 32), torch.full((32, 32), 0.25))).expand(
        500, 3, 32, 32
    )
    out = _augmentation(Augmentation(crop_scale=(0.25, 1.0)), 3, 32)(x)  # the pre-training's scale does not matter
    width = (out[:, 0, 16, 20] - out[:, 0, 16, 12]) / 8 * 31  # of the crop, as a share of the image
    height = (out[:, 1, 20, 16] - out[:, 1, 12, 16]) / 8 * 31
    area = width.abs() * height
    assert 0.07 < area.min() < 0.12
    assert 0.9 < area.max() < 1.01
    assert abs(float(area.mean()) - 0.54) < 4 * 0.27 / 500**0.5 + 0.03  # some large ones do not fit and are drawn anew
    assert abs(float((width < 0).float().mean()) - 0.5) < 4 * 0.5 / 500**0.5
    assert_close_report(out[:, 2], torch.full((500, 32, 32), 0.25), 1e-5)  # no change of colour


def test_affine_data_is_augmented_by_its_own_map():
    torch.manual_seed(0)
    x = torch.zeros(200, 1, 16, 16)
    x[:, 0, 4:12, 6:8] = 1
    out = _augmentation(Augmentation("affine", degrees=0.0, translate=0.25, scale=(1.0, 1.0), shear=0.0), 1, 16)(x)
    columns = (out.sum((1, 2)) * torch.arange(16)).sum(1) / out.sum((1, 2, 3)) - 6.5
    assert columns.min() < -3
    assert columns.max() > 3
    assert columns.abs().max() < 4.1  # a quarter of 16


def test_stl10_test_images_are_enlarged_and_cropped():
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import center_crop, resize

    x = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    want = center_crop(resize(x, [105, 105], InterpolationMode.BILINEAR, antialias=True), [96, 96])
    assert_close_report(_test_view(x), want, 1e-6)
    assert torch.equal(_test_view(x[..., :32, :32]), x[..., :32, :32])


def test_paper_protocol_errors(digits: tuple[Images, Images]):
    train, test = digits
    encoder = encoders.vgg5(0.5)
    unlabelled = images(torch.zeros(4, 1, 16, 16, dtype=torch.uint8))
    with pytest.raises(UsageError, match="the training part of toy has no labels; the linear probe needs them"):
        paper(encoder, unlabelled, test)
    with pytest.raises(UsageError, match="epochs is 0"):
        paper(encoder, train, test, epochs=0)
    small = images(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.arange(4))
    with pytest.raises(UsageError, match=r"training images are \(1, 16, 16\), test images \(1, 8, 8\)"):
        paper(encoder, train, small)
    broken = copy.deepcopy(encoder)
    nn.init.constant_(next(broken.blocks[2].parameters()), float("nan"))
    with warnings.catch_warnings(), pytest.raises(UsageError, match="features of block 3 are not finite"):
        paper(broken, train, test, epochs=1)
    assert broken.training
