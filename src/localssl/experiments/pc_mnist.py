"""Supervised predictive coding beside backpropagation: an MLP on MNIST, every rule at the best of its three rates.

784-256-256-256 (ReLU) and a linear head, cross-entropy, Adam, four epochs for all. A batch shows 64 images and the same
ones shifted by up to two pixels. The rates are chosen on 10,000 held-out training images with a seed of its own, then
every rule is trained anew on all training images. Accuracy is that of the last weights, in a plain forward pass.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from torch import Tensor

from localssl import encoders, evaluate, rules
from localssl.data.sources import Images, open_images
from localssl.data.specs import Augmentation
from localssl.experiments import left
from localssl.experiments.cells import Part, Settings, run_cells
from localssl.learner import Learner
from localssl.report.tables import show

# ipc steps its weights nine times a batch
RATES = {"bp": (3e-4, 1e-3, 3e-3), "pc": (3e-4, 1e-3, 3e-3), "ipc": (3e-5, 1e-4, 3e-4)}
DATA, WIDTHS = "mnist", (256, 256, 256)
EPOCHS = 4
BATCH = 64
SHIFT = 2  # pixels; MNIST's digits have four empty ones around them
HELD_OUT = 10_000
MEAN, STD = 0.1307, 0.3081
SEARCH_SEED = 100
WITHIN = 1.0  # points of accuracy

Record = dict[str, Any]


def run(settings: Settings) -> None:
    """MNIST: how far supervised pc and ipc are behind backpropagation, an MLP of 3 x 256 (25 core-minutes)."""
    searched = [(rule, lr) for rule, rates in RATES.items() for lr in rates]
    parts = [Part(f"search-{rule}-lr{lr:g}", train, (rule, lr, SEARCH_SEED, True)) for rule, lr in searched]
    found = run_cells(parts, settings)
    best: dict[str, float] = {}
    for rule in RATES:
        mine = [r for r in found if r["config"][0] == rule]
        best[rule] = max(mine, key=lambda r: r["accuracy"])["config"][1]
    seeds = range(settings.seeds or 2)
    finals = [Part(f"{r}-lr{lr:g}-s{seed}", train, (r, lr, seed, False)) for r, lr in best.items() for seed in seeds]
    tested = run_cells(finals, settings)
    rows = [[*r["config"][:3], r["images"], r["accuracy"], r["seconds"]] for r in (*found, *tested)]
    header = ["rule", "lr", "seed", "images", "accuracy", "cpu_seconds"]
    comment = (
        f"MLP 784-{'-'.join(map(str, WIDTHS))} and a linear head, {EPOCHS} epochs, batches of {BATCH} images and their "
        f"shifts, Adam; pc: T 8, ipc: T 9, both eta_h 0.1, momentum 0.5, none searched; accuracy in % of the last "
        f"weights: seed {SEARCH_SEED} on {HELD_OUT} held-out training images, the others on the test images"
    )
    evaluate.to_csv(settings.out / "accuracy.csv", header, rows, comment)
    mean = {rule: statistics.mean(r["accuracy"] for r in tested if r["config"][0] == rule) for rule in RATES}
    shown: list[list[object]] = []
    for rule, lr in best.items():
        gap = mean["bp"] - mean[rule]
        verdict = "" if rule == "bp" else ("yes" if gap <= WITHIN else "no")
        shown.append([rule, lr, len(seeds), round(mean[rule], 2), round(gap, 2), verdict])
    caption = f"{comment}; behind: points behind bp"
    show("MNIST, supervised", ["rule", "lr", "seeds", "test accuracy", "behind", "within 1"], shown, caption)
    print(f"written: {settings.out / 'accuracy.csv'}")


def train(settings: Settings, rule: str, lr: float, seed: int, search: bool) -> Record:
    """One training run: accuracy on the held-out training images (``search``) or on the test images.

    The latter leaves its network in ``runs/``.
    """
    images = _open(settings, "train")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    used = order[HELD_OUT:] if search else order
    x, y = _tensors(images, used)
    other = _tensors(images, order[:HELD_OUT]) if search else _tensors(_open(settings, "test"))
    torch.manual_seed(seed)
    options = {} if rule == "bp" else {"objective": "ce"}
    encoder = encoders.mlp(images.shape[1] * images.shape[2], WIDTHS)
    learner = Learner(encoder, rules.get(rule, **options), images.shape)
    optimizer = torch.optim.Adam(learner.parameters(), lr=lr)
    began = time.process_time()
    for _ in range(EPOCHS):
        for index in torch.randperm(len(x)).split(BATCH):
            if len(index) < BATCH:
                continue
            shift = torch.randint(-SHIFT, SHIFT + 1, (2,)).tolist()
            view = x[index]
            for _ in learner.updates(view, view.roll(shift, (2, 3)), labels=y[index]):
                optimizer.step()
                optimizer.zero_grad()
    seconds = round(time.process_time() - began, 1)
    if not search:
        left.leave(
            settings,
            f"{rule}-lr{lr:g}-s{seed}",
            "pc-mnist",
            learner,
            images,
            seed,
            rule_options=options,
            mean=(MEAN,),
            std=(STD,),
            augmentation=Augmentation(kind="crops", pad=SHIFT),
            batch_size=BATCH,
            epochs=EPOCHS,
            lr=lr,
        )
    return {"accuracy": round(_accuracy(learner, *other), 3), "images": len(x), "seconds": seconds}


def _open(settings: Settings, split: str) -> Images:
    return open_images(DATA, split, root=settings.data_root, channels=1, image_size=28)


def _tensors(images: Images, index: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Normalised images (N, 1, 28, 28) and labels (N,)."""
    assert images.labels is not None
    index = torch.arange(len(images)) if index is None else index
    return (images.batch(index).float() / 255 - MEAN) / STD, images.labels[index]


@torch.no_grad()
def _accuracy(learner: Learner, x: Tensor, y: Tensor) -> float:
    """Accuracy of the head in %, without inference."""
    logits = learner.parts["head"][0](learner.encoder(x)[-1])
    return float(100 * (logits.argmax(1) == y).float().mean())
