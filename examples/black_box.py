"""Training around parts that nobody can differentiate: a measured scattering matrix with noise, and a quantiser.

Five networks of three trained layers, on MNIST where --data-root holds it, else on the embedded digits: the local rule
with the two transforms in between, and without; backpropagation through a differentiable twin of the transforms (which
the physical system does not offer) and without them; and the untrained weights behind the transforms.

Run: python examples/black_box.py [--data-root DIR] [--seeds N] [--epochs N] [--out FILE.csv]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import localssl
from localssl.blocks import BlackBox
from localssl.data.sources import Images, open_images
from localssl.data.specs import spec_for
from localssl.data.views import Normalise, Views
from localssl.encoders import Encoder
from localssl.errors import UsageError
from localssl.evaluate import to_csv
from localssl.probe import fast_probe, features
from localssl.stats import t_interval

PIXELS, UNITS, NOISE, STEPS, TOP = 256, 256, 0.05, 7, 4.0
MATRIX = (np.random.default_rng(0).standard_normal((2, UNITS, PIXELS)) / (2 * PIXELS) ** 0.5).astype(np.float32)


def scatter(x):
    """Light through a multiply scattering medium: intensities |T x|² behind its matrix T, with 5 % noise."""
    real, imaginary = (x.reshape(len(x), -1) @ part.T for part in MATRIX)
    intensity = real**2 + imaginary**2
    return intensity * (1 + NOISE * np.random.standard_normal(intensity.shape))


def quantise(x):
    """Three bits: eight levels between 0 and 4, saturating."""
    return np.round(np.clip(x, 0, TOP) * STEPS / TOP) * TOP / STEPS


class Scatter(nn.Module):
    """``scatter`` for autograd, which then knows the matrix."""

    def forward(self, x: Tensor) -> Tensor:
        real, imaginary = (x.flatten(1) @ torch.as_tensor(part).T for part in MATRIX)
        intensity = real**2 + imaginary**2
        return intensity * (1 + NOISE * torch.randn_like(intensity))


class Quantise(nn.Module):
    """``quantise`` with the derivative of the clipping alone (straight through)."""

    def forward(self, x: Tensor) -> Tensor:
        clipped = x.clamp(0, TOP)
        return clipped + (torch.round(clipped * STEPS / TOP) * TOP / STEPS - clipped).detach()


def network(kind: str) -> Encoder:
    """Linear and ReLU, three times, each behind a transform: "black box", "twin" or "none"."""
    between = {
        "black box": lambda: [
            BlackBox(scatter, (UNITS,)),
            BlackBox(quantise, (UNITS,), timeout=60),
            BlackBox(quantise, (UNITS,)),
        ],
        "twin": lambda: [Scatter(), Quantise(), Quantise()],
        "none": lambda: [nn.Flatten(), nn.Identity(), nn.Identity()],
    }[kind]()
    return Encoder.from_blocks([nn.Sequential(part, nn.Linear(UNITS, UNITS), nn.ReLU()) for part in between])


def train(rule: str, kind: str, images: Images, views: Views, epochs: int, seed: int) -> Encoder:
    torch.manual_seed(seed)
    np.random.seed(seed)
    encoder = network(kind)
    learner = localssl.Learner(encoder, localssl.rules.get(rule), images.shape)
    optimiser = torch.optim.Adam(learner.parameters(), lr=1e-3)
    for _ in range(epochs):
        for index in torch.randperm(len(images)).split(64)[:-1]:
            learner.accumulate_grads(*views(images.batch(index)))
            optimiser.step()
            optimiser.zero_grad()
    return encoder


def accuracy(encoder: Encoder, train: Images, test: Images, normalise: Normalise) -> float:
    """Of a linear probe on the last layer, in %."""
    parts = [features(encoder, part, patches=None, normalise=normalise) for part in (train, test)]
    found = fast_probe(parts[0], train.labels, parts[1], test.labels, layers=("each",), knn=False)
    return found.rows[-1].accuracy


def main(
    data_root: Path | None = None,
    seeds: int = 3,
    epochs: int = 10,
    limit: int | None = None,
    out: Path | None = None,
) -> dict[str, list[float]]:
    data = "mnist"
    try:
        images, test = (
            open_images(data, part, root=data_root, image_size=16, limit=limit) for part in ("train", "test")
        )
    except UsageError as error:
        print(f"{error}; using the embedded digits instead")
        data = "digits"
        images, test = (open_images(data, part, limit=limit) for part in ("train", "test"))
    spec = spec_for(data)
    views = Views(spec.augmentation, [0.13], [0.31], channels=1, image_size=16)
    labelled = images.subset(torch.arange(min(10_000, len(images))))
    rows = {
        "untrained, black boxes": ("clapp++dfb", "black box", 0),
        "clapp++dfb, black boxes": ("clapp++dfb", "black box", epochs),
        "bp-clapp++, differentiable twin": ("bp-clapp++", "twin", epochs),
        "clapp++dfb, no transforms": ("clapp++dfb", "none", epochs),
        "bp-clapp++, no transforms": ("bp-clapp++", "none", epochs),
    }
    found: dict[str, list[float]] = {}
    for name, (rule, kind, passes) in rows.items():
        found[name] = [
            accuracy(train(rule, kind, images, views, passes, seed), labelled, test, views.normalise)
            for seed in range(seeds)
        ]
        mean, low, high = t_interval(found[name])
        print(f"{name:32s} {mean:5.1f} % [{low:.1f}, {high:.1f}]", flush=True)
    if out is not None:
        comment = (
            f"{data}, 16 x 16; {len(images):,} images, {epochs} epochs, Adam 1e-3, batches of 64; linear probe on the "
            f"last layer, {len(labelled):,} labels, {len(test):,} test images; 95 % t interval over {seeds} seeds"
        )
        table = [[name, *(round(v, 2) for v in t_interval(values)), seeds] for name, values in found.items()]
        to_csv(out, ["network", "accuracy", "low", "high", "seeds"], table, comment)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--out", type=Path)
    main(**vars(parser.parse_args()))
