"""What this machine has for localssl, and what to do where something is missing: ``localssl doctor``."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from packaging.requirements import Requirement

import localssl
from localssl import encoders, rules
from localssl.data.readers import DOWNLOADS, NAMED, data_folder, fetching
from localssl.data.sources import open_images
from localssl.errors import RunError, UsageError, one_line
from localssl.learner import Learner
from localssl.system import devices

EXTRAS = {
    "onnx": "for localssl export --onnx",
    "nir": "for localssl export --nir",
    "wandb": "for localssl train --trackers wandb",
    "mlflow": "for localssl train --trackers mlflow",
    "test": "for the tests",
    "docs": "for make site",
    "dist": "for make dist",
}
SECONDS = 2.0  # that every measurement of speed takes, about
WIDTH, BATCH, SIDE = 0.25, 32, 32  # of the step that is timed


@dataclass(frozen=True)
class Finding:
    """One line.

    Args:
        about: "versions", "devices", "rules", "data", "disk", "speed".
        name: of the thing.
        found: what was found.
        advice: what to do, or "".
        broken: whether localssl cannot work as it is.
    """

    about: str
    name: str
    found: str
    advice: str = ""
    broken: bool = False


def look(root: Path | None = None, speed: bool = True) -> Iterator[Finding]:
    """Everything that there is to say, one after the other.

    Args:
        root: folder that holds the data sets; None: ``$LOCALSSL_DATA``, else "data".
        speed: whether training steps are timed, a few seconds.
    """
    yield from _versions()
    yield from _devices()
    yield _rules()
    yield from _data(root)
    yield _disk()
    if speed:
        yield from _speed()


def _versions() -> Iterator[Finding]:
    yield Finding("versions", "localssl", f"{localssl.__version__}, in {Path(localssl.__file__).parent}")
    yield Finding("versions", "Python", platform.python_version())
    try:
        requirements = [Requirement(text) for text in importlib.metadata.requires("localssl") or ()]
    except importlib.metadata.PackageNotFoundError:
        yield Finding("versions", "package", "not installed, run from its source", "pip install .")
        return
    for requirement in requirements:
        extra = next((e for e in EXTRAS if requirement.marker and requirement.marker.evaluate({"extra": e})), None)
        if requirement.name == "localssl" or extra in ("test", "docs", "dist"):
            continue
        wanted = f"pip install '{requirement.name}{requirement.specifier}'"
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            advice = wanted if extra is None else f"pip install 'localssl[{extra}]', {EXTRAS[extra]}"
            yield Finding("versions", requirement.name, "not installed", advice, broken=extra is None)
            continue
        fits = requirement.specifier.contains(version, prereleases=True)
        found = version if fits else f"{version}, needed is {requirement.specifier}"
        yield Finding("versions", requirement.name, found, "" if fits else wanted, broken=not fits)


def _devices() -> Iterator[Finding]:
    cores, threads = devices.cores(), torch.get_num_threads()
    advice = f"--threads {cores} uses all cores" if threads < cores else ""
    yield Finding("devices", "cpu", f"{cores} core{'s' * (cores > 1)}, PyTorch uses {threads} threads", advice)
    memory = devices.memory()
    if memory:
        yield Finding("devices", "memory", f"{memory / 2**30:.1f} GiB")
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            size = torch.cuda.get_device_properties(i).total_memory / 2**30
            yield Finding("devices", f"cuda:{i}", f"{torch.cuda.get_device_name(i)}, {size:.0f} GiB")
    else:
        why = "no CUDA device" if torch.version.cuda else "PyTorch is built without CUDA"
        yield Finding("devices", "cuda", why, "the paper's own sizes (--scale paper) need a GPU; all else runs here")
    if torch.backends.mps.is_available():
        yield Finding("devices", "mps", "there; by its name only, --device mps")


def _rules() -> Finding:
    names = rules.names()
    broken: list[str] = []
    for name in names:
        try:
            rules.get(name)
        except Exception as error:  # a rule that was added here; what it raises is its own
            broken.append(f"{name}: {type(error).__name__}: {error}")
    if broken:
        return Finding("rules", f"{len(names)}", "; ".join(broken), "mend or remove their files", broken=True)
    return Finding("rules", f"{len(names)}", ", ".join(names))


def _data(root: Path | None) -> Iterator[Finding]:
    place = data_folder(root)
    for name in NAMED:
        try:
            images = open_images(name, "train", root=place, limit=1)
        except (UsageError, RunError) as error:
            yield Finding("data", name, one_line(error), fetching(name, place) if name in DOWNLOADS else "")
        else:
            kept = next((note for note in images.notes if "1 of" in note), "")
            total = kept.partition(" of ")[2].partition(" images")[0]
            yield Finding("data", name, f"found, {total or 'all'} training images")


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    writable = os.access(Path.cwd(), os.W_OK)
    found = f"{free:.1f} GiB free in {Path.cwd()}"
    if not writable:
        return Finding("disk", "working folder", f"{found}, no permission to write", "work in another folder")
    advice = "checkpoints at the paper's width take 2 to 4 GB each" if free < 10 else ""
    return Finding("disk", "working folder", found, advice)


def _speed() -> Iterator[Finding]:
    try:
        for rule in ("clapp++dfb", "bp-clapp++"):
            rate = images_per_second(rule)
            name = f"training step, {rule}"
            yield Finding(
                "speed",
                name,
                f"{rate:.0f} images/s (vgg6, width {WIDTH:g}, batches of {BATCH}, {SIDE}×{SIDE}; as busy as it is now)",
            )
    except Exception as error:  # a PyTorch that cannot compute fails in many ways
        found = f"a training step fails ({type(error).__name__}: {one_line(error)})"
        yield Finding("speed", "training step", found, "install PyTorch anew, for this machine", broken=True)


def images_per_second(rule: str) -> float:
    """Images per second of the median training step (losses and update, no views), on the device of "auto"."""
    device = devices.choose("auto")
    torch.manual_seed(0)
    learner = Learner(encoders.vgg6(WIDTH), rules.get(rule), (3, SIDE, SIDE), (16, 8, 8, 4, 2, 1)).to(device)
    optimizer = torch.optim.SGD(learner.parameters(), lr=1e-4)
    a, b = (torch.randn(BATCH, 3, SIDE, SIDE, device=device) for _ in range(2))

    def step() -> None:
        for _ in learner.updates(a, b):
            optimizer.step()
            optimizer.zero_grad()
        devices.wait(device)

    step()  # the first one prepares what the others find
    took: list[float] = []
    while sum(took) < SECONDS / 2 or len(took) < 3:
        began = time.monotonic()
        step()
        took.append(time.monotonic() - began)
    return BATCH / statistics.median(took)
