"""The frozen encoder outside this library: ONNX and embeddings."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

import localssl
from localssl import export
from localssl.cli import main
from localssl.errors import RunError
from localssl.probe.activity import features
from localssl.runs.run import Run

from .sources_util import encoded, pictures, write_files
from .train_util import run_tiny

ABSENT = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
needs_onnx = pytest.mark.skipif(bool(ABSENT), reason=f"not installed: {', '.join(ABSENT)} (localssl[onnx])")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_tiny(tmp_path_factory.mktemp("runs") / "x", epochs=1)


@needs_onnx
@pytest.mark.filterwarnings("ignore", "error:Exporting a model while it is in training mode")
def test_onnx(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    assert main(["export", str(run.path), "--onnx"]) == 0
    written = run.path / "encoder.onnx"
    said = capsys.readouterr()
    assert said.out.startswith(f"written: {written}; onnxruntime differs from PyTorch by at most ")
    assert "\n" not in said.out.strip()
    assert not list(run.path.glob("encoder.onnx?*"))  # one file, no weights beside it

    session = onnxruntime.InferenceSession(str(written), providers=["CPUExecutionProvider"])
    encoder = localssl.load(run.path)
    for n in (1, 7):
        x = torch.randn(n, 1, 16, 16, generator=torch.Generator().manual_seed(n))
        outputs = session.run([f"block_{block}" for block in range(1, 6)], {"images": x.numpy()})
        for ours, theirs in zip(encoder(x), outputs, strict=True):
            np.testing.assert_allclose(theirs, ours.detach().numpy(), atol=1e-5)

    class Wrong:
        def __init__(self, *arguments: object, **options: object) -> None: ...

        def run(self, names: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            return [value + 1 for value in session.run(names, inputs)]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Wrong)
    before = written.read_bytes()
    with pytest.raises(RunError, match=r"disagrees with PyTorch at block_1; .* was not written"):
        export.to_onnx(encoder, (1, 16, 16), written)
    assert written.read_bytes() == before
    assert not list(run.path.glob(".*"))


def test_onnx_needs_packages(run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["export", str(run.path), "--onnx"]) == 2
    assert (
        capsys.readouterr().err == "localssl: --onnx needs onnx: pip install 'localssl[onnx]', in a clone '.[onnx]'\n"
    )


def test_embeddings(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "z.npy"
    assert main(["export", str(run.path), "--embeddings", "--out", str(out)]) == 0
    which, written = capsys.readouterr().out.splitlines()
    assert which.startswith("digits: 1,297 training and 500 test images")
    assert written == f"written: {out}, float32 (500, 256); columns of blocks 1 to 5: [64, 32, 32, 64, 64]"
    array = np.load(out, allow_pickle=False)
    assert array.dtype == np.float32
    images = run.images("test")
    expected = features(run.encoder(), images, patches=run.config.patches, normalise=run.normalise())
    np.testing.assert_array_equal(array, torch.cat(expected, 1).numpy())
    encoder = localssl.load(run.path)
    assert encoder.preprocess is not None
    z = encoder(encoder.preprocess(images.batch(torch.tensor([7]))))  # patches 4 4 4 2 1, by hand
    pooled = z[0].unfold(2, 4, 4).unfold(3, 4, 4).mean((4, 5))
    np.testing.assert_allclose(array[7, :64], pooled.flatten().detach(), 1e-4, 1e-6)
    np.testing.assert_allclose(array[7, -64:], z[4].flatten().detach(), 1e-4, 1e-6)


def test_embeddings_of_other_images(run: Run, tmp_path: Path) -> None:
    """Another data set, in the run's size and channels, its training part, without labels."""
    write_files(tmp_path / "set", {f"{i}.png": encoded(p) for i, p in enumerate(pictures(10, 40, 60))})
    out, flags = tmp_path / "z.npy", ["--data", f"imagefolder:{tmp_path / 'set'}", "--split", "train"]
    assert main(["export", str(run.path), "--embeddings", *flags, "--out", str(out)]) == 0
    assert np.load(out).shape == (8, 256)  # a fifth is held out


def test_a_failed_write_leaves_the_old_file(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "z.npy"
    out.write_bytes(b"old")

    def half(file: object, array: np.ndarray, **options: object) -> None:
        file.write(array.tobytes()[:100])  # type: ignore[attr-defined]
        raise OSError(28, "No space left on device", "z.npy")

    monkeypatch.setattr(np, "save", half)
    assert main(["export", str(run.path), "--embeddings", "--out", str(out)]) == 1
    assert out.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [out]
