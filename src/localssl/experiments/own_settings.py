"""Peers in their own published settings, with their own probes, on colour images; at a CPU's scale unless asked.

Each is a ``Recipe`` of ``own_recipes``: data, net, passes of training and probe, as its publication and code have them.
What is left out is said in ``Recipe.lacks``. The passes are ``greedy``'s, or ``train``'s where that has all they need;
the probe is ``own_probe``'s. Where a run's configuration can say how images enter, the trained net is left in
``runs/``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from localssl import encoders, evaluate, readout, rules
from localssl.data.sources import Images, open_images
from localssl.data.specs import Augmentation, default_patches
from localssl.data.views import cropped
from localssl.encoders.layers import Standardise
from localssl.experiments import greedy, left, own_images, own_probe, published
from localssl.experiments.cells import Part, Settings, run_cells
from localssl.experiments.own_images import Normalise, whitening
from localssl.experiments.own_recipes import RECIPES, Recipe
from localssl.learner import Learner
from localssl.probe.activity import few, frozen, settle
from localssl.report.tables import show
from localssl.runs import metrics
from localssl.runs.config import TrainConfig
from localssl.runs.run import measure_mean_std, open_run, run_in, train_split
from localssl.system.files import write_atomic, write_text
from localssl.training import train as training

WIDTH, IMAGES, EPOCHS, PROBE_EPOCHS = 0.25, 5_000, 1, 10  # at a CPU's scale; epochs of a pass: at most
TEST_IMAGES = 2_000  # likewise


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
    """One pass on what the passes before it have trained, into ``weights/``; after the last the net goes to ``runs/``.

    What ``train`` itself trains lies there alone.
    """
    recipe, paper = RECIPES[name], settings.scale == "paper"
    images = _images(settings, recipe, train_split(recipe.data))
    if recipe.by_train:
        return _by_train(settings, recipe, seed, images)
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
    if number + 1 == len(recipe.passes) and not recipe.whiten:  # for which a run's configuration has no word
        left.leave(settings, _run_name(settings, seed), name, learner, images, seed, **_given(settings, recipe, images))
    return {"losses": losses, "facts": list(images.facts)}


def _by_train(settings: Settings, recipe: Recipe, seed: int, images: Images) -> dict[str, Any]:
    learner = _drawn(settings, recipe, seed)
    found = {"data": recipe.data, "image_size": images.shape[-1], "channels": images.shape[0], "seed": seed}
    config = left.configuration(learner, **found, **_given(settings, recipe, images))
    folder = settings.out / "runs" / _run_name(settings, seed)
    file = folder.with_name(f"{folder.name}.yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, config.to_yaml())
    begun = run_in(folder) is not None
    asked = TrainConfig(config=None if begun else file, out=folder, resume=begun, data_root=settings.data_root)
    run = training.train(asked)
    return {"losses": [float(metrics.read(run.path)[-1]["loss"])], "facts": list(images.facts)}


def _given(settings: Settings, recipe: Recipe, images: Images) -> dict[str, Any]:
    """What ``left.configuration`` is given of a recipe."""
    paper, last = settings.scale == "paper", recipe.passes[-1]
    mean, std = (recipe.mean, recipe.std) if recipe.mean else measure_mean_std(_images(settings, recipe, "train"))
    moved = Augmentation(kind="crops", pad=recipe.pad or 0, reflect=recipe.reflect, flip=recipe.pad is not None)
    return {
        "rule_options": dict(recipe.options),
        "mean": mean,
        "std": std,
        "augmentation": moved,
        "limit_images": None if paper else IMAGES,
        "patches": default_patches(recipe.encoder, images.shape[-1]),
        "epochs": sum(p.epochs if paper else min(EPOCHS, p.epochs) for p in recipe.passes),
        "batch_size": recipe.batch,
        "lr": last.lr,
        "weight_decay": last.weight_decay,
        "optimizer": "plain-sgd" if last.optimiser == "plain-sgd" else "adam",
    }


def _run_name(settings: Settings, seed: int) -> str:
    return f"{settings.scale}-s{seed}"


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
    learner = _drawn(settings, RECIPES[name], seed)
    if passes and RECIPES[name].by_train:
        trained, _ = open_run(settings.out / "runs" / _run_name(settings, seed)).trained_learner()
        learner.load_state_dict(trained.state_dict())
    elif passes:
        learner.load_state_dict(torch.load(_weights(settings, passes, seed), weights_only=True))
    return learner


def _drawn(settings: Settings, recipe: Recipe, seed: int) -> Learner:
    rule = rules.get(recipe.rule, **recipe.options)
    shape = _shape(recipe)
    torch.manual_seed(seed)
    width = 1.0 if settings.scale == "paper" else WIDTH
    encoder = encoders.build(recipe.encoder, shape, width, rule.encoder_options)
    return Learner(encoder, rule, shape, engine="autograd")


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

    def moved(x: Tensor) -> Tensor:
        return x if recipe.pad is None else cropped(x, recipe.pad, recipe.reflect, recipe.crop)

    return moved(normalise(x)) if recipe.whiten else normalise(moved(x))  # whitened whole; what is padded is black
