"""Nothing in a file from a stranger is executed: the source is searched, and malicious files are tried."""

from __future__ import annotations

import ast
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import localssl
from localssl import own
from localssl.cli import main
from localssl.data.sources import open_images
from localssl.errors import UsageError
from localssl.runs import checkpoint

from .compare_util import in_this_process
from .sources_util import encoded, pictures, write_files
from .train_util import run_tiny, tiny
from .util import usage_error

PACKAGE = Path(localssl.__file__).parent
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
BUILT_IN = {"eval", "exec", "compile", "__import__"}
EXCEPTION = {("data/readers.py", "CIFAR10")}  # torchvision's reader, after its checksum


def dangers(source: str) -> Iterator[str]:
    """What in a source text could execute what a file holds."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (f"import {name}" for name in names if name.partition(".")[0] in MODULES)
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name) and node.func.id in BUILT_IN:
            yield node.func.id
        if not isinstance(node.func, ast.Attribute):
            continue
        called = ast.unparse(node.func)
        options = {k.arg: ast.unparse(k.value) for k in node.keywords}
        if called == "torch.load" and options.get("weights_only") != "True":
            yield called
        if called == "np.load" and options.get("allow_pickle") != "False":
            yield called
        if called.startswith(("yaml.", "torch.jit.", "torch.package.")) and called not in (
            "yaml.safe_dump",
            "yaml.YAMLError",
        ):
            if called == "yaml.load" and [ast.unparse(a) for a in node.args[1:]] == ["_Loader"]:  # config.py's, safe
                continue
            yield called
        if node.func.attr in ("extractall", "unpack_archive") or options.get("shell") == "True":
            yield called


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_source(path: Path) -> None:
    assert list(dangers(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "import torch\ntorch.load(p)",
        "torch.load(p, weights_only=False)",
        "np.load(p)",
        "np.load(p, allow_pickle=True)",
        "yaml.load(t, Loader=yaml.Loader)",
        "torch.jit.load(p)",
        "eval(t)",
        "archive.extractall(p)",
        "subprocess.run(t, shell=True)",
    ],
)
def test_a_danger_is_seen(source: str) -> None:
    assert len(list(dangers(source))) == 1


def test_one_named_exception() -> None:
    found = {
        (path.relative_to(PACKAGE).as_posix(), "CIFAR10")
        for path in PACKAGE.rglob("*.py")
        if "datasets.CIFAR10(" in path.read_text(encoding="utf-8")
    }
    assert found == EXCEPTION


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "executed"


def test_the_bomb_works(marker: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(marker)))
    assert marker.is_dir()


def test_a_malicious_checkpoint(tmp_path: Path, marker: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_tiny(tmp_path / "x", epochs=0).path
    (file,) = checkpoint.existing(run)
    good = torch.load(file, weights_only=True)
    as_pickle = pickle.dumps({**good, "extra": Bomb(marker)})
    torch.save({**good, "extra": Bomb(marker)}, file)
    as_zip = file.read_bytes()
    torch.save({**good, "extra": Bomb(marker)}, file, _use_new_zipfile_serialization=False)
    for data in (as_zip, file.read_bytes(), as_pickle):
        file.write_bytes(data)
        for command in (f"train --resume --out {run}", f"align {run}"):
            assert main(command.split()) == 2
            assert "can be read" in capsys.readouterr().err
    assert not marker.exists()


def test_other_malicious_files(tmp_path: Path, marker: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_tiny(tmp_path / "x", epochs=0).path
    (run / "encoder.safetensors").write_bytes(pickle.dumps(Bomb(marker)))
    assert main(["probe", str(run)]) == 2
    (run / "config.yaml").write_text(f"format: 1\nrule: !!python/object/apply:os.mkdir ['{marker}']\n")
    assert main(["probe", str(run)]) == 2
    np.savez(tmp_path / "bad.npz", x=np.asarray([Bomb(marker)], dtype=object))
    with usage_error("holds Python objects"):
        open_images(f"npz:{tmp_path / 'bad.npz'}")
    with zipfile.ZipFile(tmp_path / "away.npz", "w") as archive:  # names that lead out of a folder are only names
        archive.writestr("../../x.npy", b"no array")
    with usage_error("away.npz"):
        open_images(f"npz:{tmp_path / 'away.npz'}")
    assert not marker.exists()
    capsys.readouterr()


def test_paths_in_files_are_not_followed(tmp_path: Path) -> None:
    """A row's path in a parquet, a file's name in Tiny ImageNet's table: neither opens what lies elsewhere."""
    images = [encoded(picture) for picture in pictures(4)]
    secret = write_files(tmp_path / "secret", {"0.png": images[0]}) / "0.png"
    rows = [{"bytes": images[0], "path": "0.png"}, {"bytes": None, "path": str(secret)}]
    pq.write_table(pa.table({"image": rows * 2, "label": [0, 1] * 2}), tmp_path / "a.parquet")
    with usage_error("cannot be decoded \\(no image bytes\\)"):
        open_images(f"parquet:{tmp_path / 'a.parquet'}")
    place = tmp_path / "tiny-imagenet-200"
    write_files(place, {"wnids.txt": b"n1\n", "train/n1/images/0.png": images[1], "val/images/0.png": images[2]})
    for name in (str(secret), "../../../secret/0.png", "", "."):
        (place / "val" / "val_annotations.txt").write_text(f"{name}\tn1\t0\t0\t1\t1\n")
        with pytest.raises(UsageError, match="is no name of a file in val/images"):
            open_images("tiny-imagenet", "test", root=tmp_path)


