"""Peers in their own published settings, with their own probes, on colour images; at a CPU's scale unless asked.

Each is a ``Recipe``: data, net, passes of training and probe, as its publication and code have them. What is left out
is said in ``Recipe.lacks``. The passes are ``greedy``'s, the probe ``own_probe``'s, the updates the learner's.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from localssl import encoders, evaluate, readout, rules
from localssl.data.sources import Images, open_images
from localssl.data.specs import default_patches
from localssl.encoders.layers import Standardise
from localssl.experiments import greedy, own_images, own_probe, published
from localssl.experiments.cells import Part, Settings, run_cells
from localssl.experiments.greedy import Pass
from localssl.experiments.own_images import Normalise, whitening
from localssl.experiments.own_probe import OwnProbe
from localssl.learner import Learner
from localssl.probe.activity import few, frozen, settle
from localssl.report.tables import show
from localssl.runs.run import measure_mean_std, train_split
from localssl.system.files import write_atomic

WIDTH, IMAGES, EPOCHS, PROBE_EPOCHS = 0.25, 5_000, 1, 10  # at a CPU's scale; epochs of a pass: at most
TEST_IMAGES = 2_000  # likewise


@dataclass(frozen=True)
class Recipe:
    """A published setting.

    Args:
        rule, data: whose, on what.
        options: of the rule.
        encoder: its net.
        passes, batch: its training.
        probe: its probe.
        channels, image_size: of the images; 1: grey.
        crop: side of the part of each image that is shown: anywhere in training, the middle in testing; None: all.
        mean, std: of the normalisation of pixels in [0, 1]; mean None: both measured on the training images.
        pad: images are padded by this much and cropped at random, and flipped; 0: flipped alone; None: neither.
        reflect: whether the padding reflects (else black).
        whiten: ZCA instead of the normalisation, before images are cropped and flipped; the normalisation comes after.
        blocks: those that the probe reads, from 1; none: all.
        standardise: features of every block per image.
        lacks: what differs from the publication at any scale; "": nothing that is known of.
    """

    rule: str
    data: str
    encoder: str
    passes: tuple[Pass, ...]
    batch: int
    probe: OwnProbe
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    channels: int = 3
    image_size: int | None = None
    crop: int | None = None
    mean: tuple[float, ...] | None = (0.0,)
    std: tuple[float, ...] = (1.0,)
    pad: int | None = None
    reflect: bool = False
    whiten: bool = False
    blocks: tuple[int, ...] = ()
    standardise: bool = False
    lacks: str = ""


_MEAN, _STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
_SCFF = Recipe(
    "scff",
    "cifar10",
    "scff3",
    (
        Pass(1, 0.01, 1e-4, 0.7, 1000, 6),
        Pass(2, 0.002, 1e-4, 0.8, 100, 4),
        Pass(3, 2e-4, 3e-4, epochs=21, repaired=True),
    ),
    100,
    OwnProbe(dropout=0.2),
    options={"pad": 2},
    mean=_MEAN,
    std=_STD,
    pad=0,
    standardise=True,
)
RECIPES = {
    "scff-cifar10": _SCFF,
    "scff-stl10": replace(
        _SCFF,
        data="stl10",
        encoder="scff4",
        options={
            "theta1": (0.0, 5.0, 6.0, 5.0),
            "theta2": (2.0, 8.0, 8.0, 10.0),
            "penalty": (0.0, 0.0015, 0.005, 0.008),
            "pad": 2,
        },
        passes=(
            Pass(1, 0.026, 1e-3, 0.99, 1000, 4),
            Pass(2, 0.003, 3e-4, 0.8, 200, 5),
            Pass(3, 0.001, epochs=12),
            Pass(4, 8e-5, 1e-3, epochs=12, repaired=True),
        ),
        probe=OwnProbe(dropout=0.6, epochs=100),
        std=(0.2471, 0.2435, 0.2616),
        pad=4,
        blocks=(3, 4),
        lacks="the last block is read through 3 x 3 means (there maxima)",
    ),
    "softhebb-cifar10": Recipe(
        "softhebb",
        "cifar10",
        "softhebb3",
        (Pass(None, 0.01, optimiser="plain-sgd"),),
        10,
        OwnProbe(dropout=0.5),
        blocks=(3,),
        lacks="layers learn together (as the code; greedily in the article)",
    ),
    "stochastic-ff-cifar10": Recipe(
        "stochastic-ff",
        "cifar10",
        "stochastic-ff3",
        tuple(
            Pass(layer, 1e-3 * (1 + math.cos(math.pi * epoch / 3)) / 2, 0.01)
            for epoch in range(3)
            for layer in (1, 2, 3)
        ),
        128,
        OwnProbe(lr=2.5e-4, epochs=60, batch=128, dropout=0.5, schedule="cosine", decoupled=True, squared=True),
        options={"copies": 20},
        pad=4,
        reflect=True,
        whiten=True,
        blocks=(3,),
        lacks="the probe's batch is not stated, 128 here; the best epoch is judged on test images there and shown "
        "beside the last here",
    ),
    "clapp-illing-stl10": Recipe(
        "clapp-illing",
        "stl10",
        "vgg6",
        (Pass(None, 2e-4, epochs=600, optimiser="adam"),),
        32,
        OwnProbe(epochs=300, batch=32, schedule="constant"),
        channels=1,
        crop=64,
        mean=(0.4120,),
        std=(0.2570,),
        pad=0,
        blocks=(6,),
        lacks="batches of 32 images in all (there on each of up to 4 GPUs)",
    ),
}
RECIPES["clapp-illing-cifar10"] = replace(
    RECIPES["clapp-illing-stl10"],
    data="cifar10",
    image_size=32,
    crop=None,
    mean=None,
    lacks="published on STL-10 alone: 3 x 3 patches here, 7 x 7 there",
)


def run(name: str, settings: Settings) -> None:
    """Train and probe a recipe, and its untrained net; write NAME-SCALE.csv."""
    recipe = RECIPES[name]
    seeds = range(settings.seeds or 1)
    if settings.jobs > 1:  # a pass needs the one before
        settings = replace(settings, jobs=1)
    parts: list[Part] = []
    for seed in seeds:
        for k in range(len(recipe.passes)):
            parts.append(Part(f"{settings.scale}-pass{k + 1}-s{seed}", train, (name, k, seed)))
        parts += [
            Part(f"{settings.scale}-{what}-s{seed}", probe, (name, count, seed))
            for what, count in (("probe", len(recipe.passes)), ("untrained", 0))
        ]
    found = [r for r in run_cells(parts, settings) if "accuracy" in r]
    number = published.PEERS.get(recipe.rule, {}).get(recipe.data)
    rows: list[list[object]] = [
        [r["name"], r["seed"], r["accuracy"], r["best_tested"], r["features"], "" if number is None else str(number)]
        for r in found
    ]
    header = ["net", "seed", "accuracy", "best_tested", "features", "published"]
    facts = [str(fact) for fact in found[0]["facts"]]
    mark = verdict(recipe, settings.scale, [r["accuracy"] for r in found if r["name"] == "trained"], facts)
    said = f"{'; '.join(facts)}. Its own probe, test accuracy in %. {mark[0].upper()}{mark[1:]}."
    path = settings.out / f"{name}-{settings.scale}.csv"
    evaluate.to_csv(path, header, rows, said)
    show(f"{recipe.rule} on {recipe.data} in its own published setting", header, rows, said)
    print(f"written: {path}")


def verdict(recipe: Recipe, scale: str, accuracies: Sequence[float], facts: Sequence[str]) -> str:
    """How accuracies (%) of some seeds stand to the recipe's published number, if there is one.

    Args:
        recipe, scale: what was run, "cpu" or "paper".
        accuracies: one a seed.
        facts: of the images, see ``Images.facts``.
    """
    number = published.PEERS.get(recipe.rule, {}).get(recipe.data)
    smaller = "" if scale == "paper" else f"scale ({_scale(recipe)})"
    differences = [d for d in (smaller, recipe.lacks, *(f for f in facts if "JPEG" in f and not smaller)) if d]
    if number is None or differences:
        return f"not comparable: {'; '.join(differences)}"
    return published.in_own_setting(number, accuracies)


def experiments() -> dict[str, Callable[[Settings], None]]:
    """What ``localssl reproduce`` runs, by name."""
    return {name: _experiment(name, recipe) for name, recipe in RECIPES.items()}


def _experiment(name: str, recipe: Recipe) -> Callable[[Settings], None]:
    def experiment(settings: Settings) -> None:
        run(name, settings)

    experiment.__doc__ = f"{recipe.rule} on {recipe.data}: its own net, passes and probe (small; --scale paper: a GPU)."
    return experiment


def _scale(recipe: Recipe) -> str:
    epochs = "+".join(str(min(EPOCHS, p.epochs)) for p in recipe.passes)
    theirs = "+".join(str(p.epochs) for p in recipe.passes)
    return (
        f"width {WIDTH:g}, {IMAGES:,} images, {epochs} epochs instead of {theirs}, {PROBE_EPOCHS} of the probe "
        f"instead of {recipe.probe.epochs}, {TEST_IMAGES:,} test images"
    )


def train(settings: Settings, name: str, number: int, seed: int) -> dict[str, Any]:
    """One pass on what the passes before it have trained; the learner goes to ``weights/``."""
    recipe, paper = RECIPES[name], settings.scale == "paper"
    images = _images(settings, recipe, train_split(recipe.data))
    learner = _learner(settings, name, number, seed)
    how = recipe.passes[number]
    if not paper:
        how = replace(how, epochs=min(EPOCHS, how.epochs))
    normalise = _normalise(settings, recipe)
    torch.manual_seed(1000 * (number + 1) + seed)

    def views(x: Tensor) -> tuple[Tensor, Tensor]:
        shown = _augmented(x, normalise, recipe)
        if recipe.rule == "clapp-illing":  # whose two views are images of their own
            half = len(shown) // 2
            return shown[:half], shown[half : 2 * half]
        return shown, shown  # the others look at one view

    losses = greedy.train(learner, images, views, how, recipe.batch)
    path = _weights(settings, number + 1, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, functools.partial(torch.save, learner.state_dict()))
    return {"losses": losses, "facts": list(images.facts)}


def probe(settings: Settings, name: str, passes: int, seed: int) -> dict[str, Any]:
    """The recipe's own probe of the net after so many passes."""
    recipe, paper = RECIPES[name], settings.scale == "paper"
    images, test = _images(settings, recipe, "train"), _images(settings, recipe, "test")
    assert images.labels is not None
    assert test.labels is not None
    learner, normalise = _learner(settings, name, passes, seed), _normalise(settings, recipe)
    how = recipe.probe if paper else replace(recipe.probe, epochs=min(PROBE_EPOCHS, recipe.probe.epochs))
    seen = _features(learner, recipe)
    if not passes:
        settle(learner.encoder, lambda i: seen(_augmented(images.batch(i), normalise, recipe)), few(images))
    with frozen(learner.encoder):
        last, best = own_probe.accuracy(
            lambda i: seen(_augmented(images.batch(i), normalise, recipe)),
            images.labels,
            lambda i: seen(normalise(own_images.centre(test.batch(i), recipe.crop))),
            test.labels,
            how,
            seed,
            every=1 if recipe.probe.squared else None,
        )
        features = seen(normalise(own_images.centre(test.batch(torch.arange(1)), recipe.crop))).shape[-1]
    what = "trained" if passes else "untrained"
    facts = list(dict.fromkeys([*images.facts, *test.facts]))
    return {"name": what, "seed": seed, "accuracy": last, "best_tested": best, "features": features, "facts": facts}


