"""Vectors, time series and a user's own data and views, from the file to the probe."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import localssl
from localssl.data.sources import open_images
from localssl.data.specs import Augmentation
from localssl.data.views import Normalise, Signal, Views
from localssl.errors import UsageError
from localssl.runs.run import open_run

from .test_bad_input import Capture, refuse, status
from .train_util import assert_same_run, encoder_bytes, run_tiny

RNG = np.random.default_rng(0)
N = 96


def vectors(path: Path, **changes: Any) -> Path:
    y = np.arange(N) % 3
    x = RNG.standard_normal((N, 7)) + 2 * np.eye(3, 7)[y]
    parts = {"x_train": x[:64], "y_train": y[:64], "x_test": x[64:], "y_test": y[64:], **changes}
    np.savez(path, **{k: v for k, v in parts.items() if v is not None})
    return path


def series(path: Path) -> Path:
    y = np.array(["slow", "fast"])[np.arange(N) % 2]
    phase = RNG.random((N, 2, 1)) * 6
    x = np.sin(np.where(y == "slow", 0.2, 0.9)[:, None, None] * np.arange(32) + phase)
    np.savez(path, x=x.astype(np.float32), y=y)
    return path


TINY = "--epochs 2 --batch-size 16 --threads 1"


@pytest.mark.parametrize("kind", ["vectors", "series"])
def test_from_the_file_to_the_probe(tmp_path: Path, kind: str, capsys: Capture) -> None:
    file, out = {"vectors": vectors, "series": series}[kind](tmp_path / "d.npz"), tmp_path / "x"
    assert status(f"train --rule clapp++dfb --data npz:{file} --width 0.25 --out {out} {TINY}") == 0
    config = open_run(out).config
    assert (config.shape, config.encoder["name"]) == {"vectors": ((7,), "mlp"), "series": ((2, 32), "cnn1d")}[kind]
    assert len(config.mean) == {"vectors": 1, "series": 2}[kind]
    assert status(f"probe {out} --threads 1") == 0
    assert status(f"align {out} --batches 2 --batch-size 8") == 0
    encoder = localssl.load(out)
    x = open_images(f"npz:{file}", "test").batch(torch.arange(5))
    assert len(encoder(encoder.preprocess(x))) == {"vectors": 6, "series": 4}[kind]
    assert status(f"export {out} --embeddings --out {tmp_path / 'z.npy'}") == 0
    assert status(f"report {out} --threads 1") == 0
    assert (out / "report.html").read_text().count("neither grey nor RGB images") == 2  # filters and units
    assert status(f"train --resume --out {out} --epochs 3") == 0
    refuse(capsys, f"train --rule clapp --data npz:{file} --out {tmp_path / 'y'} --image-size 16", "goes with images")


def test_parts_and_labels(tmp_path: Path) -> None:
    given = vectors(tmp_path / "v.npz")
    train, test = (open_images(f"npz:{given}", part) for part in ("train", "test"))
    assert (len(train), len(test), train.shape, train.classes) == (64, 32, (7,), ("0", "1", "2"))
    assert train.batch(torch.arange(3)).dtype == torch.float32
    with np.load(given) as file:
        assert np.allclose(train.batch(torch.arange(64)), file["x_train"])
    train, test = (open_images(f"npz:{series(tmp_path / 's.npz')}", part) for part in ("train", "test"))
    assert (len(train), len(test), train.classes) == (77, 19, ("fast", "slow"))
    assert any("held out" in fact for fact in test.facts)
    assert len(open_images(f"npz:{given}", limit=10)) == 10


def test_the_views_of_signals() -> None:
    torch.manual_seed(0)
    x = torch.arange(1.0, 41).view(1, 1, 40).repeat(200, 2, 1)
    seen = Signal(noise=0, mask=0.25, shift=0.1)(x)
    assert torch.equal(seen[:, 0], seen[:, 1])
    assert ((seen == 0).sum(-1) == 10).all()
    values = seen[:, 0][seen[:, 0] > 0]
    assert set(values.tolist()) == set(range(1, 41))
    first = Signal(0, 0, 0.1)(x)[:, 0, 0]
    assert {int(v) for v in first} == {37, 38, 39, 40, 1, 2, 3, 4, 5}  # shifted by up to 4 either way
    seen = Signal(noise=0, mask=0.25, shift=0.1)(torch.ones(500, 8))
    assert float((seen == 0).float().mean()) == pytest.approx(0.25, abs=0.02)
    seen = Signal(noise=0.5, mask=0, shift=0)(torch.zeros(500, 8))
    assert float(seen.std()) == pytest.approx(0.5, abs=0.02)
    a, b = Views(Augmentation(kind="signal"), [3.0], [2.0], 1, 8)(torch.full((40, 8), 5.0))
    assert not torch.equal(a, b)
    assert float(a.mean()) == pytest.approx(0.8, abs=0.1)
    assert Normalise([1.0, 2.0], [1.0, 4.0])(torch.zeros(3, 2, 5))[0, :, 0].tolist() == [-1.0, -0.5]


OWN = """
import numpy as np
import torch

