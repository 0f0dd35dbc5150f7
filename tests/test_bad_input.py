"""The careless user: every mistake is one line on stderr and exit status 2, and nothing good is destroyed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from localssl.cli import commands, main, usage
from localssl.errors import RunError, UsageError

from .sources_util import cut, encoded, pictures, write_files, write_parquet
from .train_util import SMALL_VGG, folder, run_tiny

Capture = pytest.CaptureFixture[str]
TINY = "--threads 1 --epochs 1 --width 0.25 --batch-size 16 --limit-images 32"


def status(line: str) -> int:
    """The exit status of a command line."""
    return main(line.split())


def refuse(capsys: Capture, line: str, *says: str, code: int = 2) -> str:
    """Run a command that must be refused in one line that says all of ``says``."""
    capsys.readouterr()
    assert status(line) == code
    said = capsys.readouterr().err
    assert said.startswith("localssl: "), said
    assert said.count("\n") == 1, said
    assert said.endswith("\n"), said
    for text in says:
        assert text in said, said
    return said


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "x"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that no test may change."""
    return run_tiny(tmp_path_factory.mktemp("runs") / "trained", epochs=1).path


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--rule clap --data digits", ["unknown rule 'clap'", "did you mean 'clapp'", "bp-infonce"]),
        ("--rule CLAPP++ --data digits", ["unknown rule 'CLAPP++'", "did you mean 'clapp++'"]),
        ("--rule clapp --data digit", ["unknown data set 'digit'", "did you mean 'digits'"]),
        ("--rule clapp --data parquet:/nowhere", ["/nowhere"]),
        ("--rule clapp --data imagefolder:/nowhere", ["/nowhere", "expected PATH/train/CLASS"]),
        ("--rule clapp --data imagefolder", ["write imagefolder:PATH"]),
        ("--rule clapp --data cifar10 --data-root /nowhere", ["cifar10", "/nowhere", "--download"]),
        ("--rule clapp --data tiny-imagenet --data-root /nowhere", ["tiny-imagenet", "/nowhere"]),
        ("--rule clapp --data digits --download", ["leave out --download"]),
        ("--data digits", ["train needs --rule and --data"]),
        ("--rule clapp", ["train needs --rule and --data"]),
        ("--rule clapp --data digits --width 0", ["--width 0.0: use a positive number up to 100"]),
        ("--rule clapp --data digits --width -1", ["--width -1.0"]),
        ("--rule clapp --data digits --width nan", ["--width nan"]),
        ("--rule clapp --data digits --width inf", ["--width inf"]),
        ("--rule clapp --data digits --width 1e30", ["--width 1e+30"]),
        ("--rule clapp --data digits --width 0.01", ["width 0.01 leaves vgg5 without channels", "use at least"]),
        ("--rule clapp --data digits --encoder vgg --width 1", ["unknown encoder 'vgg'", "did you mean 'vgg"]),
        ("--rule clapp --data digits --encoder resnet", ["unknown encoder 'resnet'", "vgg5, vgg6"]),
        ("--rule clapp++ --data digits --patches 3 4 4 2 1", ["patch 3 does not divide the 16x16 map of block 1"]),
        ("--rule clapp++ --data digits --patches 4 4 4", ["patches has 3 entries, the encoder 5 blocks"]),
        ("--rule clapp++ --data digits --patches 0 4 4 2 1", ["a patch size is a positive whole number"]),
        ("--rule clapp --data digits --image-size 20", ["multiple of 8", "--image-size 16"]),
        ("--rule clapp --data digits --image-size 0", ["--image-size 0: use a positive number"]),
        ("--rule clapp --data digits --encoder vgg6 --image-size 8", ["multiple of 32", "--image-size 32"]),
        ("--rule clapp --data digits --batch-size 1", ["--batch-size 1: a batch of one image has no negatives"]),
        (
            "--rule clapp --data digits --batch-size 64 --limit-images 63",
            ["63 training images, fewer than a batch of 64"],
        ),
        ("--rule clapp --data digits --batch-size 2000", ["1297 training images, fewer", "lower --batch-size"]),
        ("--rule clapp --data digits --limit-images 0", ["--limit-images 0: use 1 or more"]),
        ("--rule clapp --data digits --epochs -1", ["--epochs -1: use 0 or more"]),
        ("--rule clapp --data digits --lr 0", ["--lr 0.0: use a positive number"]),
        ("--rule clapp --data digits --lr nan", ["--lr nan"]),
        ("--rule clapp --data digits --weight-decay -1", ["--weight-decay -1.0"]),
        ("--rule clapp --data digits --seed -1", ["--seed -1"]),
        ("--rule clapp --data digits --seed 99999999999", ["--seed 99999999999"]),
        ("--rule clapp --data digits --view-strength 5", ["--view-strength 5.0: use a number from 0 to 4"]),
        ("--rule clapp --data digits --view-strength nan", ["--view-strength nan"]),
        ("--rule clapp --data cifar10 --view-strength 2", ["--view-strength goes with the affine views of digits"]),
        ("--rule clapp --data digits --threads 0", ["--threads 0: use 1 or more"]),
        (
            "--rule clapp --data digits --views nothere",
            ["--views takes patches, or views of your own, PATH.py:NAME, not 'nothere'"],
        ),
        (
            "--rule clapp --data digits --views patches --view-strength 2",
            ["--view-strength goes with the data set's own"],
        ),
        ("--rule clapp --data digits --views nothere:view", ["PATH.py:NAME, not 'nothere:view'"]),
        ("--rule clapp --data digits --views nothere.py:view", ["there is no file", "nothere.py", "PATH.py:NAME"]),
        ("--rule clapp --data digits --probe-every -1", ["--probe-every -1"]),
        ("--rule clapp --data digits --checkpoint-every 0", ["--checkpoint-every 0.0"]),
        ("--rule clapp --data digits --device gpu", ["--device 'gpu': use one of auto, cpu, cuda, mps"]),
        ("--rule clapp --data digits --rule-options g=1", ["unknown option of rule 'clapp' 'g'", "margin"]),
        ("--rule clapp --data digits --rule-options f", ["--rule-options takes NAME=VALUE, got 'f'"]),
        ("--rule clapp --data digits --rule-options f=relu", ["unknown loss function f 'relu'", "hinge"]),
        ("--rule clapp --data digits --rule-options loss_type=3", ["loss_type must be 1 or 2"]),
        ("--rule clapp --data digits --rule-options loss_type=true", ["loss_type must be 1 or 2, got True"]),
        ("--rule clapp --data digits --rule-options margin=wide", ["margin must be a finite number, got 'wide'"]),
        ("--rule clapp --data digits --rule-options margin=NaN", ["margin must be a finite number, got nan"]),
        ("--rule clapp --data digits --rule-options margin=[1]", ["margin must be a finite number, got [1]"]),
        ("--rule bp-clapp++ --data digits --rule-options spatial=no", ["spatial=no: use true or false"]),
        ("--rule bp-infonce --data digits --rule-options projection_dim=many", ["projection_dim", "many"]),
    ],
)
def test_train(flags: str, says: list[str], out: Path, capsys: Capture) -> None:
    refuse(capsys, f"train {flags} --out {out}", *says)
    assert not out.exists()


