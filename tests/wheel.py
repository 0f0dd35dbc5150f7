"""Whether a built wheel is whole and works where the repository is not: ``make dist`` and continuous integration.

    python tests/wheel.py dist            # into a new environment that borrows what this Python has installed
    python tests/wheel.py dist --fresh    # into one that gets everything the wheel asks for: gigabytes

It trains, probes and reports a small run on the embedded digits in a temporary folder, and makes the demo.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Iterable
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "src"
TINY = "--width 0.05 --epochs 1 --limit-images 64 --batch-size 16 --threads 1"
COMMANDS = (
    "doctor --quick",
    f"train --rule clapp++dfb --data digits --out run {TINY}",
    "probe run --limit-images 100 --threads 1",
    "report run --images 20",
)
DEMO = "reproduce demo --out runs"  # a minute; the suite makes it in the repository, this program with the wheel, too
WHERE = "import localssl; print(localssl.__file__)"


def needed() -> set[str]:
    """Every file of the package, py.typed, templates and pages among them."""
    files = (path for path in (SOURCE / "localssl").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(SOURCE).as_posix() for path in files}


def lacks(archive: Path) -> set[str]:
    """Files of the package that a wheel or an sdist does not hold."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return needed() - set(wheel.namelist())
    with tarfile.open(archive) as sdist:
        return needed() - {name.partition("/src/")[2] for name in sdist.getnames()}


def installed(wheel: Path, folder: Path, fresh: bool) -> Path:
    """A new environment in ``folder`` with the wheel in it; its Python."""
    venv.create(folder, with_pip=False)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q"]
    subprocess.run([*pip, str(wheel)] if fresh else [*pip, "--no-deps", "--no-index", str(wheel)], check=True)
    if not fresh:  # a path in a .pth brings packages, not the .pth of an editable localssl beside them
        own = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder)}))
        (own / "borrowed.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    return python


def works(python: Path, folder: Path, commands: Iterable[str] = COMMANDS) -> None:
    """Run commands of the installed wheel in ``folder``.

    Raises:
        CalledProcessError: one of them failed.
        RuntimeError: another localssl than the environment's answered.
    """
    environ = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    found = subprocess.run([python, "-c", WHERE], cwd=folder, env=environ, check=True, capture_output=True, text=True)
    if not Path(found.stdout.strip()).resolve().is_relative_to(python.parents[1].resolve()):
        raise RuntimeError(f"imported from {found.stdout.strip()}, not from the wheel")
    for command in commands:
        subprocess.run([python.with_name("localssl"), *command.split()], cwd=folder, env=environ, check=True)


def check(dist: Path, fresh: bool = False, commands: Iterable[str] = COMMANDS) -> None:
    """Check the only wheel and the only sdist in a folder; an archive that lacks a file ends the program."""
    (wheel,), (sdist,) = dist.glob("localssl-*.whl"), dist.glob("localssl-*.tar.gz")
    for archive in (wheel, sdist):
        if missing := lacks(archive):
            sys.exit(f"{archive} lacks {', '.join(sorted(missing))}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        works(installed(wheel.resolve(), folder / "environment", fresh), folder, commands)
    print(f"{wheel.name}: whole, and works where the repository is not")


if __name__ == "__main__":
    check(Path(sys.argv[1]), "--fresh" in sys.argv[2:], (*COMMANDS, DEMO))