def _features(learner: Learner, recipe: Recipe) -> Callable[[Tensor], Tensor]:
    """What the probe sees of normalised images (n, C, H, W): (n, d), of noisy copies (n, copies, d)."""
    blocks = [b - 1 for b in recipe.blocks] or list(range(len(learner.encoder.blocks)))
    patches = default_patches(recipe.encoder, learner.input_shape[1]) or (None,) * len(learner.encoder.blocks)
    standardise = Standardise() if recipe.standardise else None

    @torch.no_grad()
    def seen(x: Tensor) -> Tensor:
        if recipe.rule == "clapp-illing":  # the mean over patches, each by itself
            z = learner.encoder(learner.enter(x, x[:0]))[blocks[-1]]
            return z.flatten(2).mean(2).view(len(x), -1, z.shape[1]).mean(1)
        if recipe.rule == "stochastic-ff":  # noise stays on
            z = learner.encoder(learner.enter(x, x))[blocks[-1]].flatten(1)
            return z.view(-1, len(x), z.shape[1]).transpose(0, 1)
        emitted = learner.encoder.emitted(x)
        parts = [readout.readout(emitted[b], patches[b]) for b in blocks]
        return torch.cat([z if standardise is None else standardise(z) for z in parts], 1)

    return seen


def _learner(settings: Settings, name: str, passes: int, seed: int) -> Learner:
    """The learner drawn from the seed, or as so many passes have left it."""
    recipe = RECIPES[name]
    rule = rules.get(recipe.rule, **recipe.options)
    shape = _shape(recipe)
    torch.manual_seed(seed)
    width = 1.0 if settings.scale == "paper" else WIDTH
    encoder = encoders.build(recipe.encoder, shape, width, rule.encoder_options)
    learner = Learner(encoder, rule, shape, engine="autograd")
    if passes:
        learner.load_state_dict(torch.load(_weights(settings, passes, seed), weights_only=True))
    return learner


