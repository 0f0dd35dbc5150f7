"""What a run leaves on disk: training checkpoints (resumable) and the trained encoder (a product)."""

from __future__ import annotations

import errno
import hashlib
import json
import random
import zipfile
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor

from localssl import encoders
from localssl.data.views import Normalise
from localssl.encoders import Encoder
from localssl.errors import UsageError
from localssl.own import doubt
from localssl.runs.config import FORMAT, RunConfig
from localssl.system.files import Sink, make_folder, move, remove, sweep, write_bytes, write_into, write_text

KEEP = 2  # the last one, and one more in case the last is on a failing disk
SUM = "sha256"  # of an encoder's numbers, in the header of their file
KEYS = ("step", "seconds", "config", "learner", "optimizer", "rng", "sum", "count")


def save_encoder(run: Path, encoder: Encoder, config: RunConfig) -> None:
    """Write ``encoder.safetensors`` and, beside it, ``encoder.json``: they depend on weights and configuration only."""
    meta = {
        "format": FORMAT,
        "encoder": encoder.config,
        "input_shape": list(config.input_shape),
        "mean": config.mean,
        "std": config.std,
        "patches": config.patches,
    }
    weights = {name: value.detach().cpu().contiguous() for name, value in encoder.state_dict().items()}
    write_text(run / "encoder.json", json.dumps(meta, indent=2) + "\n")
    data = to_bytes(weights)
    start = 8 + int.from_bytes(data[:8], "little")  # of the numbers, after the header
    write_bytes(run / "encoder.safetensors", to_bytes(weights, {SUM: hashlib.sha256(data[start:]).hexdigest()}))


def _is_damaged(file: Path) -> bool:
    """Whether the numbers in a .safetensors are not those that were written; without their sha256 nobody knows."""
    with file.open("rb", buffering=0) as opened:
        header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
        written = (header.get("__metadata__") or {}).get(SUM)
        return written is not None and hashlib.file_digest(opened, "sha256").hexdigest() != written


def holds_other_weights(run: Path, encoder: Encoder) -> bool:
    """Whether the run's encoder.safetensors exists and is not this encoder."""
    file = run / "encoder.safetensors"
    if not file.is_file():
        return False
    try:
        weights, own = load_file(file), encoder.state_dict()
    except (OSError, SafetensorError):
        return True
    same = (w.dtype == own[n].dtype and torch.equal(w, own[n].cpu()) for n, w in weights.items() if n in own)
    return weights.keys() != own.keys() or not all(same)


def load(path: str | Path, encoder: Encoder | None = None) -> Encoder:
    """The trained encoder of a run, in eval mode, on the CPU.

    Args:
        path: the run's folder.
        encoder: an encoder of the same structure, needed only for a stack of your own blocks.

    Returns:
        The encoder. ``encoder.preprocess(images)`` normalises uint8 images, or floats in [0, 1], as in training.

    Raises:
        UsageError: no run there, or weights that are truncated or of another encoder.
    """
    run = Path(path)
    meta = _read_meta(run)
    if encoder is None:
        if meta["encoder"] is None:
            raise UsageError(
                f"{run} holds an encoder of your own blocks; call load(path, encoder=…) with the same stack"
            )
        try:
            encoder = encoders.from_config(meta["encoder"])
        except (TypeError, ValueError) as error:
            raise UsageError(f"{run / 'encoder.json'} does not describe an encoder ({error})") from error
    file = run / "encoder.safetensors"
    try:
        weights = load_file(file)
        damaged = _is_damaged(file)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{file} cannot be read ({error}); resume the run to write it anew") from error
    if damaged:
        raise UsageError(f"{file} is damaged: not the weights that were written; resume the run to write it anew")
    load_weights(encoder, weights, str(file))
    encoder.preprocess = Normalise(meta["mean"], meta["std"])
    return encoder.eval()


