"""What a run leaves on disk: training checkpoints (resumable) and the trained encoder (a product)."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from localssl import encoders
from localssl.config import FORMAT, RunConfig
from localssl.data.views import Normalise
from localssl.encoders import Encoder
from localssl.errors import UsageError
from localssl.files import write_atomic, write_text

KEEP = 2  # the last one, and one more in case the last is on a failing disk


def save_encoder(run: Path, encoder: Encoder, config: RunConfig) -> None:
    """Write ``encoder.safetensors`` and, beside it, ``encoder.json``: they depend on weights and configuration only."""
    meta = {
        "format": FORMAT,
        "encoder": encoder.config,
        "input_shape": [config.channels, config.image_size, config.image_size],
        "mean": config.mean,
        "std": config.std,
        "patches": config.patches,
    }
    weights = {name: value.detach().cpu().contiguous() for name, value in encoder.state_dict().items()}
    write_text(run / "encoder.json", json.dumps(meta, indent=2) + "\n")
    write_atomic(run / "encoder.safetensors", lambda path: save_file(weights, path))


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
        encoder = encoders.from_config(meta["encoder"])
    file = run / "encoder.safetensors"
    try:
        weights = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{file} cannot be read ({error}); resume the run to write it anew") from error
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
            raise UsageError(f"{source} {where} {name}: it was written for another rule or encoder")
        if own[name].shape != weights[name].shape:
            raise UsageError(
                f"{source}: {name} is {tuple(weights[name].shape)}, expected {tuple(own[name].shape)}: another width or data set"
            )
    module.load_state_dict(weights)


def _read_meta(run: Path) -> dict[str, Any]:
    file = run / "encoder.json"
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"no trained encoder in {run} ({file.name} not found); train one with localssl train --out {run}"
        ) from error
    except ValueError as error:
        raise UsageError(f"{file} is not readable JSON; resume the run to write it anew") from error
    keys = {"format", "encoder", "mean", "std", "patches", "input_shape"}
    if not isinstance(meta, dict) or meta.get("format") != FORMAT or not keys <= meta.keys():
        raise UsageError(f"{file} is not an encoder of format {FORMAT}")
    return meta


def rng_state() -> dict[str, Any]:
    """State of every source of randomness, as tensors and numbers only (readable without pickle)."""
    name, keys, *rest = np.random.get_state()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest],
        "python": list(random.getstate()),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Put every source of randomness back where ``rng_state`` found it."""
    torch.set_rng_state(state["torch"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def save(run: Path, state: dict[str, Any]) -> Path:
    """Write ``checkpoint/step-N.pt`` atomically and remove all but the last ``KEEP``."""
    folder = run / "checkpoint"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{state['step']:09d}.pt"
    write_atomic(path, lambda temporary: torch.save({"format": FORMAT, **state}, temporary))
    for old in existing(run)[:-KEEP]:
        old.unlink(missing_ok=True)
    return path


def existing(run: Path) -> list[Path]:
    """The run's checkpoints, oldest first."""
    return sorted((run / "checkpoint").glob("step-*.pt"))


def read_last(run: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """The last readable checkpoint, or None where there is none yet, and remarks on any that was not readable.

    Raises:
        UsageError: there are checkpoints, but none can be read.
    """
    notes: list[str] = []
    for path in reversed(existing(run)):
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file fails in many ways, none of which should end the run
            notes.append(
                f"{path.name} cannot be read ({type(error).__name__}: truncated or damaged); trying the one before"
            )
            continue
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise UsageError(f"{path} is not a checkpoint of format {FORMAT}")
        return state, notes
    if notes:
        raise UsageError(
            f"no checkpoint in {run / 'checkpoint'} can be read; move the folder away and start the run anew"
        )
    return None, notes
