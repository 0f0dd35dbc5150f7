"""Tar shards: found, indexed once, read by number; and archives that are cut, hostile or do not fit."""

from __future__ import annotations

import json
import pickle
import random
import tarfile
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from localssl.data import index_file, shards
from localssl.data.sources import Images, open_images
from localssl.data.tars import PADDING, read_index
from localssl.errors import RunError, UsageError
from localssl.system import devices

from .sources_util import cut, encoded, pictures, write_shards, write_tar

PICTURES = pictures(12)
PNGS = [encoded(picture) for picture in PICTURES]
LABELS = [0, 1, 2] * 4


def everything(images: Images) -> torch.Tensor:
    return images.batch(torch.arange(len(images)))


def chw(rows: list[int]) -> torch.Tensor:
    return torch.as_tensor(PICTURES[rows].transpose(0, 3, 1, 2).copy())


def labels_of(images: Images) -> list[int]:
    assert images.labels is not None
    return images.labels.tolist()


def refused(path: object, message: str, **options: Any) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        open_images(f"shards:{path}", **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("memory", [None, 0])
@pytest.mark.parametrize("layout", ["folders", "names", "pattern"])
def test_layouts(layout: str, memory: int | None, tmp_path: Path) -> None:
    train = tmp_path / "train" if layout == "folders" else tmp_path
    write_shards(train, PNGS, LABELS, each=5, name="in1k-train")
    data = f"shards:{tmp_path}"
    if layout == "pattern":
        data += "/in1k-train-{000000..000002}.tar"
    else:
        name = "0" if layout == "folders" else "in1k-validation"
        write_shards(tmp_path / "val" if layout == "folders" else tmp_path, PNGS[:3], [2, 1, 0], name=name)
        test = open_images(data, "test", memory_limit=memory)
        assert torch.equal(everything(test), chw([0, 1, 2]))
        assert labels_of(test) == [2, 1, 0]
    images = open_images(data, memory_limit=memory)
    assert images.classes == ("0", "1", "2")
    if layout == "pattern":  # a fifth of each class is held out
        held_out = open_images(data, "test", memory_limit=memory)
        assert (len(images), sorted(labels_of(held_out))) == (10, [0, 1])
    else:
        assert labels_of(images) == LABELS
        order = [11, 0, 5, 5, 4, 9]
        assert torch.equal(images.batch(torch.tensor(order)), chw(order))
        part = images.subset(torch.tensor([7, 2]))
        assert torch.equal(everything(part), chw([7, 2]))


def test_members_are_grouped_by_key_wherever_they_lie(tmp_path: Path) -> None:
    members = [("b/x.cls", b"1\n"), ("a/x.PNG", PNGS[0]), ("b/x.jpeg", PNGS[1]), ("a/x.json", b'{"label": 0}')]
    members += [("a/x.cls", b"2"), ("./c.json", b"3"), ("./c.webp", PNGS[2]), ("a/.hidden.png", b""), ("a/x.txt", b"?")]
    members += [("a/x.seg.png", b""), ("c.pyd", pickle.dumps(refused)), ("alone.cls", b"7"), ("noname", b"")]
    file = write_tar(tmp_path / "a.tar", members)
    found = shards.read_shards([file])
    assert found.labels is not None
    assert [found.rows.name(row) for row in range(3)] == ["a/x.PNG in a.tar", "b/x.jpeg in a.tar", "./c.webp in a.tar"]
    assert found.labels.tolist() == [2, 1, 3]  # .cls goes before .json
    assert [source.read() for source in found.rows.sources([0, 1, 2])] == PNGS[:3]  # type: ignore[union-attr]
    for what in ("1 .txt", "1 .pyd", "1 with several dots in the name", "1 without extension", "1 labels without"):
        assert what in found.notes[0]


@pytest.mark.parametrize("labels", [None, [-1] * 12])
def test_without_labels_it_is_unlabelled(labels: list[int] | None, tmp_path: Path) -> None:
    images = open_images(f"shards:{write_shards(tmp_path, PNGS, labels)}")
    assert (images.labels, images.classes, len(images)) == (None, (), 10)
    assert any("unlabelled images" in note for note in images.notes)


def member(name: str, **changes: Any) -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    for key, value in changes.items():
        setattr(found, key, value)
    return found


HOSTILE = [
    (member("../x.png"), "a path that leads out"),
    (member("a/../../x.png"), "a path that leads out"),
    (member("a\\..\\x.png"), "a path that leads out"),
    (member("/etc/x.png"), "an absolute path"),
    (member("C:\\x.png"), "an absolute path"),
    (member("x.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "a link"),
    (member("x.png", type=tarfile.LNKTYPE, linkname="0.png"), "a link"),
    (member("x.png", type=tarfile.FIFOTYPE), "neither a file nor a folder"),
    (member("x.png", type=tarfile.CHRTYPE), "neither a file nor a folder"),
    (member("a\nb.png"), "no name for a file"),
    (member("x" * 5000 + ".png"), "no name for a file"),
]


@pytest.mark.parametrize(("hostile", "says"), HOSTILE)
def test_archives_that_lead_out_are_refused(hostile: tarfile.TarInfo, says: str, tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("0.png", PNGS[0]), (hostile, b""), ("1.png", PNGS[1])])
    refused(tmp_path, f"a.tar: member .* is {says}.*; such an archive is not read")
    assert not (tmp_path / index_file.NAME).exists()


def test_a_file_with_holes_is_refused(tmp_path: Path) -> None:
    sparse = member("x.png", pax_headers={"GNU.sparse.map": "0,1", "GNU.sparse.size": "9", "GNU.sparse.realsize": "9"})
    write_tar(tmp_path / "a.tar", [(sparse, b"x")])
    refused(tmp_path, "'x.png' is a file with holes")


def test_every_cut_is_seen(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "a.tar", [(f"{i}.png", encoded(p)) for i, p in enumerate(pictures(3, 8, 8))])
    data = whole.read_bytes()
    end = len(data.rstrip(b"\0"))
    end += -end % 512
    for length in [*range(0, end, 171), *range(0, end + 1, 512), end + 100]:
        whole.write_bytes(data[:length])
        with pytest.raises(
            UsageError, match=r"a.tar is (cut or damaged (at|after) (\d.png|its first)|not a plain tar)"
        ):
            read_index(whole)
    whole.write_bytes(data[: end + 512])
    assert len(read_index(whole).offset) == 3
    for rest, says in ((b"\0" * (PADDING + 1024), "goes on behind"), (data, "goes on behind the end .* after 2.png")):
        whole.write_bytes(data[: end + 1024] + rest)
        with pytest.raises(UsageError, match=says):
            read_index(whole)


def test_damage_is_an_error_of_ours_or_a_bad_image(tmp_path: Path) -> None:
    """Random bytes changed in headers, long names and labels among them: no crash, no hang, nothing read outside."""
    names = ["0.png", "0.cls", "x" * 150 + ".png", "x" * 150 + ".cls", "é.png", "é.json"]
    file = write_tar(tmp_path / "a.tar", [(n, b"1" if n[-3:] in ("cls", "son") else b"image") for n in names])
    data, draw = file.read_bytes()[:10240], random.Random(0)
    outcomes: set[str] = set()
    for _ in range(300):
        changed = bytearray(data)
        for _ in range(draw.choice((1, 1, 2, 8))):
            changed[draw.randrange(len(names) * 2 * 512)] = draw.choice(
                (0, 0x30, 0x37, 0x80, 0xFF, draw.randrange(256))
            )
        for block in range(0, len(names) * 2 * 512, 512):  # most headers keep a checksum that holds
            if draw.random() < 0.9 and changed[block + 257 : block + 262] == b"ustar":
                head = changed[block : block + 148] + b" " * 8 + changed[block + 156 : block + 512]
                changed[block + 148 : block + 156] = b"%06o\0 " % sum(head)
        file.write_bytes(changed)
        try:
            index = read_index(file)
            assert ((index.offset >= 0) & (index.offset + index.size <= len(changed))).all()
            outcomes.add("read")
        except UsageError as error:
            outcomes.add(str(error).split("a.tar", 1)[1])
    assert len(outcomes) > 9
    assert not any("\n" in said for said in outcomes)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.REGTYPE])