def _shape(recipe: Recipe) -> tuple[int, int, int]:
    size = recipe.crop or recipe.image_size or {"cifar10": 32, "stl10": 96}[recipe.data]
    return recipe.channels, size, size


def _weights(settings: Settings, passes: int, seed: int) -> Path:
    return settings.out / "weights" / f"{settings.scale}-pass{passes}-s{seed}.pt"


def _images(settings: Settings, recipe: Recipe, split: str) -> Images:
    limit = None if settings.scale == "paper" else TEST_IMAGES if split == "test" else IMAGES
    return open_images(
        recipe.data,
        split,
        root=settings.data_root,
        channels=recipe.channels,
        image_size=recipe.image_size,
        limit=limit,
    )


def _normalise(settings: Settings, recipe: Recipe) -> Normalise:
    """From uint8 images (n, C, H, W) to what the recipe trains on, without augmentation."""
    if recipe.whiten:
        return whitening(_images(settings, recipe, "train"), kept=settings.out / "weights" / f"{settings.scale}-zca.pt")
    found = (recipe.mean, recipe.std)
    if recipe.mean is None:
        found = measure_mean_std(_images(settings, recipe, "train"))
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in found)
    return lambda x: (x.float() / 255 - mean) / std


def _augmented(x: Tensor, normalise: Normalise, recipe: Recipe) -> Tensor:
    """What is trained on of uint8 images (n, C, H, W)."""
    if recipe.whiten:  # which is fitted on whole images
        return own_images.augmented(normalise(x), recipe.pad, recipe.reflect, recipe.crop)
    return normalise(own_images.augmented(x, recipe.pad, recipe.reflect, recipe.crop))  # what is padded is black