def test_code_that_a_folder_names(tmp_path: Path, marker: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It runs where the command names it, too."""
    file = tmp_path / "theirs.py"
    rule = (Path(__file__).parents[1] / "examples" / "my_rule.py").read_text(encoding="utf-8")
    file.write_text(f"{rule}\nimport os\nos.mkdir({str(marker)!r})\n", encoding="utf-8")
    run = run_tiny(tmp_path / "x", rule=f"{file}:MyRule", epochs=0).path
    own._LOADED.pop(file)
    marker.rmdir()
    for command in ("align --batches 1 --batch-size 4", "train --resume --epochs 0 --out"):
        name, *flags = command.split()
        assert main([name, *flags, str(run)]) == 2
        assert f"so it was not run: add --own {file}" in capsys.readouterr().err
        assert not marker.exists()
    assert main(["align", str(run), "--batches", "1", "--batch-size", "4", "--own", str(file)]) == 0
    assert marker.exists()
    marker.rmdir()
    own._LOADED.pop(file)
    assert "--own" in tiny_command(file)
    assert main(["train", "--resume", "--out", str(run), "--own", str(file), "--threads", "1"]) == 0


def test_code_that_a_folder_names_in_a_program(tmp_path: Path, marker: Path) -> None:
    """Neither a function, nor a run that was opened, nor an encoder alone runs it, until the program names the file."""
    file = tmp_path / "theirs.py"
    examples = Path(__file__).parents[1] / "examples"
    net = "from torch import nn\ndef net(shape):\n    return [nn.Conv2d(shape[0], 4, 3)]\n"
    text = f"{(examples / 'my_rule.py').read_text(encoding='utf-8')}\n{net}\nimport os\nos.mkdir({str(marker)!r})\n"
    file.write_text(text, encoding="utf-8")
    run = run_tiny(tmp_path / "x", rule=f"{file}:MyRule", encoder=f"{file}:net", width=1.0, epochs=0).path
    own._LOADED.pop(file)
    marker.rmdir()
    opened = localssl.open_run(run)
    measure = partial(localssl.api.align, batches=1, batch_size=4, threads=1)
    for attempt in (opened.encoder, opened.learner, partial(localssl.load, run)):
        with usage_error(f"so it was not run: to trust it, call localssl.trust\\('{file}'\\) first"):
            attempt()
    for attempt in (partial(measure, run), opened.align):
        with usage_error(f"so it was not run: add --own {file}"):
            attempt()
    assert not marker.exists()
    measure(run, own=[file])
    assert marker.exists()
    own._LOADED.pop(file)
    marker.rmdir()
    with usage_error("so it was not run"):
        opened.encoder()  # it was named for one call
    for wrong, message in (("theirs", "^trust takes files"), (f"{file}x.py", "^trust .*there is no file")):
        with usage_error(message):
            localssl.trust(wrong)
    localssl.trust(file)
    assert opened.encoder().blocks
    assert marker.exists()
    own._trusted.clear()
    own._LOADED.pop(file)


def tiny_command(file: Path) -> str:
    return tiny(Path("x"), rule=f"{file}:MyRule").resume_command()


def test_code_that_flags_of_a_comparison_name(
    tmp_path: Path, marker: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither in the first process nor in those of the cells, where it was not named."""
    file = tmp_path / "theirs.py"
    net = "from torch import nn\ndef net(shape):\n    return [nn.Conv2d(shape[0], 4, 3)]\n"
    file.write_text(f"{net}\nimport os\nos.mkdir({str(marker)!r})\n", encoding="utf-8")
    asked = tmp_path / "flags.yaml"
    for given in (f"encoder: {file}:net\ndata: digits", f"data: {file}:data"):
        asked.write_text(f"{given}\nrules: clapp++\nepochs: 0\nseeds: 1\nlimit-images: 64\n", encoding="utf-8")
        assert main(["compare", "--config", str(asked), "--out", str(tmp_path / "x"), "--threads", "1"]) == 2
        assert f"so it was not run: add --own {file}" in capsys.readouterr().err
        assert not marker.exists()
    asked.write_text(asked.read_text().replace(f"data: {file}:data", f"encoder: {file}:net\ndata: digits"))
    command = ["compare", "--config", str(asked), "--out", str(tmp_path / "y"), "--threads", "1", "--own", str(file)]
    asked_for = in_this_process(monkeypatch)
    assert main([*command, "--align-batches", "0", "--probe-images", "64"]) == 0
    assert asked_for == ["untrained-s0", "clapp++-s0"]
    assert marker.exists()
    own._LOADED.pop(file)
