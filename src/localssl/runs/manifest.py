"""manifest.json: what is needed to repeat a run and to trust it: versions, data fingerprint, git state, machine."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import subprocess
import time
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import localssl
from localssl import own
from localssl.data.sources import Images
from localssl.runs.config import FORMAT, RunConfig
from localssl.runs.run import manifest_of
from localssl.system import devices
from localssl.system.files import write_text

# What else may change a run's numbers: images as they are decoded and augmented, data as they are read, weights' files.
PACKAGES = ("numpy", "torchvision", "lightning-fabric", "kornia", "pillow", "pyarrow", "safetensors")


def environment() -> dict[str, Any]:
    """Versions, of packages that are installed, threads, device names and git state of this process."""
    return {
        "localssl": localssl.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        **_versions(),
        "threads": torch.get_num_threads(),
        "machine": f"{platform.system()} {platform.machine()}",
        "cpu": devices.processor(),
        "cores": os.cpu_count(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "git": _git(),
    }


def write_manifest(
    run: Path,
    config: RunConfig,
    images: Images,
    root: Path,
    command: str,
    processes: int = 1,
    resumed: bool = False,
    failed_check: str | None = None,
) -> None:
    """Write ``manifest.json`` into the run's folder.

    Args:
        run: the folder.
        config: of the run, resolved.
        images: those trained on.
        root: folder that holds the data set.
        command: the one that was given.
        processes: that trained.
        resumed: whether the run goes on: the commands before this one are kept, too.
        failed_check: which check a rule of the user's own fails; None: it fails none.
    """
    begun = manifest_of(run, "begun") if resumed else {}
    commands = list(begun.get("commands", ()))
    if command not in commands:
        commands.append(command)
    files: dict[str, dict[str, str]] = {p: {"sha256": own.fingerprint(n)} for p, n in config.own_files().items()}
    if failed_check is not None:
        files["rule"]["failed_check"] = failed_check
    manifest = {
        "format": FORMAT,
        "config": json.loads(json.dumps(dataclasses.asdict(config))),
        "data": {
            "name": images.name,
            "root": str(root.resolve()) if root.is_dir() else None,  # where probe, align and --resume look again
            "images": len(images),
            "fingerprint": images.fingerprint(),
            "notes": images.notes,
        },
        **files,
        "processes": processes,
        "begun": {
            "date": begun.get("date") or time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
            "commands": commands,
        },
        "environment": environment(),
    }
    write_text(run / "manifest.json", json.dumps(manifest, indent=2) + "\n")


def write_cost(run: Path) -> None:
    """Write ``cost.json``: peak memory of this process, or of an earlier one that trained here and took more."""
    file = run / "cost.json"
    spent = {"peak_memory_mib": devices.peak_memory(), "gpu_memory_mib": devices.peak_gpu_memory()}
    with suppress(OSError, ValueError, AttributeError):  # none yet
        before = json.loads(file.read_text(encoding="utf-8"))
        spent = {key: max(value, float(before.get(key) or 0)) for key, value in spent.items()}
    write_text(file, json.dumps({key: round(value, 1) for key, value in spent.items()}) + "\n")


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _git() -> str | None:
    """Commit of the checkout this package runs from, with "-dirty" where it was changed; None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
