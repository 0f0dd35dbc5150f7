"""Data sets by name: every layout, the two parts, limits, memory or disk, and the real files where they are."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from localssl.data.sources import Images, data_names, open_images
from localssl.errors import RunError, UsageError

from .sources_util import (
    encoded,
    pictures,
    real_root,
    write_cifar10,
    write_files,
    write_idx,
    write_parquet,
)


def everything(images: Images) -> torch.Tensor:
    return images.batch(torch.arange(len(images)))


def labels_of(images: Images) -> list[int]:
    assert images.labels is not None
    assert images.labels.dtype == torch.int64
    return images.labels.tolist()


def noted(images: Images, text: str) -> bool:
    return any(text in note for note in images.notes)


def chw(images: np.ndarray) -> torch.Tensor:
    return torch.as_tensor(images.transpose(0, 3, 1, 2).copy())


def png_set(path: Path, count: int = 20, classes: int = 4, seed: int = 0) -> tuple[np.ndarray, list[int]]:
    """Images and labels sorted by class, as many published sets are."""
    images, labels = pictures(count, seed=seed), sorted(i % classes for i in range(count))
    write_parquet(path, [encoded(image) for image in images], labels)
    return images, labels


def test_digits_are_split_into_two_stratified_parts_and_enlarged() -> None:
    train, test = open_images("digits"), open_images("digits", "test")
    assert (len(train), len(test), train.shape, test.classes) == (1297, 500, (1, 16, 16), tuple("0123456789"))
    native: Any = load_digits()
    assert (np.abs(np.bincount(labels_of(test)) - np.bincount(native.target) * 500 / 1797) < 1).all()
    small = [open_images("digits", split, image_size=8) for split in ("train", "test")]
    pairs = [
        (y, *x.flatten().tolist()) for part in small for x, y in zip(everything(part), labels_of(part), strict=True)
    ]
    scaled = np.rint(native.images * 255 / 16).astype(int).reshape(1797, 64)
    assert sorted(pairs) == sorted((int(y), *x.tolist()) for x, y in zip(scaled, native.target, strict=True))
    # twice the size, bilinear, from its definition: three quarters of the near pixel and one of the next
    weights = np.zeros((16, 8))
    for i in range(16):
        for source, share in ((i // 2, 0.75), (min(max(i // 2 + (1 if i % 2 else -1), 0), 7), 0.25)):
            weights[i, source] += share
    large = weights @ everything(small[0])[:, 0].double().numpy() @ weights.T
    assert np.abs(everything(train)[:, 0].numpy() - large).max() <= 0.5


def test_mnist_is_padded_to_32_and_a_size_of_28_leaves_it_alone(tmp_path: Path) -> None:
    images = pictures(5, 28, 28)[..., 0]
    write_idx(tmp_path / "MNIST" / "raw", "train", images, [3, 1, 4, 1, 5])
    mnist = open_images("mnist", root=tmp_path)
    assert mnist.shape == (1, 32, 32)
    assert labels_of(mnist) == [3, 1, 4, 1, 5]
    assert noted(mnist, "5 of 60,000 train images")
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2)))
    assert torch.equal(everything(mnist), torch.as_tensor(padded)[:, None])
    native = open_images("mnist", root=tmp_path, image_size=28, channels=3)
    assert torch.equal(everything(native), torch.as_tensor(images)[:, None].expand(-1, 3, -1, -1))
    file = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UsageError, match="train-images-idx3-ubyte or its labels cannot be read"):
        open_images("mnist", root=tmp_path)


def test_cifar10_binary_holds_its_channels_one_after_the_other(tmp_path: Path) -> None:
    images, labels = write_cifar10(tmp_path / "cifar-10-batches-bin")
    for root in (tmp_path, tmp_path / "cifar-10-batches-bin"):
        cifar = open_images("cifar10", root=root)
        assert torch.equal(everything(cifar), torch.as_tensor(images))
        assert labels_of(cifar) == labels
    assert len(open_images("cifar10", "test", root=tmp_path)) == 4
    (tmp_path / "cifar-10-batches-bin" / "data_batch_3.bin").write_bytes(b"\0" * 3072)
    with pytest.raises(UsageError, match=r"data_batch_3.bin is damaged: 3,072 bytes, expected 30,730,000"):
        open_images("cifar10", root=tmp_path)
    (tmp_path / "cifar-10-batches-bin" / "data_batch_3.bin").unlink()
    with pytest.raises(UsageError, match=r"data_batch_3.bin is missing"):
        open_images("cifar10", root=tmp_path)
    (tmp_path / "cifar-10-batches-bin" / "test_batch.bin").write_bytes(b"\x0a" * 3073)
    with pytest.raises(UsageError, match="label 10, not 0 to 9"):
        open_images("cifar10", "test", root=tmp_path)


def test_cifar10_from_parquet_says_how_it_was_encoded(tmp_path: Path) -> None:
    images = pictures(3)
    jpegs = [encoded(image, "JPEG") for image in images]
    write_parquet(tmp_path / "cifar10" / "train.parquet", jpegs, [0, 9, 5])
    train = open_images("cifar10", root=tmp_path)
    assert noted(train, "CIFAR-10 (JPEG)")
    assert torch.equal(everything(train), chw(np.stack([np.asarray(Image.open(io.BytesIO(j))) for j in jpegs])))
    write_parquet(tmp_path / "cifar10" / "test.parquet", [encoded(i) for i in images], [0, 9, 10])
    with pytest.raises(UsageError, match=r"test.parquet holds 11 classes, not CIFAR-10's 10"):
        open_images("cifar10", "test", root=tmp_path)
    write_parquet(tmp_path / "cifar10" / "test.parquet", [encoded(i) for i in images], [0, 9, 1])
    test = open_images("cifar10", "test", root=tmp_path)
    assert not noted(test, "JPEG")
    assert torch.equal(everything(test), chw(images))


def test_cifar10_pickles_are_opened_only_after_their_checksum_matches(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "sprung",)

    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]
    write_files(tmp_path / "cifar-10-batches-py", {name: pickle.dumps(Trap()) for name in names})
    with pytest.raises(UsageError, match="does not match torchvision's checksums"):
        open_images("cifar10", root=tmp_path)
    assert not (tmp_path / "sprung").exists()


def test_stl10_is_stored_column_by_column(tmp_path: Path) -> None:
    images = pictures(6, 96, 96).transpose(0, 3, 1, 2)  # (n, 3, rows, columns)
    files = {f"{part}_X.bin": images.transpose(0, 1, 3, 2).tobytes() for part in ("train", "unlabeled")}
    write_files(tmp_path / "stl10_binary", {**files, "train_y.bin": bytes([1, 10, 2, 1, 9, 3])})
    train = open_images("stl10", root=tmp_path)
    assert torch.equal(everything(train), torch.as_tensor(images.copy()))
    assert labels_of(train) == [0, 9, 1, 0, 8, 2]
    assert train.classes[9] == "truck"
    unlabeled = open_images("stl10", "unlabeled", root=tmp_path, memory_limit=0)
    assert unlabeled.labels is None
    assert torch.equal(unlabeled.batch(torch.tensor([5, 0])), torch.as_tensor(images[[5, 0]]))
    assert noted(unlabeled, "read at 96 × 96 from disk whenever they are used")
    (tmp_path / "stl10_binary" / "train_y.bin").write_bytes(bytes([0, 10, 2, 1, 9, 3]))
    with pytest.raises(UsageError, match=r"train_y.bin does not hold one label from 1 to 10"):
        open_images("stl10", root=tmp_path)


def test_tiny_imagenet_folder_takes_labels_from_sorted_ids_and_the_annotations(tmp_path: Path) -> None:
    a, b, c = (encoded(picture, "JPEG") for picture in pictures(3, 64, 64))
    folder = tmp_path / "tiny-imagenet-200"
    write_files(folder, {"wnids.txt": b"n2\nn1\n", "train/n2/images/x.JPEG": a, "train/n1/images/y.JPEG": b})
    write_files(folder, {"val/images/v0.JPEG": c, "val/images/v1.JPEG": a})
    write_files(folder, {"val/val_annotations.txt": b"v0.JPEG\tn2\t0\t0\t9\t9\nv1.JPEG\tn1\t0\t0\t9\t9\n"})
    train = open_images("tiny-imagenet", root=tmp_path)
    test = open_images("tiny-imagenet", "test", root=tmp_path)
    assert (train.shape, train.classes) == ((3, 64, 64), ("n1", "n2"))
    assert (labels_of(train), labels_of(test)) == ([0, 1], [1, 0])
    assert torch.equal(train.batch(torch.tensor([1])), test.batch(torch.tensor([1])))  # picture a
    write_files(folder, {"val/val_annotations.txt": b"v0.JPEG\tn7\n"})
    with pytest.raises(UsageError, match=r"v0.JPEG has none of the 2 classes"):
        open_images("tiny-imagenet", "test", root=tmp_path)


def test_a_limit_draws_the_same_images_at_random_in_their_order(tmp_path: Path) -> None:
    images, labels = png_set(tmp_path / "train.parquet", 40)
    png_set(tmp_path / "test.parquet", 4)
    few = open_images(f"parquet:{tmp_path}", limit=10)
    where = [int((chw(images) == image).flatten(1).all(1).nonzero()) for image in everything(few)]
    assert where == sorted(where)
    assert len(set(where)) == 10
    assert where != list(range(10))
    assert [labels[row] for row in where] == labels_of(few)
    assert len(set(labels_of(few))) > 1
    assert noted(few, "10 of 40 images")
    again = open_images(f"parquet:{tmp_path}", limit=10)
    assert few.fingerprint() == again.fingerprint()
    assert noted(open_images(f"parquet:{tmp_path}", limit=41), "there are only 40 images")
    assert len(open_images("digits", "test", limit=7)) == 7
    for wrong in (0, -3):
        with pytest.raises(UsageError, match=f"limit {wrong} is too small"):
            open_images("digits", limit=wrong)


@pytest.mark.parametrize("options", [{}, {"limit": 9}, {"channels": 1, "image_size": 24}])
@pytest.mark.parametrize("kind", ["parquet", "imagefolder", "cifar10", "digits"])
def test_streamed_images_are_those_in_memory_bit_for_bit(kind: str, options: Any, tmp_path: Path) -> None:
    data, root = f"{kind}:{tmp_path}", None
    if kind == "parquet":
        png_set(tmp_path / "train.parquet")
    elif kind == "imagefolder":
        files = {f"{i % 3}/{i}.jpg": encoded(p, "JPEG") for i, p in enumerate(pictures(20, 50, 40))}
        write_files(tmp_path, files)
    else:
        data, root = kind, tmp_path
        write_cifar10(tmp_path / "cifar-10-batches-bin")
    memory = open_images(data, root=root, **options)
    streamed = open_images(data, root=root, memory_limit=10, **options)
    assert noted(memory, "into memory")
    assert noted(streamed, "from disk whenever they are used")
    index = torch.randperm(len(memory), generator=torch.Generator().manual_seed(0))[:50]
    assert torch.equal(memory.batch(index), streamed.batch(index))
    assert labels_of(memory) == labels_of(streamed)
    assert memory.fingerprint() == streamed.fingerprint()
    part, streamed_part = memory.subset(index[:5]), streamed.subset(index[:5])
    assert torch.equal(everything(part), memory.batch(index[:5]))
    assert torch.equal(everything(part), everything(streamed_part))
    assert labels_of(part) == labels_of(streamed_part) == [labels_of(memory)[i] for i in index[:5].tolist()]


def test_a_fingerprint_sees_pixels_labels_and_order(tmp_path: Path) -> None:
    images = open_images("digits", "test")
    other = torch.arange(len(images))
    assert images.subset(other).fingerprint() == images.fingerprint()
    seen = {images.fingerprint(), open_images("digits").fingerprint(), images.subset(other.flip(0)).fingerprint()}
    seen |= {images.subset(other[:-1]).fingerprint(), open_images("digits", "test", image_size=8).fingerprint()}
    pngs = [encoded(picture) for picture in pictures(5)]
    for labels in ([0, 1, 1, 0, 0], [0, 1, 1, 0, 1]):
        write_parquet(tmp_path / "train.parquet", pngs, labels)
        write_parquet(tmp_path / "test.parquet", pngs, labels)
        seen.add(open_images(f"parquet:{tmp_path}").fingerprint())
    assert len(seen) == 7


def test_an_index_must_be_whole_numbers_within_the_images() -> None:
    images = open_images("digits", "test")
    for wrong in (torch.tensor([500]), torch.tensor([-1]), torch.tensor([0.0]), torch.ones(500, dtype=torch.bool)):
        with pytest.raises(IndexError):
            images.batch(wrong)
        with pytest.raises(IndexError):
            images.subset(wrong)


@pytest.mark.parametrize(
    ("data", "split", "options", "message"),
    [
        ("cifar-10", "train", {}, "did you mean 'cifar10'"),
        ("parquett:x", "train", {}, "did you mean 'parquet:PATH'"),
        ("parquet", "train", {}, "write parquet:PATH"),
        ("imagefolder:", "train", {}, "names no path"),
        ("digits:x", "train", {}, "write digits"),
        ("digits", "tset", {}, "did you mean 'test'"),
        ("cifar10", "unlabeled", {}, "only stl10 has"),
        ("digits", "train", {"channels": 2}, "1 or 3 channels, not 2"),
        ("digits", "train", {"image_size": 0}, "image size 0 is too small"),
        ("tiny-imagenet", "train", {"download": True}, "only mnist, cifar10, stl10 can be downloaded"),
        ("mnist", "test", {}, "looked for t10k-images-idx3-ubyte, .*raw.*--download"),
        ("cifar10", "train", {}, "looked for cifar-10-batches-bin.*train.parquet.*--download"),
        ("stl10", "unlabeled", {}, "looked for unlabeled_X.bin in .*stl10_binary.*--download"),
        ("tiny-imagenet", "train", {}, "looked for train.parquet, .*get tiny-imagenet-200.zip"),
        ("parquet:nowhere", "train", {}, "no parquet file or folder nowhere.*expected train.parquet"),
        ("imagefolder:nowhere", "train", {}, "no image folder nowhere: expected PATH/train/CLASS"),
    ],
)
def test_mistakes_are_one_line_that_says_what_to_do(
    data: str, split: str, options: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        open_images(data, split, root=tmp_path / "none", **options)
    assert "\n" not in str(caught.value)


def test_the_environment_names_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar10(tmp_path / "cifar-10-batches-bin")
    monkeypatch.setenv("LOCALSSL_DATA", str(tmp_path))
    assert len(open_images("cifar10")) == 20
    assert data_names()[0] == "digits"


def test_files_that_vanish_during_a_run_are_a_run_error(tmp_path: Path) -> None:
    png_set(tmp_path / "set.parquet")
    images = open_images(f"parquet:{tmp_path / 'set.parquet'}", memory_limit=0)
    (tmp_path / "set.parquet").unlink()
    with pytest.raises(RunError, match=r"set.parquet cannot be read"):
        images.batch(torch.tensor([15]))


def test_real_mnist() -> None:
    root = real_root("MNIST/raw/train-images-idx3-ubyte")
    mnist = open_images("mnist", root=root)
    assert (len(mnist), mnist.shape) == (60_000, (1, 32, 32))
    assert labels_of(mnist)[:10] == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert int(mnist.batch(torch.arange(10)).sum()) == 234304  # from the file's bytes


def test_real_cifar10_with_a_limit() -> None:
    root = real_root("cifar10/train.parquet")
    cifar = open_images("cifar10", root=root, limit=200)
    assert (len(cifar), cifar.shape, len(cifar.classes)) == (200, (3, 32, 32), 10)
    assert noted(cifar, "CIFAR-10 (JPEG)")
    assert len(set(labels_of(cifar))) == 10
    mean = everything(cifar).float().mean((0, 2, 3))
    assert (mean - torch.tensor([125.3, 123.0, 113.9])).abs().max() < 8  # the whole set's mean, as published


def test_real_tiny_imagenet_with_a_limit() -> None:
    root = real_root("tiny-imagenet/val.parquet")
    tiny = open_images("tiny-imagenet", "test", root=root, limit=100)
    assert (len(tiny), tiny.shape, len(tiny.classes)) == (100, (3, 64, 64), 200)
    assert tiny.classes == tuple(sorted(tiny.classes))
    assert noted(tiny, "4,000 of 10,000 test images")
