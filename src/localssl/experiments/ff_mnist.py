"""Forward-Forward on MNIST with labels, in its published setting, against the published test error.

The recipe is that of the public code loeweX/Forward-Forward (1.45 % error; Hinton 2022 reports 1.36 %): three layers of
1,000 units, labels in the first ten pixels, peer normalisation, and a linear readout of the neutral image's normalised
activities in all but the first layer, trained alongside and never seen by the layers.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from localssl import encoders, evaluate, rules
from localssl.data.sources import Images, open_images
from localssl.encoders.layers import LengthNorm
from localssl.experiments import left
from localssl.experiments.cells import Part, Settings, run_cells
from localssl.inputs import LabelInImage
from localssl.learner import Learner
from localssl.report.tables import show
from localssl.system.files import write_atomic

DATA, WIDTHS, CLASSES, TRAINED_ON = "mnist", (1000, 1000, 1000), 10, 50_000
EPOCHS, BATCH, MOMENTUM = 100, 100, 0.9
LR, DECAY, READOUT_LR, READOUT_DECAY = 1e-3, 3e-4, 1e-2, 3e-3
RULE: dict[str, Any] = {"peer": 0.03, "views": 1, "classes": CLASSES}
PUBLISHED = {"loeweX/Forward-Forward": 1.45, "Hinton 2022": 1.36}


def run(settings: Settings) -> None:
    """Forward-Forward, supervised, on MNIST in its published setting (an hour or two on one core)."""
    seeds = range(settings.seeds or 1)
    records = run_cells([Part(f"ff-supervised-s{seed}", train, (seed, EPOCHS)) for seed in seeds], settings)
    rows: list[list[object]] = [
        [r["config"][0], r["epochs"], r["error_test"], r["error_held_out"], r["minutes"]] for r in records
    ]
    published = "; ".join(f"{source}: {error} %" for source, error in PUBLISHED.items())
    caption = (
        f"Error in % after the last epoch, on MNIST's 10,000 test images and on the 10,000 training images that were "
        f"left out; nothing was chosen by either. Published test errors: {published}."
    )
    header = ["seed", "epochs", "error_test", "error_held_out", "minutes"]
    evaluate.to_csv(settings.out / "ff-mnist.csv", header, rows, caption)
    show("Forward-Forward, supervised, MNIST", header, rows, caption)
    print(f"written: {settings.out / 'ff-mnist.csv'}")


def train(settings: Settings, seed: int, epochs: int) -> dict[str, Any]:
    """One cell: train, with a checkpoint after every epoch, leave the network in ``runs/``, classify by the readout."""
    study = Study(settings.data_root, seed, epochs)
    file = settings.out / "runs" / f"ff-supervised-s{seed}-of-{epochs}.pt"
    file.parent.mkdir(parents=True, exist_ok=True)
    study.restore(file)
    while study.epoch < epochs:
        study.train_epoch()
        study.save(file)
        print(study.line(), flush=True)
    left.leave(
        settings,
        f"s{seed}",
        "ff-mnist",
        study.learner,
        _open("train", settings.data_root).subset(torch.arange(TRAINED_ON)),
        seed,
        rule_options=RULE,
        batch_size=BATCH,
        epochs=epochs,
        lr=LR,
        weight_decay=DECAY,
        optimizer="sgd",
    )
    errors = {part: study.error(part) for part in ("test", "held_out")}
    return {
        "epochs": epochs,
        **{f"error_{part}": error for part, error in errors.items()},
        "minutes": round(study.seconds / 60, 1),
        "history": study.history,
        "published": PUBLISHED,
        "data": "MNIST, the first 50,000 training images; pixels in [0, 1]",
    }


class Study:
    """One training run between its epochs; its state is what a checkpoint keeps.

    Whatever an epoch draws follows from (seed, epoch) alone.
    """

    def __init__(self, root: Path | None, seed: int, epochs: int):
        self.seed, self.epochs = seed, epochs
        self.epoch, self.seconds = 0, 0.0
        self.history: list[dict[str, float]] = []
        self.images, self.labels = _load("train", root)
        self.test = _load("test", root)
        torch.manual_seed(seed)
        encoder = encoders.mlp(784, WIDTHS, norm="length", activation="relu-ste")
        for module in encoder.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=1 / math.sqrt(module.out_features))
                nn.init.zeros_(module.bias)
        rule = rules.get("ff-supervised", **RULE)
        self.learner = Learner(encoder, rule, self.images.shape[1:])
        self.readout = nn.Linear(sum(WIDTHS[1:]), CLASSES, bias=False)
        nn.init.zeros_(self.readout.weight)
        self.norm = LengthNorm()
        assert isinstance(self.learner.inputs, LabelInImage)
        self.neutral = self.learner.inputs.neutral
        self.optimiser = torch.optim.SGD(
            [
                {"params": list(self.learner.parameters()), "base": LR, "weight_decay": DECAY},
                {"params": list(self.readout.parameters()), "base": READOUT_LR, "weight_decay": READOUT_DECAY},
            ],
            lr=LR,
            momentum=MOMENTUM,
            fused=True,
        )

    def train_epoch(self) -> None:
        """One epoch; the rates fall linearly to zero over the second half of all epochs."""
        began = time.monotonic()
        for group in self.optimiser.param_groups:
            group["lr"] = group["base"] * min(1.0, 2 * (1 - self.epoch / self.epochs))
        torch.manual_seed(self.seed * 1_000_003 + self.epoch)
        sums = torch.zeros(len(WIDTHS))
        wrong = torch.zeros((), dtype=torch.int64)
        for index in torch.randperm(TRAINED_ON).split(BATCH):
            x, y = self.images[index], self.labels[index]
            logits = self.readout(self.features(x))
            F.cross_entropy(logits, y).backward()  # pyright: ignore[reportUnknownMemberType]
            for losses in self.learner.updates(x, x, labels=y):
                self.optimiser.step()
                self.optimiser.zero_grad()
                sums += losses
            wrong += (logits.argmax(1) != y).sum()
        self.seconds += time.monotonic() - began
        self.epoch += 1
        row = {f"loss_{i}": round(float(s) * BATCH / TRAINED_ON, 4) for i, s in enumerate(sums, start=1)}
        row |= {"error_train": round(100 * int(wrong) / TRAINED_ON, 3), "error_held_out": self.error("held_out")}
        self.history.append({"epoch": self.epoch, **row})

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        """What the readout sees of images (n, 1, 28, 28): (n, 2000)."""
        return torch.cat([self.norm(z) for z in self.learner.encoder(self.neutral(x))[1:]], 1)

    @torch.no_grad()
    def error(self, part: str) -> float:
        """Share of images that the readout gets wrong, in %."""
        x, y = self.test if part == "test" else (self.images[TRAINED_ON:], self.labels[TRAINED_ON:])
        pairs = zip(x.split(1000), y.split(1000), strict=True)
        wrong = sum(int((self.readout(self.features(x)).argmax(1) != y).sum()) for x, y in pairs)
        return round(100 * wrong / len(y), 3)

    def line(self) -> str:
        """Where it stands."""
        said = " ".join(f"{name} {value:g}" for name, value in self.history[-1].items())
        return f"{said}, {self.seconds / self.epoch:.0f} s an epoch"

    def save(self, file: Path) -> None:
        """Write everything that the next epoch needs, atomically."""
        state = {
            "epoch": self.epoch,
            "seconds": self.seconds,
            "history": self.history,
            "learner": self.learner.state_dict(),
            "readout": self.readout.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }
        write_atomic(file, lambda temporary: torch.save(state, temporary))

    def restore(self, file: Path) -> None:
        """Go on from a checkpoint, if there is one."""
        if not file.is_file():
            return
        state = torch.load(file, weights_only=True)
        self.epoch, self.seconds, self.history = state["epoch"], state["seconds"], state["history"]
        self.learner.load_state_dict(state["learner"])
        self.readout.load_state_dict(state["readout"])
        self.optimiser.load_state_dict(state["optimiser"])


def _open(split: str, root: Path | None) -> Images:
    return open_images(DATA, split, root=root, image_size=28)


def _load(split: str, root: Path | None) -> tuple[Tensor, Tensor]:
    """All images as floats in [0, 1], (N, 1, 28, 28), and their labels."""
    images = _open(split, root)
    assert images.labels is not None
    return images.batch(torch.arange(len(images))).float() / 255, images.labels