@pytest.mark.parametrize("size", [10**6, 8**11 - 1, 2**62])
def test_sizes_that_lie(kind: bytes, size: int, tmp_path: Path) -> None:
    header = member("1.png", type=kind, size=size).tobuf(tarfile.GNU_FORMAT)
    file = write_tar(tmp_path / "a.tar", [("0.png", PNGS[0])])
    data = file.read_bytes().rstrip(b"\0")
    file.write_bytes(data + b"\0" * (-len(data) % 512) + header + b"x" * 512 + b"\0" * 1024)
    refused(tmp_path, r"a.tar is cut or damaged (at|after)|a.tar: 1.png has [0-9,]+ bytes, too many for an image")


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ([("0.png", PNGS[0]), ("0.jpg", PNGS[0])], "0.png and 0.jpg are two images of one sample"),
        ([("0.png", PNGS[0]), ("0.png", PNGS[1])], "0.png and 0.png are two images of one sample"),
        ([("0.png", PNGS[0]), ("0.cls", b"dog")], "the label 0.cls holds 'dog', no class number"),
        ([("0.png", PNGS[0]), ("0.cls", b"-7")], "the label 0.cls holds '-7', no class number"),
        ([("0.png", PNGS[0]), ("0.cls", b"9" * 100)], "0.cls has 100 bytes, too many for a label"),
        ([("0.png", PNGS[0]), ("0.json", b"{")], "the label 0.json holds '{', no JSON"),
        ([("0.png", PNGS[0]), ("0.json", b"[" * 100_000)], "the label 0.json holds, no JSON"),
        ([("0.png", PNGS[0]), ("0.cls", b"2000")], "0.png in a.tar has the label 2000: these are no class numbers"),
        ([("0.png", PNGS[0]), ("0.cls", b"1"), ("1.png", PNGS[1])], "1.png in a.tar has no label, neither .cls nor"),
        ([("0.txt", b"")], "no images in .*a.tar: found 1 .txt; expected KEY.jpg"),
        ([], "no images in .*a.tar: found nothing"),
    ],
)
def test_samples_that_do_not_fit(members: list[tuple[str, bytes]], says: str, tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", members)
    refused(tmp_path, says)


def test_places_that_do_not_fit(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "no shards .*nowhere: expected train/")
    refused(tmp_path, "has no training shards: found nothing; expected")
    (tmp_path / "train-0.tar.gz").write_bytes(b"")
    refused(tmp_path, "has no training shards: found train-0.tar.gz; expected")
    with tarfile.open(tmp_path / "b.tar", "w:gz"):
        pass
    refused(tmp_path / "b.tar", "b.tar is not a plain tar file .*; compressed ones must be unpacked first")
    write_shards(tmp_path / "val", PNGS[:1], [5])
    refused(tmp_path, "has val/ but no train/")
    write_shards(tmp_path / "train", PNGS, LABELS)
    refused(tmp_path, "000000.jpg in train-000000.tar has the label 5, but the training part has 3", split="test")
    refused(f"{tmp_path}/train/train-{{000000..000004}}.tar", "train-000003.tar is missing, 2 of the 5 shards")
    write_shards(tmp_path / "train", PNGS[:1], [1], name="test")
    write_shards(tmp_path / "train", PNGS[:1], [1], name="more")
    refused(tmp_path / "train", "more-000000.tar is neither called train nor test or val")


def test_patterns() -> None:
    assert shards.expand("a/{08..11}-{x,y}.tar")[::3] == ["a/08-x.tar", "a/09-y.tar", "a/11-x.tar"]
    assert shards.expand("a.tar") == ["a.tar"]
    for wrong in ("{2..1}", "{a..c}", "{}", "{0..999999999}", "{0..9999}{0..9999}"):
        with pytest.raises(UsageError, match=r"^shards:"):
            shards.expand(wrong)


def test_the_index_is_made_once_and_again_where_a_shard_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def counted(file: Path, *rest: Any) -> Any:
        read.append(file.name)
        return read_index(file, *rest)

    monkeypatch.setattr(shards, "read_index", counted)
    data = f"shards:{write_shards(tmp_path, PNGS, LABELS)}"
    write_shards(tmp_path, PNGS[:1], [1], name="test")
    first = open_images(data)
    for _ in range(2):
        again = open_images(data)
        assert (again.fingerprint(), labels_of(again)) == (first.fingerprint(), LABELS)
    assert read == [f"train-00000{i}.tar" for i in range(3)]
    open_images(data, "test")
    write_tar(tmp_path / "train-000001.tar", [("x.png", PNGS[0]), ("x.cls", b"2"), ("y.txt", b"")])
    changed = open_images(data)
    assert read[3:] == ["test-000000.tar", "train-000001.tar"]
    assert labels_of(changed) == [*LABELS[:4], 2, *LABELS[8:]]
    assert any("1 .txt" in note for note in open_images(data).notes)  # what was left out is remembered
    (tmp_path / "train-000002.tar").unlink()
    assert len(open_images(data)) == 5
    assert len(read) == 5


def test_an_index_file_that_is_damaged_or_lies_is_made_anew(tmp_path: Path) -> None:
    data = f"shards:{write_shards(tmp_path, PNGS, LABELS)}"
    write_shards(tmp_path, PNGS[:1], [1], name="test")
    open_images(data)
    kept = tmp_path / index_file.NAME
    good, known = kept.read_bytes(), index_file.load(tmp_path)
    assert len(known) == 3
    lies: list[bytes] = [b"", good[:-20], pickle.dumps(known), b"\xff" * 1000]
    for name, value in (("offset", -1), ("size", 10**6), ("size", -5), ("label", -9), ("names", 0)):
        for index in known.values():
            array = getattr(index, name)
            before = array[1]
            array[1] = value
            index_file.save(tmp_path, known)
            lies.append(kept.read_bytes())
            array[1] = before
    for lie in lies:
        kept.write_bytes(lie)
        assert index_file.load(tmp_path) == {}
        assert labels_of(open_images(data)) == LABELS
        assert index_file.load(tmp_path).keys() == known.keys()
    kept.unlink()
    kept.mkdir()
    (kept / "x").touch()
    assert any("no index file in" in note and "anew" in note for note in open_images(data).notes)


def test_bad_images_are_named_replaced_or_skipped(tmp_path: Path) -> None:
    images = [*PNGS]
    images[5] = cut(PNGS[5])
    data = f"shards:{write_shards(tmp_path, images, LABELS)}"
    write_shards(tmp_path, PNGS[:1], [1], name="test")
    with pytest.raises(UsageError, match=r"^000005.jpg in train-000001.tar cannot be decoded \(.*--skip-bad"):
        open_images(data)
    assert len(open_images(data, skip_bad=True)) == 11
    with pytest.raises(RunError, match=r"^000005.jpg in train-000001.tar cannot be decoded"):
        everything(open_images(data, memory_limit=0))
    replaced = everything(open_images(data, memory_limit=0, skip_bad=True))
    assert torch.equal(replaced[5], chw([2])[0])


@pytest.mark.parametrize("skip_bad", [False, True])
def test_a_shard_that_vanishes_or_shrinks_ends_the_run_by_name(skip_bad: bool, tmp_path: Path) -> None:
    images = open_images(f"shards:{write_shards(tmp_path, PNGS, LABELS)}", memory_limit=0, skip_bad=skip_bad)
    file = tmp_path / "train-000001.tar"
    file.write_bytes(file.read_bytes()[:1024])
    with pytest.raises(RunError, match=r"train-000001.tar is shorter than it was"):
        everything(images)
    file.unlink()
    with pytest.raises(RunError, match=r"train-000001.tar cannot be read \(No such file"):
        everything(images)


@pytest.mark.parametrize("meanwhile", [True, False])
def test_reading_ahead_gives_the_same_in_order_and_errors_in_their_place(meanwhile: bool, tmp_path: Path) -> None:
    images = [*PNGS]
    images[11] = b"no image"
    opened = open_images(f"shards:{write_shards(tmp_path, images, LABELS)}", memory_limit=0, image_size=32)
    batches = list(torch.randperm(9, generator=torch.Generator().manual_seed(0)).split(2))
    got = list(opened.ahead(batches, meanwhile))
    assert len(got) == len(batches)
    for index, pixels in zip(batches, got, strict=True):
        assert torch.equal(pixels, opened.batch(index))
    last = len(opened) - 1
    ahead = opened.ahead([torch.tensor([0]), torch.tensor([1]), torch.tensor([last]), torch.tensor([2])], meanwhile)
    assert len([next(ahead), next(ahead)]) == 2
    with pytest.raises(RunError, match=r"000011\.jpg"):
        next(ahead)


def test_steps_that_take_every_core_are_not_held_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then images are decoded between steps, in the thread that trains."""
    threads: list[str] = []
    opened = open_images(f"shards:{write_shards(tmp_path, PNGS, LABELS)}", memory_limit=0, image_size=32)
    load = type(opened.pixels.rows).load  # pyright: ignore[reportAttributeAccessIssue]

    def noted(*arguments: Any) -> Any:
        threads.append(threading.current_thread().name)
        return load(*arguments)

    monkeypatch.setattr(type(opened.pixels.rows), "load", noted)  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    for cores, processes, device, meanwhile in (
        (2, 1, "cpu", False),
        (4, 1, "cpu", True),
        (4, 2, "cpu", False),
        (2, 1, "meta", True),
    ):
        monkeypatch.setattr("localssl.system.devices.cores", lambda cores=cores: cores)
        spare = devices.spare(torch.device(device), processes)
        assert spare == meanwhile
        threads.clear()
        list(opened.ahead([torch.tensor([0]), torch.tensor([1])], spare))
        assert [name == "MainThread" for name in threads] == [not meanwhile] * 2


def test_json_labels_of_other_programs(tmp_path: Path) -> None:
    texts = [json.dumps({"class": "dog", "cls": 1, "size": [2, 3]}), "2", json.dumps({"caption": "a dog"}), "null"]
    write_tar(tmp_path / "a.tar", [(f"{i}.json", text.encode()) for i, text in enumerate(texts)])
    write_tar(
        tmp_path / "b.tar",
        [m for i, text in enumerate(texts) for m in ((f"{i}.png", PNGS[i]), (f"{i}.json", text.encode()))],
    )
    assert read_index(tmp_path / "b.tar").label.tolist() == [1, 2, -1, -1]
