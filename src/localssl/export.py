"""The frozen encoder for other programs: ONNX, and embeddings as a NumPy array."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from localssl.encoders import Encoder
from localssl.errors import RunError, UsageError
from localssl.system.files import write_atomic


class _Outputs(nn.Module):
    """ONNX wants a tuple of named outputs."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.encoder.emitted(x))


def to_onnx(encoder: Encoder, input_shape: tuple[int, ...], path: Path) -> float:
    """Write the encoder as ONNX (input "images", normalised, any batch size; outputs "block_1", …) and check it.

    Returns:
        The largest absolute difference between onnxruntime's outputs and PyTorch's on random images.

    Raises:
        UsageError: onnx, onnxscript or onnxruntime is not installed.
        RunError: onnxruntime's outputs differ by more than 1e-4 of the largest activity; nothing was written.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise UsageError(f"--onnx needs {package}: pip install 'localssl[onnx]', in a clone '.[onnx]'")
    import onnxruntime

    encoder = encoder.eval().float()
    n_blocks = len(encoder.blocks)
    names = [f"block_{block}" for block in range(1, n_blocks + 1)]
    example = torch.zeros(4, *input_shape)
    seeded = torch.Generator().manual_seed(0)
    x = torch.randn(3, *input_shape, generator=seeded)  # another batch size than the example's
    with torch.no_grad():
        expected = [z.numpy() for z in encoder.emitted(x)]
    worst = 0.0

    def write(temporary: Path) -> None:
        nonlocal worst
        torch.onnx.export(
            _Outputs(encoder).eval(),  # or PyTorch warns that the wrapper is in training mode
            (example,),
            str(temporary),
            input_names=["images"],
            output_names=names,
            dynamic_shapes={"x": {0: torch.export.Dim("batch", min=1)}},
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        session = onnxruntime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])
        for name, ours, output in zip(names, expected, session.run(names, {"images": x.numpy()}), strict=True):
            theirs = np.asarray(output)
            worst = max(worst, float(np.abs(ours - theirs).max()))
            if not np.allclose(ours, theirs, rtol=1e-4, atol=1e-4 * float(np.abs(ours).max())):
                raise RunError(f"onnxruntime disagrees with PyTorch at {name}; {path} was not written")

    write_atomic(path, write)
    return worst


def save_embeddings(features: list[Tensor], path: Path) -> tuple[int, int]:
    """Write all blocks' readouts side by side as one float32 array (images, features) in .npy format.

    Returns:
        The array's shape.
    """
    array = torch.cat(features, 1).float().numpy()

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.save(file, array, allow_pickle=False)

    write_atomic(path, write)
    return array.shape[0], array.shape[1]
