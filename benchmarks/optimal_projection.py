"""Time of the exact optimal projection against L-BFGS on the d x d numbers of B, on crops of MNIST.

python benchmarks/optimal_projection.py --data-root DATA --out docs/results/theory/solver.csv

L-BFGS (torch.optim, strong Wolfe line search, memory 10) runs until its loss is within 1e-6 (relative) of the minimum;
its own last evaluation is counted, the comparison with the minimum is not. Medians of the repeats.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from localssl import evaluate
from localssl.experiments.cells import Settings
from localssl.experiments.layers import crops
from localssl.theory import networks, solve
from localssl.theory.gradients import Samples

LAMBDA = 0.01


def timed(function: Callable[[], object], repeats: int) -> float:
    function()
    times: list[float] = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def lbfgs_seconds(z_pos: Tensor, z_neg: Tensor, c: Tensor, target: float) -> tuple[float, int]:
    """Seconds and evaluations until the loss is below ``target``; NaN where 5,000 evaluations do not reach it."""
    b = torch.zeros(z_pos.shape[1], c.shape[1], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([b], lr=1, max_iter=10, history_size=10, line_search_fn="strong_wolfe")
    evaluations, loss = 0, float("inf")

    def closure() -> Tensor:
        nonlocal evaluations, loss
        evaluations += 1
        optimiser.zero_grad()
        g = c @ b.T
        value = F.softplus(-(z_pos * g).sum(1)).sum() + F.softplus((z_neg * g).sum(1)).sum() + LAMBDA * (b**2).sum()
        value.backward()
        loss = float(value.detach())
        return value

    began = time.perf_counter()
    while loss > target and evaluations < 5000:
        optimiser.step(closure)
    return (time.perf_counter() - began if loss <= target else float("nan")), evaluations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--out", type=Path, default=Path("solver.csv"))
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    batches, data = crops(Settings(arguments.out.parent, arguments.data_root), 14)
    rows: list[list[object]] = []
    for n in (8, 32, 256):
        view_a = torch.cat([a for a, _ in batches])[:n].flatten(1)
        view_b = torch.cat([b for _, b in batches])[:n].flatten(1)
        encoder = networks.mlp([128] * 6, 196, torch.Generator().manual_seed(0))
        samples = Samples.from_views(view_a, view_b)
        with torch.no_grad():
            layers = list(zip(encoder(samples.pos), encoder(samples.neg), encoder(samples.c), strict=True))

        exact = timed(lambda layers=layers: [solve(*z, weight_decay=LAMBDA) for z in layers], 7)
        best = [solve(*z, weight_decay=LAMBDA) for z in layers]
        found = [lbfgs_seconds(*z, b.loss * (1 + 1e-6)) for z, b in zip(layers, best, strict=True)]
        slow, evaluations = sum(t for t, _ in found), sum(e for _, e in found)
        residual = max(b.residual for b in best)
        rows.append([n, 128, 6, f"{exact:.4f}", f"{slow:.3f}", f"{slow / exact:.1f}", evaluations, f"{residual:.1e}"])
        print(rows[-1], flush=True)
    for n in (8, 32, 256):  # one layer as wide as vgg6's first on 32 x 32 images; L-BFGS would hold 67 M numbers
        generator = torch.Generator().manual_seed(0)
        z = [torch.randn((2 * n, 8192), generator=generator, dtype=torch.float64) / 90 for _ in range(3)]
        exact = timed(lambda z=z: solve(z[0], z[1], z[2], weight_decay=LAMBDA).predict(z[2]), 3)
        residual = solve(z[0], z[1], z[2], weight_decay=LAMBDA).residual
        rows.append([n, 8192, 1, f"{exact:.4f}", "", "", "", f"{residual:.1e}"])
        print(rows[-1], flush=True)
    header = ["images", "width", "layers", "exact_s", "lbfgs_s", "ratio", "lbfgs_evaluations", "residual"]
    comment = (
        f"softplus type 2, lambda 0.01; width 128: {data}, orthonormal layers, 2 x images samples; width 8192: "
        f"implicit form with g = Bc, random normal activities of length about 1; {arguments.threads} thread(s)"
    )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    evaluate.to_csv(arguments.out, header, rows, comment)
    print(f"written: {arguments.out}")


if __name__ == "__main__":
    main()
