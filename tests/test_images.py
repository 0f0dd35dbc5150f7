"""A user's own images, in parquet or in folders: columns, parts, conversions, and images that are damaged."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from localssl.data.parquet import ParquetRows
from localssl.data.sources import Images, open_images
from localssl.errors import RunError, UsageError

from .sources_util import cut, encoded, pictures, write_cifar10, write_files, write_parquet


def everything(images: Images) -> torch.Tensor:
    return images.batch(torch.arange(len(images)))


def chw(images: np.ndarray) -> torch.Tensor:
    return torch.as_tensor(images.transpose(0, 3, 1, 2).copy())


def labels_of(images: Images) -> list[int]:
    assert images.labels is not None
    return images.labels.tolist()


def noted(images: Images, text: str) -> bool:
    return any(text in note for note in images.notes)


PNGS = [encoded(picture) for picture in pictures(10)]


def test_parquet_folder_has_two_parts_and_class_names(tmp_path: Path) -> None:
    names = ["cat", "dog", "owl"]
    write_parquet(tmp_path / "data" / "train-00001-of-00002.parquet", PNGS[4:8], [2, 1, 0, 0], names)
    write_parquet(tmp_path / "data" / "train-00000-of-00002-ab12.parquet", PNGS[:4], [0, 1, 1, 1], names)
    write_parquet(tmp_path / "data" / "validation-00000-of-00001.parquet", PNGS[8:], [1, 0], names)
    train, test = open_images(f"parquet:{tmp_path}"), open_images(f"parquet:{tmp_path}", "test")
    assert train.classes == test.classes == ("cat", "dog", "owl")
    assert (labels_of(train), labels_of(test)) == ([0, 1, 1, 1, 2, 1, 0, 0], [1, 0])
    assert torch.equal(everything(train), chw(pictures(10))[:8])
    assert torch.equal(everything(test), chw(pictures(10))[8:])
    (tmp_path / "data" / "train-00000-of-00002-ab12.parquet").unlink()
    with pytest.raises(UsageError, match="part 0 of 2 of the train files is missing"):
        open_images(f"parquet:{tmp_path}")


def test_one_parquet_file_gives_a_fifth_of_each_class_as_the_test_part(tmp_path: Path) -> None:
    images, labels = pictures(60), sorted(i % 3 for i in range(60))
    file = write_parquet(tmp_path / "set.parquet", [encoded(i) for i in images], labels)
    train, test = open_images(f"parquet:{file}"), open_images(f"parquet:{file}", "test")
    assert np.bincount(labels_of(test)).tolist() == [4, 4, 4]
    assert noted(train, "no test part: 20% of the training images")
    assert noted(test, "no test part: 20% of the training images")
    both = torch.cat((everything(train), everything(test))).flatten(1).tolist()
    assert sorted(both) == sorted(chw(images).flatten(1).tolist())
    write_parquet(tmp_path / "one.parquet", PNGS[:1], [0])
    with pytest.raises(UsageError, match="too few to hold out"):
        open_images(f"parquet:{tmp_path / 'one.parquet'}")


def test_parquet_columns_by_other_names(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "a.parquet", PNGS, [3] * 5 + [0] * 5, columns=("img", "fine_label"))
    assert sorted(labels_of(open_images(f"parquet:{file}"))) == [0] * 4 + [3] * 4
    assert noted(open_images(f"parquet:{file}"), "labels from column 'fine_label'")
    file = write_parquet(tmp_path / "b.parquet", PNGS, list(range(10)), columns=("picture", "image_id"))
    assert open_images(f"parquet:{file}").labels is None
    assert noted(open_images(f"parquet:{file}"), "no column of integer labels")


@pytest.mark.parametrize(
    ("labels", "known"), [(None, False), ([-1] * 10, False), ([None] * 10, False), ([1] * 10, True)]
)
def test_parquet_without_labels_is_unlabelled(labels: Any, known: bool, tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "a.parquet", PNGS, labels)
    train = open_images(f"parquet:{file}")
    assert (train.labels is not None) == known
    assert noted(train, "unlabelled images") != known
    assert len(train) == 8


def test_parquet_that_does_not_fit_says_what_it_found(tmp_path: Path) -> None:
    def refused(message: str, data: str = "a.parquet", split: str = "train") -> None:
        with pytest.raises(UsageError, match=message) as caught:
            open_images(f"parquet:{tmp_path / data}", split)
        assert "\n" not in str(caught.value)

    pq.write_table(pa.table({"text": ["x"], "label": [1]}), tmp_path / "a.parquet")
    refused(r"a.parquet has no image column: found text \(string\), label \(int64\); expected 'image', a struct")
    write_parquet(tmp_path / "a.parquet", [], [])
    refused("holds no images")
    write_parquet(tmp_path / "a.parquet", PNGS, [0] * 9 + [-1])
    refused(r"row 9 of a.parquet has no label")
    write_parquet(tmp_path / "a.parquet", PNGS, [0] * 9 + [2**40])
    refused("no class numbers")
    (tmp_path / "a.parquet").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    refused(r"a.parquet is not a readable parquet file")
    refused(r"has no training files: found a.parquet; expected train.parquet", "")
    write_parquet(tmp_path / "train.parquet", PNGS, [0] * 10)
    write_parquet(tmp_path / "test.parquet", PNGS, [0] * 4 + [1] * 6)
    refused(r"row 4 of test.parquet has the label 1, but the training part has 1 classes", "", "test")


def test_damaged_images_are_named_or_skipped(tmp_path: Path) -> None:
    jpegs = [encoded(picture, "JPEG") for picture in pictures(10)]
    labels = [0, 1] * 5
    jpegs[5], jpegs[7], jpegs[8] = cut(jpegs[5]), b"no image", None  # type: ignore[call-overload]
    write_parquet(tmp_path / "train.parquet", jpegs, labels)
    write_parquet(tmp_path / "test.parquet", jpegs[:2], labels[:2])
    data = f"parquet:{tmp_path}"
    with pytest.raises(UsageError, match=r"row 5 of train.parquet cannot be decoded \(.*truncated.*--skip-bad"):
        open_images(data)
    kept = open_images(data, skip_bad=True)
    assert noted(kept, "3 bad images skipped: row 5 of train.parquet, row 7 of train.parquet, row 8")
    assert labels_of(kept) == [0, 1, 0, 1, 0, 0, 1]
    streamed = open_images(data, memory_limit=0)
    assert torch.equal(streamed.batch(torch.tensor([9])), kept.batch(torch.tensor([6])))
    with pytest.raises(RunError, match=r"row 7 of train.parquet cannot be decoded \(not an image.*--skip-bad"):
        streamed.batch(torch.tensor([0, 7]))
    write_parquet(tmp_path / "train.parquet", [b"no image"] * 2, [0, 1])
    with pytest.raises(UsageError, match="none of the 2 images can be used"):
        open_images(data, skip_bad=True)


def test_a_streamed_bad_image_is_replaced_within_its_class(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pngs: list[bytes | None] = [*PNGS]
    pngs[4] = pngs[6] = None
    write_parquet(tmp_path / "train.parquet", pngs, [0, 1, 0, 0, 1, 0, 1, 0, 1, 0])
    write_parquet(tmp_path / "test.parquet", PNGS)
    images = open_images(f"parquet:{tmp_path}", skip_bad=True, memory_limit=0, image_size=32)
    with caplog.at_level(logging.WARNING):
        batch = images.batch(torch.tensor([4, 6, 4, 2]))
        assert torch.equal(batch, chw(pictures(10))[[1, 8, 1, 2]])  # 1 and 8: nearest good ones of class 1
        assert torch.equal(images.batch(torch.tensor([6])), batch[1:2])
    assert [r.getMessage()[:22] for r in caplog.records] == ["row 4 of train.parquet", "row 6 of train.parquet"]
    alone = images.subset(torch.tensor([6, 5]))  # nothing of its class is left in this part
    with pytest.raises(RunError, match="and no image near it can replace it"):
        alone.batch(torch.tensor([0]))


def test_every_kind_of_picture_becomes_rgb_and_is_counted(tmp_path: Path) -> None:
    gray = pictures(1)[0, ..., 0]
    flat = Image.fromarray(gray)
    deep = Image.fromarray(gray.astype(np.uint16) * 256 + (255 - gray))
    colour = Image.fromarray(pictures(1)[0])
    few = colour.quantize(16)
    kinds = [flat, deep, flat.convert("1"), flat.convert("LA"), colour, colour.convert("RGBA"), few]
    data = [encoded(picture) for picture in kinds] + [encoded(colour.convert("CMYK"), "TIFF")]
    folder = tmp_path / "tiny-imagenet"
    folder.mkdir()
    write_parquet(folder / "train.parquet", data)
    images = open_images("tiny-imagenet", root=tmp_path, image_size=32)
    for text in ("4 grayscale images", "1 RGBA image", "1 palette image", "1 CMYK image"):
        assert noted(images, f"{text} converted to RGB"), (text, images.notes)
    pixels = everything(images)
    for row in (0, 1, 3):
        assert torch.equal(pixels[row], torch.as_tensor(gray).expand(3, -1, -1)), row
    assert set(pixels[2].unique().tolist()) == {0, 255}
    for row in (4, 5):
        assert torch.equal(pixels[row], chw(pictures(1))[0])
    assert torch.equal(pixels[6], chw(np.asarray(few.convert("RGB"))[None])[0])
    assert (pixels[7].int() - pixels[4].int()).abs().max() <= 1


@pytest.mark.parametrize("memory", [None, 0])
def test_a_gray_image_among_ones_own_colour_images_is_a_bad_one(tmp_path: Path, memory: int | None) -> None:
    colour = [encoded(Image.fromarray(picture)) for picture in pictures(3)]
    gray = encoded(Image.fromarray(pictures(1)[0, ..., 0]))
    write_parquet(tmp_path / "mixed" / "train.parquet", [*colour, gray, *colour], [0] * 7)
    write_parquet(tmp_path / "gray" / "train.parquet", [gray] * 5, [0] * 5)
    mixed = f"parquet:{tmp_path / 'mixed' / 'train.parquet'}"
    with pytest.raises((UsageError, RunError), match=r"row 3 of train.parquet .*grayscale .*--skip-bad"):
        everything(open_images(mixed, image_size=32, memory_limit=memory))
    images = open_images(mixed, image_size=32, memory_limit=memory, skip_bad=True)
    assert len(everything(images)) == (5 if memory is None else 6)  # skipped, or replaced
    assert memory == 0 or noted(images, "1 grayscale image among colour ones skipped: row 3 of train.parquet")
    assert len(everything(open_images(f"parquet:{tmp_path / 'gray' / 'train.parquet'}", image_size=32)))


def test_gray_is_the_luma_of_colour_for_files_and_raw_pixels_alike(tmp_path: Path) -> None:
    raw, labels = write_cifar10(tmp_path / "cifar-10-batches-bin")
    write_parquet(tmp_path / "train.parquet", [encoded(image.transpose(1, 2, 0)) for image in raw], labels)
    write_parquet(tmp_path / "test.parquet", PNGS, [0] * 10)
    binary = open_images("cifar10", root=tmp_path, channels=1)
    assert binary.shape == (1, 32, 32)
    assert torch.equal(everything(binary), everything(open_images(f"parquet:{tmp_path}", channels=1)))
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64).view(3, 1, 1)
    luma = (torch.as_tensor(raw).double() * weights).sum(1, keepdim=True)
    assert (everything(binary).double() - luma).abs().max() < 0.51


def test_image_folders_number_the_test_part_by_the_training_classes(tmp_path: Path) -> None:
    write_files(tmp_path, {f"train/{name}.png": PNGS[i] for i, name in enumerate(["owl/b", "owl/a", "cat/deep/x"])})
    write_files(tmp_path, {"val/owl/z.PNG": PNGS[3], "train/owl/notes.txt": b"", "train/.hidden/x.png": b""})
    train, test = open_images(f"imagefolder:{tmp_path}"), open_images(f"imagefolder:{tmp_path}", "test")
    assert train.classes == test.classes == ("cat", "owl")
    assert (labels_of(train), labels_of(test)) == ([0, 1, 1], [1])
    assert torch.equal(everything(train), chw(pictures(10))[[2, 1, 0]])
    write_files(tmp_path, {"val/dog/z.png": PNGS[3]})
    with pytest.raises(UsageError, match="class folder 'dog' that the training part does not have"):
        open_images(f"imagefolder:{tmp_path}", "test")
    (tmp_path / "train").rename(tmp_path / "Train")
    with pytest.raises(UsageError, match=r"has val/ but no train/"):
        open_images(f"imagefolder:{tmp_path}")


def test_image_folder_alone_and_without_classes(tmp_path: Path) -> None:
    write_files(tmp_path, {f"{i % 2}/{i}.png": data for i, data in enumerate(PNGS)})
    train, test = open_images(f"imagefolder:{tmp_path}"), open_images(f"imagefolder:{tmp_path}", "test")
    assert (len(train), sorted(labels_of(test))) == (8, [0, 1])
    assert noted(train, "no test part")
    write_files(tmp_path / "flat", {f"{i}.png": data for i, data in enumerate(PNGS)})
    flat = open_images(f"imagefolder:{tmp_path / 'flat'}")
    assert (flat.labels, flat.classes, len(flat)) == (None, (), 8)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"no images in .*empty: expected PATH/train"):
        open_images(f"imagefolder:{tmp_path / 'empty'}")
    (tmp_path / "0" / "4.png").write_bytes(cut(PNGS[4]))
    with pytest.raises(UsageError, match=r"^0/4.png cannot be decoded"):
        [open_images(f"imagefolder:{tmp_path}", split) for split in ("train", "test")]


@pytest.mark.parametrize(("height", "width", "side"), [(20, 300, 32), (70, 65, 64), (95, 200, 64), (400, 130, 96)])
def test_the_size_follows_the_first_training_image_and_the_centre_is_kept(
    height: int, width: int, side: int, tmp_path: Path
) -> None:
    picture = np.zeros((height, width, 3), dtype=np.uint8)
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    picture[top : top + short, left : left + short, 0] = 200  # the centre square is red, the rest black
    write_files(tmp_path, {"train/a/0.png": encoded(picture), "test/a/0.png": PNGS[0]})
    train, test = open_images(f"imagefolder:{tmp_path}"), open_images(f"imagefolder:{tmp_path}", "test")
    assert train.shape == test.shape == (3, side, side)
    inner = everything(train)[0, 0, :, :]
    assert (inner[1:-1, 1:-1] == 200).all()
    assert everything(train)[0, 1:].max() == 0
    assert open_images(f"imagefolder:{tmp_path}", image_size=40).shape == (3, 40, 40)


def test_parquet_rows_keep_what_was_read_up_to_the_memory_they_are_given(tmp_path: Path) -> None:
    rows = ParquetRows([write_parquet(tmp_path / "a.parquet", PNGS, group=2)], "image")
    group = 2 * len(PNGS[0])
    for memory, most in ((0, 1), (int(3.5 * group), 3), (100 * group, 5)):
        rows.memory = memory
        assert rows.sources([9, 0, 9, 5, 2, 7]) == [PNGS[row] for row in (9, 0, 9, 5, 2, 7)]
        assert len(rows.kept) == most


def test_shrinking_averages(tmp_path: Path) -> None:
    stripes = np.zeros((128, 128, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    write_files(tmp_path, {"a/0.png": encoded(stripes), "a/1.png": encoded(stripes)})
    pixels = everything(open_images(f"imagefolder:{tmp_path}", image_size=32)).float()
    assert (pixels - 127.5).abs().max() < 20  # without antialiasing: stripes of 0 and 255


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path, {"a/0.png": PNGS[0], "a/1.png": encoded(pictures(1, 60, 60)[0])})
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3500)
    with pytest.raises(UsageError, match=r"^a/1.png cannot be decoded \(.*3,?600 pixels"):
        [open_images(f"imagefolder:{tmp_path}", split, image_size=32) for split in ("train", "test")]
