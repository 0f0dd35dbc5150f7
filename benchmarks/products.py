"""The two products that B takes in a step: by what is behind ``torch.mm``, and by oneDNN, which has the convolutions.

    python benchmarks/products.py --out benchmarks/results/products.json

g = c Bᵀ, and ΔB in tiles as the optimiser makes them, by itself and with the step of AdamW that takes each ("into
AdamW", by tiles of several sizes); float32, one lateral B of d × d and the 2n samples of a batch.
Median milliseconds with the distribution-free 95 % interval, and billions of multiply-adds a second. Which library is
the quicker one differs between processors: ``localssl.products`` chooses.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from shared import MIB, in_turn, interval, load, write
from torch import Tensor, nn

from localssl import optimizer
from localssl.optimizer import FactoredAdamW, leave_factors
from localssl.system.allocator import keep_freed

TRIED = (4, 8, 16)  # MiB of a tile


def onednn(x: Tensor, w: Tensor) -> Tensor:
    """x wᵀ."""
    return torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], "")  # pyright: ignore[reportPrivateUsage]


def ways(d: int, samples: int) -> dict[tuple[str, str], Callable[[], object]]:
    """Each product by both libraries; a tile is gone before the next is made."""
    c, delta, b = torch.randn(samples, d), torch.randn(samples, d), torch.randn(d, d)
    learnt = nn.Parameter(b.clone())
    rows = optimizer.tile_rows(learnt)
    tile, across, along = torch.empty(rows, d), delta.T.contiguous(), c.T.contiguous()

    def tiles(one: Callable[[int], Tensor]) -> None:
        for start in range(0, d, rows):
            one(start)

    adam = FactoredAdamW([learnt], lr=1e-4)

    def into_adam(mib: int) -> None:
        optimizer.TILE, optimizer.PARTS = mib * MIB, 1
        leave_factors(learnt, delta, c)
        adam.step()

    by_size = {(f"ΔB into AdamW, {mib} MiB", "as chosen"): lambda mib=mib: into_adam(mib) for mib in TRIED}
    return {
        ("g = cBᵀ", "torch.mm"): lambda: torch.mm(c, b.T),
        ("g = cBᵀ", "oneDNN"): lambda: onednn(c, b),
        ("g = (B cᵀ)ᵀ", "oneDNN"): lambda: onednn(b, c).T.contiguous(),
        ("ΔB in tiles", "torch.mm"): lambda: tiles(lambda i: torch.mm(delta[:, i : i + rows].T, c, out=tile)),
        ("ΔB in tiles", "oneDNN"): lambda: tiles(lambda i: onednn(across[i : i + rows], along)),
        **by_size,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2048, 8192], help="d of vgg6's widest B, by width")
    parser.add_argument("--batch", type=int, default=32, help="images; two samples each")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args()
    keep_freed()
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    found: list[dict[str, Any]] = []
    for d in a.sizes:
        made, busy = ways(d, 2 * a.batch), load()
        for (product, library), seconds in in_turn(made, a.repeats).items():
            low, high = interval(seconds)
            row = {
                "product": product,
                "library": library,
                "d": d,
                "batch": a.batch,
                "n": len(seconds),
                "load": busy,
            }
            row |= {k: round(1e3 * v, 3) for k, v in (("ms", statistics.median(seconds)), ("low", low), ("high", high))}
            row["billion_a_second"] = round(2 * a.batch * d * d / statistics.median(seconds) / 1e9, 1)
            found.append(row)
            print(row, flush=True)
    write(a.out, a.threads, rows=found)


if __name__ == "__main__":
    main()
