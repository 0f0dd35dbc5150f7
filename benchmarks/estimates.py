"""How far the estimates of ``train --dry-run`` are from what then happens: memory and time, each in a fresh process.

    python benchmarks/estimates.py --out benchmarks/results/estimates.json

On an idle machine, three times of each case, a quarter of an hour. The aim: within 25 % of both, every time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from localssl.runs import metrics
from localssl.runs.config import TrainConfig
from localssl.runs.manifest import environment
from localssl.system.allocator import keep_freed
from localssl.system.files import write_text
from localssl.training import rehearsal
from localssl.training.train import train

AIM = 0.25
CASES: dict[str, dict[str, Any]] = {
    "digits": {"rule": "clapp++dfb", "data": "digits", "epochs": 20},
    "digits, backpropagation": {"rule": "bp-clapp++", "data": "digits", "epochs": 20},
    "digits, aligned": {"rule": "clapp++", "data": "digits", "epochs": 10, "align_every": 1},
    "cifar10, width 0.25": {"rule": "clapp++", "data": "cifar10", "epochs": 1, "width": 0.25, "limit_images": 6400},
    "cifar10, width 1": {"rule": "clapp++dfb", "data": "cifar10", "epochs": 1, "limit_images": 1280},
    "cifar10, lpl": {"rule": "lpl", "data": "cifar10", "epochs": 1, "width": 0.25, "limit_images": 6400},
}


def measure(case: str, what: str, data_root: Path | None) -> dict[str, float]:
    """In this process: the estimate, or what training takes."""
    config = TrainConfig(**CASES[case], data_root=data_root)
    if what == "estimate":
        found = rehearsal.rehearse(config, lambda line: None)
        return {"seconds": found.seconds, "mib": found.peak_memory_mib}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        train(TrainConfig(**CASES[case], data_root=data_root, out=out), lambda line: None)
        files = [path.stat().st_mtime for path in (out / "manifest.json", out / "encoder.safetensors")]
        spent = json.loads((out / "cost.json").read_text(encoding="utf-8"))
        steps = float(metrics.read(out)[-1]["seconds"])
    return {"seconds": files[1] - files[0], "steps": steps, "mib": spent["peak_memory_mib"]}


def main() -> None:
    """All cases, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--what", choices=("estimate", "train"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    keep_freed()  # as the commands do
    if given.what:
        print(json.dumps(measure(given.cases[0], given.what, given.data_root)))
        return
    rows: list[dict[str, Any]] = []
    for case in given.cases:
        found: dict[str, list[dict[str, float]]] = {"estimate": [], "train": []}
        for _ in range(given.repeats):
            for what, values in found.items():
                root = ["--data-root", str(given.data_root)] if given.data_root else []
                command = [sys.executable, __file__, "--cases", case, "--what", what, *root]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                values.append(json.loads(done.stdout.splitlines()[-1]))
        off = {key: [e[key] / t[key] - 1 for e, t in zip(*found.values(), strict=True)] for key in ("seconds", "mib")}
        within = {key: sum(abs(v) <= AIM for v in values) for key, values in off.items()}
        rows.append({"case": case, **found, "off": off, "within": within})
        shown = {key: ", ".join(f"{v:+.0%}" for v in values) for key, values in off.items()}
        print(f"{case}: time {shown['seconds']}; memory {shown['mib']}", flush=True)
    if given.out:
        record = {"aim": AIM, "rows": rows, "date": time.strftime("%Y-%m-%d"), "environment": environment()}
        write_text(given.out, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
