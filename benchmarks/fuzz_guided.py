"""Fuzzing guided by coverage: the readers of fuzz.py, with inputs that reach new code kept and changed again.

    pip install atheris
    python benchmarks/fuzz_guided.py --seconds 120 --out benchmarks/results/fuzz_guided.json

Every reader in a process of its own, for so many seconds; atheris (libFuzzer) watches the Python code of localssl, PIL
and yaml. Status 1 where something was found: the input is kept in --found.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["localssl", "PIL", "yaml", "tarfile"]):
    from fuzz_targets import OURS, scratch, targets
    from shared import write

MEMORY = 2048  # MiB of the process, of which Python, PyTorch and what is watched take about 600
HANG = 60  # seconds for one input


def fuzz(name: str, folder: Path, flags: list[str]) -> None:
    """In a process of its own: one reader, until libFuzzer ends it."""
    warnings.simplefilter("ignore")
    target = targets(folder / "good")[name]
    (folder / "corpus").mkdir()
    for number, seed in enumerate(target.seeds):
        (folder / "corpus" / f"seed-{number}").write_bytes(seed)

    def one(data: bytes) -> None:
        with contextlib.suppress(OURS):
            target.read(data, folder / "run")

    atheris.Setup([sys.argv[0], *flags, str(folder / "corpus")], one)
    atheris.Fuzz()


def watched(name: str, folder: Path, seconds: int, found: Path) -> dict[str, Any]:
    """What became of a reader: inputs, branches covered by the good files and in the end, and what ended it."""
    flags = [f"-max_total_time={seconds}", f"-rss_limit_mb={MEMORY}", f"-timeout={HANG}", "-seed=1"]
    flags += ["-print_final_stats=1", f"-artifact_prefix={found / name.replace(' ', '-')}-"]
    command = [sys.executable, __file__, "--target", name, "--folder", str(folder), "--", *flags]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    said = done.stderr
    covered = [int(number) for number in re.findall(r"^#\d+\s+\w+ +cov: (\d+)", said, re.MULTILINE)]
    inputs = re.search(r"stat::number_of_executed_units: (\d+)", said)
    if not covered or inputs is None:
        raise SystemExit(f"{name}: atheris ended without its counts: {said[-2000:]}")
    entry: dict[str, Any] = {"inputs": int(inputs[1]), "seconds": seconds}
    entry |= {"covered_by_good_files": covered[0], "covered": covered[-1]}
    kept = re.search(r"Test unit written to (\S+)", said)
    entry["failure"] = None if done.returncode == 0 else {"status": done.returncode, "input": kept and kept[1]}
    return entry


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=120, help="for each reader")
    parser.add_argument("--found", type=Path, default=Path("found"), help="where inputs that fail are kept")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results") / "fuzz_guided.json")
    parser.add_argument("--target", help="one reader, in this process")
    parser.add_argument("--folder", type=Path, help="of that reader")
    parser.add_argument("flags", nargs="*", help="of libFuzzer, for that reader")
    arguments = parser.parse_args()
    if arguments.target:
        fuzz(arguments.target, arguments.folder, arguments.flags)
        return
    arguments.found.mkdir(parents=True, exist_ok=True)
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(dir=scratch()) as folder:
        for name in targets(Path(folder) / "names"):
            place = Path(folder) / name
            place.mkdir()
            results[name] = watched(name, place, arguments.seconds, arguments.found)
            print(name, json.dumps(results[name]), flush=True)
            total = sum(entry["inputs"] for entry in results.values())
            bounds = {"memory_bound_mib": MEMORY, "hang_seconds": HANG}
            write(arguments.out, 1, inputs=total, **bounds, atheris=_version(), targets=results)
    sys.exit(any(entry["failure"] for entry in results.values()))


def _version() -> str:
    from importlib.metadata import version

    return version("atheris")


if __name__ == "__main__":
    main()
