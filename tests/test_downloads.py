"""``--download`` against a server on this machine: whole, cut off, with a wrong checksum, and CIFAR-10's pickles."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import re
import tarfile
import threading
from collections.abc import Generator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision import datasets

from localssl.cli import main
from localssl.data.sources import open_images
from localssl.errors import UsageError

from .sources_util import Picture, pictures, write_files, write_idx
from .util import usage_error

BATCHES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


class Server(ThreadingHTTPServer):
    """Serves a folder; with ``cut`` it closes every connection after that share of the file it promised."""

    cut: float = 1.0
    asked: int = 0
    folder: Path

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(SimpleHTTPRequestHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        self.server.asked += 1
        if self.server.cut == 1:
            super().do_GET()
            return
        data = Path(self.translate_path(self.path)).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: int(len(data) * self.server.cut)])

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Generator[Server]:
    folder = tmp_path / "server"
    folder.mkdir()
    with Server(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as running:
        running.folder = folder
        threading.Thread(target=running.serve_forever).start()
        yield running
        running.shutdown()


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def packed(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def cifar10(monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, bytes], Picture]:
    """The python version with 2 images a file, whose checksums torchvision is told to expect; and the images."""
    images = pictures(12).transpose(0, 3, 1, 2).copy()
    files = {
        name: pickle.dumps({"data": images[2 * i : 2 * i + 2].reshape(2, -1), "labels": [i, 9 - i]})
        for i, name in enumerate(BATCHES)
    }
    files["batches.meta"] = pickle.dumps({"label_names": list("abcdefghij")})
    sums = [[name, md5(files[name])] for name in BATCHES]
    monkeypatch.setattr(datasets.CIFAR10, "train_list", sums[:5])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", sums[5:])
    monkeypatch.setattr(datasets.CIFAR10, "meta", {**datasets.CIFAR10.meta, "md5": md5(files["batches.meta"])})
    return {f"cifar-10-batches-py/{name}": data for name, data in files.items()}, images


def serve_cifar10(server: Server, monkeypatch: pytest.MonkeyPatch) -> Picture:
    files, images = cifar10(monkeypatch)
    archive = packed(files)
    write_files(server.folder, {"cifar.tar.gz": archive})
    monkeypatch.setattr(datasets.CIFAR10, "url", f"{server.address}/cifar.tar.gz")
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5(archive))
    return images


def check_cifar10(root: Path, images: Picture, **options: Any) -> None:
    train = open_images("cifar10", root=root, **options)
    assert torch.equal(train.batch(torch.arange(10)), torch.as_tensor(images[:10]))
    assert train.labels is not None
    assert train.labels.tolist() == [0, 9, 1, 8, 2, 7, 3, 6, 4, 5]
    assert train.classes[0] == "airplane"
    assert train.notes[0] == "not the full set: 10 of 50,000 train images"
    test = open_images("cifar10", "test", root=root)
    assert torch.equal(test.batch(torch.arange(2)), torch.as_tensor(images[10:]))


def test_cifar10_pickles_whose_checksums_match(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, images = cifar10(monkeypatch)
    for place in (tmp_path / "root", tmp_path / "root" / "cifar10"):
        write_files(place, files)
        check_cifar10(tmp_path / "root", images)


@pytest.mark.parametrize("name", [*BATCHES, "batches.meta"])
def test_a_single_pickle_that_does_not_match_is_not_opened(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "sprung",)

    files, _ = cifar10(monkeypatch)
    write_files(tmp_path, {**files, f"cifar-10-batches-py/{name}": pickle.dumps(Trap())})
    with usage_error("cifar-10-batches-py does not match .* delete it and fetch it again: localssl train .*--download"):
        open_images("cifar10", root=tmp_path)
    assert not (tmp_path / "sprung").exists()


def test_cifar10(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = serve_cifar10(server, monkeypatch)
    check_cifar10(tmp_path / "new" / "root", images, download=True)
    asked = server.asked
    check_cifar10(tmp_path / "new" / "root", images, download=True)
    assert server.asked == asked


@pytest.mark.parametrize("cut", [0.0, 0.5, 0.99])
def test_a_cut_off_download_is_never_taken_for_whole(
    cut: float, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = serve_cifar10(server, monkeypatch)
    server.cut = cut
    with usage_error("the download of cifar10 failed .*; try again"):
        open_images("cifar10", root=tmp_path, download=True)
    with usage_error("cifar10 not found: looked for .*fetch its python version: localssl train .*--download"):
        open_images("cifar10", root=tmp_path)
    server.cut = 1.0
    check_cifar10(tmp_path, images, download=True)


@pytest.mark.parametrize("place", ["", " --data-root there"])
@pytest.mark.parametrize("command", ["train --rule ff --data cifar10 --out x", "doctor --quick"])
def test_the_advice_fetches_whatever_the_command(
    command: str,
    place: str,
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Most commands have no --download: what they advise is a command that has, for the folder that was named."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOCALSSL_DATA", raising=False)
    (tmp_path / "there").mkdir()
    images = serve_cifar10(server, monkeypatch)
    main((command + place).split())
    advised = re.search(r"localssl (train .* cifar10 --download --dry-run.*)\n", "".join(capsys.readouterr()))
    assert advised is not None
    assert advised[1].endswith(place)
    assert main(advised[1].split()) == 2
    assert "10 training images, fewer than a batch of 64" in capsys.readouterr().err  # the server's set is as small
    check_cifar10(tmp_path / ("there" if place else "data"), images)


def test_files_that_were_unpacked_in_part_are_fetched_again(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = serve_cifar10(server, monkeypatch)
    open_images("cifar10", root=tmp_path, download=True)
    batch = tmp_path / "cifar-10-batches-py" / "data_batch_2"
    batch.write_bytes(batch.read_bytes()[:100])
    with usage_error("does not match torchvision's checksums"):
        open_images("cifar10", root=tmp_path)
    check_cifar10(tmp_path, images, download=True)


def test_a_wrong_checksum_is_one_line(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    serve_cifar10(server, monkeypatch)
    write_files(server.folder, {"cifar.tar.gz": packed({"cifar-10-batches-py/data_batch_1": b"another"})})
    line = f"train --rule clapp --data cifar10 --download --data-root {tmp_path / 'root'} --out {tmp_path / 'x'}"
    assert main(line.split()) == 2
    said = capsys.readouterr().err.replace("\r", "\n").splitlines()  # before it: the bar of the download
    assert [text for text in said if "localssl: " in text] == said[-1:]
    assert said[-1].startswith("localssl: the download of cifar10 failed (")
    assert not (tmp_path / "root" / "cifar-10-batches-py").exists()
    assert not (tmp_path / "x").exists()


def test_stl10(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = pictures(6, 96, 96).transpose(0, 3, 1, 2)
    stored = images.transpose(0, 1, 3, 2)
    files = {f"{part}_X.bin": stored.tobytes() for part in ("train", "test", "unlabeled")}
    files |= {f"{part}_y.bin": bytes([1, 10, 2, 1, 9, 3]) for part in ("train", "test")}
    files |= {"class_names.txt": b"a\nb\n", "fold_indices.txt": b"0 1\n"}
    archive = packed({f"stl10_binary/{name}": data for name, data in files.items()})
    write_files(server.folder, {"stl10.tar.gz": archive})
    monkeypatch.setattr(datasets.STL10, "url", f"{server.address}/stl10.tar.gz")
    monkeypatch.setattr(datasets.STL10, "tgz_md5", md5(archive))
    server.cut = 0.5
    with usage_error("the download of stl10 failed"):
        open_images("stl10", "unlabeled", root=tmp_path, download=True)
    with usage_error("stl10 not found"):
        open_images("stl10", "unlabeled", root=tmp_path)
    server.cut = 1.0
    unlabeled = open_images("stl10", "unlabeled", root=tmp_path, download=True)
    assert torch.equal(unlabeled.batch(torch.arange(6)), torch.as_tensor(images.copy()))
    test = open_images("stl10", "test", root=tmp_path)
    assert test.labels is not None
    assert test.labels.tolist() == [0, 9, 1, 0, 8, 2]
    file = tmp_path / "stl10_binary" / "unlabeled_X.bin"
    file.write_bytes(file.read_bytes()[:-1])
    with usage_error(r"unlabeled_X.bin is damaged: .*delete it and fetch it again"):
        open_images("stl10", "unlabeled", root=tmp_path, download=True)
    file.unlink()
    assert len(open_images("stl10", "unlabeled", root=tmp_path, download=True)) == 6


def test_mnist(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in ("train", "t10k"):
        write_idx(server.folder, part, pictures(2, 28, 28)[..., 0], [7, 2])
    resources: list[tuple[str, str]] = []
    for file in sorted(server.folder.iterdir()):
        data = gzip.compress(file.read_bytes())
        (server.folder / f"{file.name}.gz").write_bytes(data)
        resources.append((f"{file.name}.gz", md5(data)))
    monkeypatch.setattr(datasets.MNIST, "resources", resources)
    monkeypatch.setattr(datasets.MNIST, "mirrors", [f"{server.address}/gone/"])
    root = tmp_path / "root"
    with usage_error("the download of mnist failed"):
        open_images("mnist", root=root, download=True)
    monkeypatch.setattr(datasets.MNIST, "mirrors", [f"{server.address}/"])
    server.cut = 0.5
    with usage_error("the download of mnist failed"):
        open_images("mnist", root=root, download=True)
    with usage_error("mnist not found"):
        open_images("mnist", root=root)
    server.cut = 1.0
    train = open_images("mnist", root=root, download=True)
    assert train.labels is not None
    assert train.labels.tolist() == [7, 2]
    assert np.array_equal(train.batch(torch.tensor([1]))[0, 0, 2:30, 2:30].numpy(), pictures(2, 28, 28)[1, ..., 0])
    assert len(open_images("mnist", "test", root=root)) == 2
    raw = root / "MNIST" / "raw"
    (raw / "train-images-idx3-ubyte").write_bytes(b"cut off while it was unpacked")
    with usage_error("train-images-idx3-ubyte or its labels cannot be read .*delete .* fetch them again"):
        open_images("mnist", root=root, download=True)
    (raw / "train-images-idx3-ubyte").unlink()
    assert len(open_images("mnist", root=root, download=True)) == 2


def test_no_server(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a machine without a network, or a server that does not speak HTTP, comes to."""
    serve_cifar10(server, monkeypatch)
    monkeypatch.setattr(Handler, "do_GET", lambda self: self.wfile.write(b"\0\0 no HTTP \0\n"))
    with usage_error("the download of cifar10 failed"):
        open_images("cifar10", root=tmp_path, download=True)
    monkeypatch.setattr(datasets.CIFAR10, "url", "http://127.0.0.1:9/cifar.tar.gz")
    with pytest.raises(UsageError, match="the download of cifar10 failed"):
        open_images("cifar10", root=tmp_path, download=True)