def load_weights(module: torch.nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Put ``weights`` into ``module``.

    Raises:
        UsageError: other names or shapes than the module has; the first difference is named.
    """
    own = module.state_dict()
    for name in sorted(own.keys() | weights.keys()):
        if name not in weights or name not in own:
            where = "lacks" if name not in weights else "has an unexpected"
            raise UsageError(
                f"{source} {where} {name}: it was written for another rule or encoder, or by another version"
            )
        if own[name].shape != weights[name].shape:
            shapes = f"is {tuple(weights[name].shape)}, expected {tuple(own[name].shape)}"
            raise UsageError(f"{source}: {name} {shapes}: it was written at another width or for another data set")
    module.load_state_dict(weights)


def _read_meta(run: Path) -> dict[str, Any]:
    file = run / "encoder.json"
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"no trained encoder in {run} ({file.name} not found); train one with localssl train --out {run}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{file} is not readable JSON; resume the run to write it anew") from error
    keys = {"format", "encoder", "mean", "std", "patches", "input_shape"}
    if not isinstance(meta, dict) or meta.get("format") != FORMAT or not keys <= meta.keys():
        raise UsageError(f"{file} is not an encoder of format {FORMAT}")
    for key in ("mean", "std"):
        given = meta[key] if isinstance(meta[key], list) else [None]
        if not all(isinstance(x, int | float) and -3e38 < x < 3e38 for x in given):
            raise UsageError(f"{file} is damaged: {key} is not a list of numbers")
    if isinstance(meta["encoder"], dict):
        doubt([str(meta["encoder"].get("name"))])
    return meta


def rng_state() -> dict[str, Any]:
    """State of every source of randomness, as tensors and numbers only (readable without running a pickle)."""
    name, keys, *rest = np.random.get_state()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest],
        "python": list(random.getstate()),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def seed_rng(seed: int) -> None:
    """Seed every source of randomness."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def set_rng_state(state: dict[str, Any], device: torch.device | None = None) -> None:
    """Put every source of randomness back where ``rng_state`` found it.

    Args:
        state: what it found.
        device: of one of several processes, which all go on with the generators of the first: it wrote the state, and
            had the first GPU.
    """
    torch.set_rng_state(state["torch"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
        if device is not None and device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"][0], device)


def drawn(device: torch.device) -> int:
    """A number that tells whether PyTorch's generators of two processes are in the same state."""
    states = [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]
    return zlib.crc32(b"".join(state.numpy().tobytes() for state in states))


@contextmanager
def aside(seed: int) -> Generator[None]:
    """Measurements: random numbers that are the same every time, the run's own left as they were."""
    before = rng_state()
    seed_rng(seed)
    try:
        yield
    finally:
        set_rng_state(before)


def save(run: Path, state: dict[str, Any]) -> Path:
    """Write ``checkpoint/step-N.pt`` atomically; of those before it, ``KEEP - 1`` stay.

    Raises:
        OSError: it could not be written; those that were there are untouched.
    """
    folder = run / "checkpoint"
    make_folder(folder)
    path = folder / f"step-{state['step']:09d}.pt"
    write(path, state)
    for later in [old for old in existing(run) if old > path]:  # not readable, or the run would have gone on from it
        move(later, f"damaged-{later.name}")
    for old in existing(run)[:-KEEP]:
        remove(old)
    sweep(folder)
    return path


def write(path: Path, state: dict[str, Any]) -> None:
    """Write one checkpoint atomically.

    Raises:
        OSError: it could not be written.
    """

    def fill(sink: Sink) -> None:
        try:
            torch.save({"format": FORMAT, **state}, sink)  # pyright: ignore[reportArgumentType]
        except RuntimeError as error:  # what torch makes of a full disk
            raise OSError(errno.ENOSPC, "a checkpoint could not be written whole, is the disk full?") from error

    write_into(path, fill)


def existing(run: Path) -> list[Path]:
    """The run's checkpoints, oldest first."""
    return sorted((run / "checkpoint").glob("step-*.pt"))


def _check_sums(path: Path) -> None:
    """Compare what a checkpoint holds with the CRC-32 of its every part, at which ``torch.load`` does not look.

    Raises:
        BadZipFile: they differ, or it is no archive as torch writes them: nothing compressed, nothing there twice.
    """
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
            raise zipfile.BadZipFile("compressed parts")
        if sum(part.file_size for part in parts) > path.stat().st_size:  # else it could be made to take for ever
            raise zipfile.BadZipFile("parts larger than the file")
        if (bad := archive.testzip()) is not None:
            raise zipfile.BadZipFile(f"{bad} is damaged")


def read_last(run: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """The last readable checkpoint, or None where there is none yet, and remarks on any that was not readable.

    Raises:
        UsageError: there are checkpoints, but none can be read.
    """
    notes: list[str] = []
    for path in reversed(existing(run)):
        try:
            _check_sums(path)
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file fails in many ways, none of which should end the run
            notes.append(
                f"{path.name} cannot be read ({type(error).__name__}: truncated or damaged); trying the one before"
            )
            continue
        if not isinstance(state, dict) or state.get("format") != FORMAT or not state.keys() >= set(KEYS):
            raise UsageError(f"{path} is not a checkpoint of format {FORMAT}; move it away to use the one before")
        return state, notes
    if notes:
        raise UsageError(
            f"no checkpoint in {run / 'checkpoint'} can be read; move the folder away and start the run anew"
        )
    return None, notes