def bars(split):
    rng = np.random.default_rng(len(split))
    y = np.arange(48) % 2
    x = rng.random((48, 1, 16, 16)).astype(np.float32)
    x[y == 1, :, 8:] += 1
    return x, y

def view(x):
    return x + 0.1 * torch.randn_like(x)

class Bars(torch.utils.data.Dataset):
    def __init__(self, split):
        self.x, self.y = bars(split)

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        return torch.from_numpy(self.x[i]), int(self.y[i])

class Ragged(Bars):
    def __getitem__(self, i):
        return torch.zeros(1, 16, 16 + i), 0

class Endless(torch.utils.data.IterableDataset):
    def __init__(self, split):
        pass

    def __iter__(self):
        yield self

class View:
    def __call__(self, x):
        return view(x)

class Unfinished:
    def __call__(self, x):
        raise ValueError("not yet")

def half(x):
    return x[:, :1, :8]

def nothing(split):
    return "x"

def uneven(split):
    return np.ones((48, len(split)))

def fails(split):
    return np.load("/nowhere")
"""


def test_data_and_views_of_ones_own(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "mine.py"
    file.write_text(OWN, encoding="utf-8")
    settings: dict[str, Any] = {"data": f"{file}:bars", "encoder": "vgg5", "limit_images": None}
    settings |= {"views": f"{file}:view", "patches": (4, 4, 4, 2, 1)}
    run = run_tiny(tmp_path / "x", **settings)
    assert (run.config.shape, run.config.views) == ((1, 16, 16), f"{file}:view")
    assert set(run.config.own_files()) == {"data set", "views"}
    assert status(f"probe {tmp_path / 'x'} --threads 1") == 0
    run_tiny(tmp_path / "y", **settings)
    assert_same_run(tmp_path / "x", tmp_path / "y")
    with pytest.raises(UsageError, match=r"the parts train and test are .48, 5. and .48, 4.; both need"):
        open_images(f"{file}:uneven", "test")
    line = f"train --rule clapp++ --out {tmp_path / 'z'} {TINY}"
    mlp = "--encoder mlp --width 0.1"
    for flags, says, code in (
        (f"--data {file}:nothing {mlp}", "returned a str; return an array x", 2),
        (f"--data {file}:fails {mlp}", "FileNotFoundError", 2),
        (f"--data {file}:Ragged {mlp}", "item 1 is of shape (1, 16, 17); give tensors or arrays (C, H, W) of one", 2),
        (f"--data {file}:Endless {mlp}", "is a stream without a length; write shards", 2),
        (f"--data digits --limit-images 32 --views {file}:Unfinished", "(__call__): ValueError: not yet", 2),
        (f"--data {file}:bar {mlp}", "did you mean 'bars'", 2),
        (
            f"--data {file}:bars --views {file}:view --encoder vgg6",
            "vgg6 needs an image size that is a multiple of 32, got 16",
            2,
        ),
        (f"--data digits --views {file}:viw", "did you mean 'view'", 2),
        (
            f"--data digits --limit-images 32 --views {file}:half",
            "half returned of shape (16, 1, 8, 16)",
            2,
        ),
    ):
        refuse(capsys, f"{line} {flags}", says, code=code)
    assert not (tmp_path / "z").exists()


def test_classes_of_ones_own(tmp_path: Path) -> None:
    """A data set of PyTorch is read into arrays, a class of views is made once: the run is that of the functions."""
    file = tmp_path / "mine.py"
    file.write_text(OWN, encoding="utf-8")
    settings: dict[str, Any] = {"encoder": "vgg5", "limit_images": None, "patches": (4, 4, 4, 2, 1)}
    one = run_tiny(tmp_path / "x", data=f"{file}:bars", views=f"{file}:view", **settings)
    two = run_tiny(tmp_path / "y", data=f"{file}:Bars", views=f"{file}:View", **settings)
    assert encoder_bytes(one.path) == encoder_bytes(two.path)
    one_y, two_y = one.images("test").labels, two.images("test").labels
    assert one_y is not None
    assert two_y is not None
    assert torch.equal(one_y, two_y)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"x_train": None}, "holds no x_train, only"),
        ({"x_train": np.ones(64)}, "x is (64,); give (N, features)"),
        ({"x_train": np.full((64, 7), np.nan)}, "row 0 of x holds NaN, infinity or more than float32 does"),
        ({"x_train": np.full((64, 7), "a")}, "x holds <U1; give numbers"),
        ({"x_test": np.ones((32, 6))}, "x_train and x_test are (64, 7) and (32, 6); both need rows of one shape"),
        (
            {"x_train": np.full((64, 1, 32, 32), 255.0), "x_test": np.zeros((32, 1, 32, 32))},
            "numbers from 255 to 255; square maps of 1 or 3 channels are seen as images, uint8 or floats from 0 to 1",
        ),
        ({"y_train": np.arange(3)}, "give one whole number or text for each of 64 rows"),
        ({"y_train": np.full(64, 0.5)}, "y is float64"),
        ({"x_train": np.array([{}] * 64, dtype=object)}, "holds Python objects; write arrays of numbers or texts"),
    ],
)
def test_bad_files(tmp_path: Path, capsys: Capture, changes: dict[str, Any], says: str) -> None:
    file = vectors(tmp_path / "v.npz", **changes)
    refuse(capsys, f"train --rule clapp --data npz:{file} --out {tmp_path / 'x'}", says)


def test_files_that_are_none(tmp_path: Path, capsys: Capture) -> None:
    line = f"train --rule clapp --out {tmp_path / 'x'} --data"
    refuse(capsys, f"{line} npz:/nowhere.npz", "there is no file /nowhere.npz")
    refuse(capsys, f"{line} npz:", "names no path: write npz:PATH")
    refuse(capsys, f"{line} npz:{Path(__file__)}", "is no .npz; numpy.savez writes one")
    np.save(tmp_path / "one.npy", np.zeros((40, 3)))
    refuse(capsys, f"{line} npz:{tmp_path / 'one.npy'}", "is no .npz; numpy.savez writes one")
    (tmp_path / "cut.npz").write_bytes(vectors(tmp_path / "whole.npz").read_bytes()[:-40])
    refuse(capsys, f"{line} npz:{tmp_path / 'cut.npz'}", "is no .npz")
    np.savez(tmp_path / "twice.npz", x=np.zeros((40, 3)), x_train=np.zeros((40, 3)))
    refuse(capsys, f"{line} npz:{tmp_path / 'twice.npz'}", "holds x and x_train, and says twice what to train on")
    np.savez(tmp_path / "large.npz", x=np.full((40, 3), 1e39))
    with warnings.catch_warnings(action="error"):
        refuse(capsys, f"{line} npz:{tmp_path / 'large.npz'}", "NaN, infinity or more than float32 does")
    given = series(tmp_path / "s.npz")
    asks = line.replace("--rule clapp ", "--rule ff ")
    refuse(capsys, f"{asks} npz:{given}", "the rule asks for an encoder with norm, cnn1d has none; use vgg6 or mlp")
    refuse(capsys, f"{line} npz:{given} --encoder-options depth=3", "encoder 'cnn1d' has no options, 'depth' is none")
    file = vectors(tmp_path / "v.npz", y_test=np.full(32, 9))
    run = run_tiny(tmp_path / "run", data=f"npz:{file}", limit_images=None)
    refuse(capsys, f"probe {run.path}", "the label 9 does not occur in the training part")
