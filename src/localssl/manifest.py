"""manifest.json: what is needed to repeat a run and to trust it: versions, data fingerprint, git state, machine."""

from __future__ import annotations

import dataclasses
import json
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

import localssl
from localssl import own
from localssl.config import FORMAT, RunConfig
from localssl.data.sources import Images
from localssl.files import write_text
from localssl.run import manifest_of


def environment() -> dict[str, Any]:
    """Versions, threads, device names and git state of this process."""
    return {
        "localssl": localssl.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": f"{platform.system()} {platform.machine()}",
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "git": _git(),
    }


def write_manifest(
    run: Path, config: RunConfig, images: Images, root: Path, commands: list[str], processes: int = 1
) -> None:
    """Write ``manifest.json`` into the run's folder; ``commands`` began the run and went on with it, in order."""
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
        **{part: {"sha256": own.fingerprint(name)} for part, name in config.own_files().items()},
        "processes": processes,
        "begun": {
            "date": manifest_of(run, "begun").get("date") or time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
            "commands": commands,
        },
        "environment": environment(),
    }
    write_text(run / "manifest.json", json.dumps(manifest, indent=2) + "\n")


def _git() -> str | None:
    """Commit of the checkout this package runs from, with "-dirty" where it was changed; None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
