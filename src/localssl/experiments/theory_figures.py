"""Figures 2, 3A and 4B of the paper: layerwise against end-to-end gradients, with each condition dropped in turn."""

from __future__ import annotations

from collections.abc import Callable

import torch

from localssl import evaluate
from localssl.experiments.cells import Settings
from localssl.experiments.layers import HEADER, Line, crops, rows
from localssl.references import Last, Own
from localssl.report import layers_figure
from localssl.theory import networks
from localssl.theory.gradients import Setting

DEPTH, WIDTH, PIXELS = 6, 128, 14 * 14
INTERVAL = "mean and 95 % t interval over 32 batches of 32 images, each with its own draw of the weights"


def _random(generator: torch.Generator) -> Setting:
    """B^l fixed, as PyTorch initialises it, in all layers but the last, whose own B is optimal."""
    fixed = [
        torch.nn.init.kaiming_uniform_(torch.empty(WIDTH, WIDTH, dtype=torch.float64), a=5**0.5, generator=generator)
        for _ in range(DEPTH - 1)
    ]
    return Setting(projections=[*fixed, None])


def _fixed(setting: Setting) -> Callable[[torch.Generator], Setting]:
    return lambda generator: setting


def fig2(settings: Settings) -> None:
    """Figure 2: Theorem 3.1 on MNIST, and each of its conditions dropped (half a minute)."""
    widths, panel = [WIDTH] * DEPTH, "6 layers of 128 units"

    def line(name: str, weights: str, relu: bool = False, fixed: bool = False) -> Line:
        return Line(
            panel,
            name,
            lambda g: networks.mlp(widths, PIXELS, g, weights, relu),
            _random if fixed else lambda g: Setting(),
        )

    lines = [
        line("optimal B, orthonormal W", "orthonormal"),
        line("fixed random B, orthonormal W", "orthonormal", fixed=True),
        line("optimal B, default W", "default"),
        line("optimal B, ReLU, orthonormal W", "orthonormal", relu=True),
        line("optimal B, ReLU, default W", "default", relu=True),
    ]
    batches, data = crops(settings, 14)
    _write(settings, "fig2", rows(lines, batches), f"{data}, 14 × 14 crops, softplus type 2, λ = 0.01; {INTERVAL}")


def fig3a(settings: Settings) -> None:
    """Figure 3A: Theorem 3.3 on MNIST, widths 128 to 4, with and without direct feedback (half a minute)."""
    widths = [WIDTH // 2**layer for layer in range(DEPTH)]
    lines = [
        Line(f"f {f}", name, lambda g: networks.mlp(widths, PIXELS, g), _fixed(Setting(f, reference=r)))
        for f in ("linear", "softplus")
        for name, r in (("layerwise", Own()), ("direct feedback", Last()))
    ]
    batches, data = crops(settings, 14)
    caption = f"{data}, 14 × 14 crops, semi-orthonormal W, widths 128 to 4, type 2, λ = 0.01; {INTERVAL}"
    _write(settings, "fig3a", rows(lines, batches), caption)


def fig4b(settings: Settings) -> None:
    """Figure 4B: linear convolutions, with and without spatial dependence and direct feedback (a minute)."""
    choices = (
        ("layerwise, one B for all positions", None, Own()),
        ("direct feedback, one B for all positions", None, Last()),
        ("layerwise, spatially dependent B", (2, 1, 1, 1), Own()),
        ("direct feedback, spatially dependent B", (2, 1, 1, 1), Last()),
    )
    lines = [
        Line(
            f"{weights} weights",
            name,
            lambda g, w=weights: networks.linear_convnet(g, weights=w),
            _fixed(Setting(weight_decay=0.02, reference=reference, patches=patches)),
        )
        for weights in ("default", "orthonormal")
        for name, patches, reference in choices
    ]
    batches, data = crops(settings, 16)
    caption = (
        f"{data}, 16 × 16 crops, 4 linear convolutions (32 channels, kernel and stride 2), softplus type 2, λ = 0.02; "
        f"{INTERVAL}"
    )
    _write(settings, "fig4b", rows(lines, batches, flat=False), caption)


def _write(settings: Settings, name: str, found: list[list[object]], caption: str) -> None:
    settings.out.mkdir(parents=True, exist_ok=True)
    table = settings.out / f"{name}.csv"
    evaluate.to_csv(table, HEADER, found, caption)
    path = layers_figure.draw(found, caption, settings.out / f"{name}.png")
    print(f"written: {path}, {table}")
