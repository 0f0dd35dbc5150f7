"""The gradient of a convolution's weights: by oneDNN's own operation, and place by place of the kernel.

    python benchmarks/weights.py --out benchmarks/results/weights.json

The blocks of vgg6 from the second on, 32 images (64 samples) of 32 x 32 and, narrow, of 128 x 128, channels-last,
float32. In turn: the forward convolution, which has as many multiply-adds; ``convolution_backward`` for the weights
alone; and the way of ``engine.weights`` by matrix products. Median milliseconds, and the median of the repeats' ratios
of the third to the second with its distribution-free 95 % interval. "taken": whether the engine takes products where
``capability`` is AVX2.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch
from shared import in_turn, interval, load, write
from torch import nn

from localssl import encoders
from localssl.engine import weights
from localssl.system.allocator import keep_freed

CASES = ((0.25, 32, 11), (0.5, 32, 11), (1, 32, 11), (0.25, 128, 5))  # width, pixels a side, repeats
LARGE = 2**62  # more than any layer has: oneDNN's operation everywhere


def row(layer: nn.Conv2d, samples: int, side: int, repeats: int) -> dict[str, Any]:
    """Of one layer on maps of ``side`` x ``side``."""
    layer.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    x = torch.rand(samples, layer.in_channels, side, side).to(memory_format=torch.channels_last)
    with torch.no_grad():
        at_a = torch.randn_like(layer(x))
    usual, busy = weights.WORTH, load()
    taken = weights.by_places(layer, x)

    def by(worth: int) -> None:
        weights.WORTH = worth
        weights.change_of(layer, x, at_a, (True, False))
        weights.WORTH = usual

    def forward() -> None:
        with torch.no_grad():
            layer(x)

    found = in_turn({"forward": forward, "onednn": lambda: by(LARGE), "places": lambda: by(0)}, repeats)
    ratios = [a / b for a, b in zip(found["places"], found["onednn"], strict=True)]
    low, high = interval(ratios)
    products = layer.weight.numel() * samples * side**2
    made: dict[str, Any] = {"channels": [layer.in_channels, layer.out_channels], "side": side, "taken": taken}
    for name, taken_seconds in found.items():
        median = statistics.median(taken_seconds)
        made |= {f"ms_{name}": round(1e3 * median, 2), f"billion_{name}": round(products / median / 1e9, 1)}
    made |= {"ratio": round(statistics.median(ratios), 3), "low": round(low, 3), "high": round(high, 3)}
    return made | {"n": repeats, "load": busy}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32, help="images; two samples each")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args()
    keep_freed()
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    found: list[dict[str, Any]] = []
    here = torch.backends.cpu.get_cpu_capability
    torch.backends.cpu.get_cpu_capability = lambda: "AVX2"  # both ways, wherever this runs
    for width, size, repeats in CASES:
        side = size
        for block, layers in enumerate(encoders.vgg6(width).blocks):
            (layer,) = (m for m in layers.modules() if isinstance(m, nn.Conv2d))
            if block:
                place = {"width": width, "size": size, "batch": a.batch, "block": block + 1}
                made = place | row(layer, 2 * a.batch, side, repeats)
                found.append(made)
                print(made, flush=True)
            side //= 2 if any(isinstance(m, nn.MaxPool2d) for m in layers.modules()) else 1
    torch.backends.cpu.get_cpu_capability = here
    write(a.out, a.threads, rows=found)


if __name__ == "__main__":
    main()