def test_no_out(capsys: Capture) -> None:
    refuse(capsys, "train --rule clapp --data digits", "train needs --out", "--out runs/x")


def test_larger_than_memory(out: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sysconf", lambda name: 4096 if name == "SC_PAGE_SIZE" else 2**18)  # 1 GiB
    refuse(capsys, f"train --rule clapp++ --data digits --width 20 --out {out}", "would take 1.8 GiB", "has 1.0 GiB")
    double = f"train --rule clapp++ --data digits --width 20 --precision 64-true --out {out}"
    refuse(capsys, double, "would take 3.6 GiB", "has 1.0 GiB")
    assert not out.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_cuda(out: Path, capsys: Capture) -> None:
    refuse(capsys, f"train --rule clapp --data digits --device cuda --out {out}", "--device cuda", "--device cpu")
    assert not out.exists()


def test_out_is_a_file_or_below_one(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    for out in (file, file / "x", file / "x" / "y"):
        refuse(capsys, f"train --rule clapp --data digits --out {out}", f"--out {out}", "is a file; name a folder")
    assert file.read_text() == "mine"


def test_unwritable_folder(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() == 0:  # root may write everywhere: let the system call say what it would say to others
        monkeypatch.setattr(os, "access", lambda path, mode: False)
    else:
        tmp_path.chmod(0o500)
    refuse(
        capsys, f"train --rule clapp --data digits --out {tmp_path / 'x'}", "no permission to write in", str(tmp_path)
    )
    assert not (tmp_path / "x").exists()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder in which nobody can write")
def test_a_folder_that_cannot_be_made(capsys: Capture) -> None:
    refuse(capsys, f"train --rule clapp --data digits {TINY} --out /proc/x", "/proc/x", code=1)


def test_a_run_is_there_already(trained: Path, capsys: Capture) -> None:
    before = contents(trained)
    refuse(capsys, f"train --rule clapp --data digits --out {trained}", "holds a run already", "--resume", "--out")
    refuse(capsys, f"train --resume --width 0.5 --out {trained}", "encoder width", "[4, 8, 8, 16, 16]")
    refuse(capsys, f"train --resume --data digits --rule clapp --out {trained}", "rule 'clapp' (there: 'clapp++')")
    assert contents(trained) == before


def test_a_folder_with_other_things_is_left_alone(out: Path, capsys: Capture) -> None:
    write_files(out, {"config.yaml": b"mine: true\n"})
    refuse(capsys, f"train --rule clapp --data digits --out {out}", "holds a run already (config.yaml)")
    refuse(capsys, f"train --resume --out {out}", "config.yaml is not a localssl run configuration")
    refuse(capsys, f"probe {out}", "config.yaml is not a localssl run configuration")
    assert contents(out) == {out / "config.yaml": b"mine: true\n"}


def test_a_truncated_jpeg(tmp_path: Path, out: Path, capsys: Capture) -> None:
    images = [encoded(picture, "JPEG") for picture in pictures(24)]
    images[5] = cut(images[5])
    write_files(
        tmp_path / "set",
        {f"{'train' if i < 18 else 'test'}/{'ab'[i % 2]}/{i:02d}.jpg": image for i, image in enumerate(images)},
    )
    flags = f"--rule clapp --data imagefolder:{tmp_path / 'set'} --threads 1 --epochs 1 --width 0.02 --batch-size 8"
    refuse(capsys, f"train {flags} --out {out}", "b/05.jpg cannot be decoded", "--skip-bad skips such images")
    assert not out.exists()
    assert status(f"train {flags} --skip-bad --out {out}") == 0
    assert "1 bad image skipped: b/05.jpg" in capsys.readouterr().out
    assert (out / "encoder.safetensors").exists()


def test_a_truncated_jpeg_among_the_test_images(tmp_path: Path, out: Path, capsys: Capture) -> None:
    """Training never sees it; the advice that the probe gives is a flag of the probe."""
    images = [encoded(picture, "JPEG") for picture in pictures(24)]
    images[21] = cut(images[21])
    write_files(
        tmp_path / "set",
        {f"{'train' if i < 16 else 'test'}/{'ab'[i % 2]}/{i:02d}.jpg": image for i, image in enumerate(images)},
    )
    run_tiny(out, **{**SMALL_VGG, "data": f"imagefolder:{tmp_path / 'set'}", "epochs": 0})
    embeddings = f"export {out} --embeddings --out {tmp_path / 'z.npy'}"
    for line in (f"probe {out}", embeddings):
        refuse(capsys, line, "b/21.jpg cannot be decoded", "--skip-bad skips such images")
        assert status(f"{line} --skip-bad") == 0
        assert "1 bad image skipped: b/21.jpg" in " ".join(capsys.readouterr().out.split())
    assert np.load(tmp_path / "z.npy").shape[0] == 7


def test_parquet(tmp_path: Path, out: Path, capsys: Capture) -> None:
    images = [encoded(picture) for picture in pictures(6)]
    file = write_parquet(tmp_path / "a.parquet", images, [0, 1] * 3)
    pq.write_table(pa.table({"picture": ["a", "b"], "kind": [0, 1]}), tmp_path / "b.parquet")
    refuse(capsys, f"train --rule clapp --data parquet:{tmp_path / 'b.parquet'} --out {out}", "b.parquet", "picture")
    refuse(
        capsys, f"train --rule clapp --data parquet:{file} --out {out}", "5 training images, fewer than a batch of 64"
    )
    file.write_bytes(file.read_bytes()[:100])
    refuse(capsys, f"train --rule clapp --data parquet:{file} --out {out}", "a.parquet")
    assert not out.exists()


OWN = (
    "train --rule clapp --data digits --out",
    "compare --data digits --out",
    "probe",
    "align",
    "report",
    "export --onnx",
)


@pytest.mark.parametrize("command", OWN)
def test_own_names_no_file(command: str, trained: Path, out: Path, capsys: Capture) -> None:
    """Every command that has --own, before it does anything."""
    assert {c.split()[0] for c in OWN} == {c for c, kind in usage.commands().items() if hasattr(kind, "own")}
    place = out if "--out" in command else trained
    before = contents(trained)
    refuse(capsys, f"{command} {place} --own nothere", "--own takes files with code of yours, PATH.py, not 'nothere'")
    for typed in ("nothere.py", "nothere.py:MyRule"):
        refuse(capsys, f"{command} {place} --own {typed}", f"--own {typed}: there is no file {Path.cwd()}/nothere.py")
    refuse(capsys, f"{command} {place} --own {Path(__file__).parent}", "--own takes files", "PATH.py")
    assert contents(trained) == before
    assert not out.exists()


@pytest.mark.parametrize("flag", ["seeds", "jobs", "threads"])
def test_numbers_of_reproduce(flag: str, out: Path, capsys: Capture) -> None:
    for number in (0, -1):
        refuse(capsys, f"reproduce demo --{flag} {number} --out {out}", f"--{flag} {number}: use 1 or more")
    assert not out.exists()


@pytest.mark.parametrize("command", ["probe", "align", "export --onnx"])
def test_no_run(command: str, tmp_path: Path, capsys: Capture) -> None:
    for place in (tmp_path / "nowhere", tmp_path):
        refuse(capsys, f"{command} {place}", f"no run in {place}", "localssl train --out")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("command", ["probe", "align", "report", "export --onnx"])
def test_a_file_in_place_of_the_runs_folder(command: str, trained: Path, capsys: Capture) -> None:
    file = trained / "config.yaml"
    refuse(capsys, f"{command} {file}", f"{file} is a file; give the run's folder, {trained}\n")


def test_images_that_are_not_where_they_were(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    run = run_tiny(tmp_path / "x", **{**SMALL_VGG, "data": "imagefolder:set", "epochs": 0}).path
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for command in (f"probe {run}", f"align {run}", f"train --resume --out {run}"):
        refuse(capsys, command, "set, on which", "is not here; name it with --data imagefolder:PATH")
    refuse(capsys, f"train --resume --out {run} --data imagefolder:typed", "no image folder typed")
    assert status(f"align {run} --data imagefolder:{tmp_path / 'set'} --batches 1 --batch-size 4") == 0


def test_damaged_runs(tmp_path: Path, capsys: Capture) -> None:
    run = run_tiny(tmp_path / "x", epochs=0).path
    good = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}

    def damaged(name: str, change: Callable[[bytes], bytes], line: str, *says: str) -> None:
        (run / name).write_bytes(change(good[run / name]))
        refuse(capsys, line, *says)
        (run / name).write_bytes(good[run / name])

    probe, align, resume = f"probe {run}", f"align {run}", f"train --resume --out {run}"
    damaged("encoder.safetensors", cut, probe, "encoder.safetensors cannot be read", "resume the run")
    damaged("encoder.safetensors", lambda b: b"", f"export {run} --onnx", "encoder.safetensors cannot be read")
    damaged("encoder.json", cut, probe, "encoder.json is not readable JSON")
    damaged("encoder.json", lambda b: b"[]", probe, "encoder.json is not an encoder of format 1")
    damaged("encoder.json", lambda b: b.replace(b'"vgg5"', b"7"), probe, "unknown encoder '7'")
    damaged("encoder.json", lambda b: b.replace(b'"in_channels": 1', b'"in_channels": "1"'), probe, "encoder.json")
    damaged("encoder.json", lambda b: b.replace(b"16,\n      16\n", b"16,\n      32\n"), probe, "another width")
    damaged("checkpoint/step-000000000.pt", cut, align, "no checkpoint in", "can be read")
    damaged("checkpoint/step-000000000.pt", cut, resume, "no checkpoint in", "can be read")
    damaged("config.yaml", lambda b: b.replace(b"clapp++", b"clap"), align, "unknown rule 'clap'")
    damaged(
        "config.yaml", lambda b: b.replace(b"- 4\n  - 8", b"- 4\n  - 12"), align, "last checkpoint", "another width"
    )
    damaged("config.yaml", lambda b: b"\xff\xfe", probe, "config.yaml")
    (run / "checkpoint" / "step-000000000.pt").unlink()
    refuse(capsys, align, "has no checkpoint yet")


def test_export(trained: Path, tmp_path: Path, capsys: Capture) -> None:
    refuse(capsys, f"export {trained}", "export needs one of --onnx, --nir, --rule and --embeddings")
    refuse(
        capsys, f"export {trained} --onnx --embeddings", "export needs one of --onnx, --nir, --rule and --embeddings"
    )
    refuse(capsys, f"export {trained} --embeddings", "needs --out", "--out z.npy")
    refuse(capsys, f"export {trained} --embeddings --out {tmp_path}", "is a folder; name a file")
    refuse(capsys, f"export {trained} --embeddings --out {tmp_path}/a/z.npy", f"no folder {tmp_path}/a")
    refuse(capsys, f"export {trained} --embeddings --data minst --out {tmp_path}/z.npy", "did you mean 'mnist'")
    assert contents(tmp_path) == {}


def test_labels_are_checked_before_features(trained: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("localssl.evaluate.features", lambda *arguments, **options: pytest.fail("too late"))
    refuse(capsys, f"probe {trained} --limit-images 5", "the test part has images of class", "the training part none")
    refuse(capsys, f"probe {trained} --limit-images 90 --labels 10", "fewer than 10 labels per class")


def test_probe_and_align(trained: Path, tmp_path: Path, capsys: Capture) -> None:
    before = contents(trained)
    loose = write_files(tmp_path / "loose", {f"{i}.png": encoded(p) for i, p in enumerate(pictures(20))})
    for protocol in ("fast", "paper"):
        refuse(capsys, f"probe {trained} --protocol {protocol} --data imagefolder:{loose}", "has no labels")
    refuse(capsys, f"probe {trained} --data imagefolder:/nowhere", "/nowhere")
    refuse(capsys, f"probe {trained} --labels 10 --draws 0 --limit-images 300", "draws")
    refuse(capsys, f"probe {trained} --protocol paper --epochs 0 --limit-images 300", "epochs")
    refuse(capsys, f"probe {trained} --protocol paper --labels 10", "--protocol paper takes all labels")
    refuse(capsys, f"probe {trained} --epochs 3", "--epochs goes with --protocol paper")
    refuse(capsys, f"probe {trained} --threads 0", "--threads 0: use 1 or more")
    refuse(capsys, f"probe {trained} --device gpu", "--device 'gpu'", "cuda")
    refuse(capsys, f"align {trained} --batches 0", "--batches")
    refuse(capsys, f"align {trained} --batch-size 1", "--batch-size")
    refuse(capsys, f"align {trained} --batch-size 501", "500 test images, fewer than a batch of 501")
    assert contents(trained) == before


@pytest.mark.parametrize(
    "line", ["", "trian", "train --nope", "train --epochs three", "probe", "train --optimizer adm"]
)
def test_what_the_parser_refuses(line: str, capsys: Capture) -> None:
    assert main(line.split()) == 2
    said = capsys.readouterr().err
    assert said
    assert "Traceback" not in said


@pytest.mark.parametrize(("error", "code"), [(UsageError, 2), (RunError, 1), (OSError, 1)])
def test_any_error_is_one_line(
    error: type[Exception], code: int, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(config: object) -> None:
        raise error("first line\n  second line")

    monkeypatch.setattr(commands, "train", fail)
    refuse(capsys, "train", "first line second line", code=code)


def test_reproduce(tmp_path: Path, capsys: Capture) -> None:
    refuse(capsys, f"reproduce dmeo --out {tmp_path}", "unknown experiment 'dmeo'", "did you mean 'demo'")


def test_version(capsys: Capture) -> None:
    assert status("--version") == 0
    assert capsys.readouterr().out == "0.1.0\n"
