"""How variants of a rule are screened: short training on CIFAR-10, judged on training images that were held out.

What better-rule and cheap-b share: the training, and what is measured on it.
"""

from __future__ import annotations

from typing import Any, Literal

import torch

from localssl import alignment, evaluate
from localssl.data.sources import Images, shuffled
from localssl.experiments.cells import Settings
from localssl.probe import fast_probe, features
from localssl.runs.config import TrainConfig
from localssl.runs.run import Run

IMAGES, EPOCHS, LR = 20_000, 3, 1e-3  # the rate that clapp++both was given by its own search
HELD_OUT, LABELS = 5_000, 10_000  # training images that the screening is judged on, and that the probe is fitted on
BATCHES, FIT_BATCHES = 10, 100
PATCHES = (4, 4, 4, 2, 2, 1)


def file_name(name: str) -> str:
    """The name of a variant in files and folders."""
    return "".join(c if c.isalnum() or c == "+" else "-" for c in name).replace("--", "-")


def config(
    settings: Settings,
    name: str,
    width: float,
    seed: int,
    rule: str = "clapp++both",
    patches: tuple[int, ...] = PATCHES,
    rule_options: tuple[str, ...] = (),
    optimizer: Literal["adam", "adam-factored"] | None = None,
) -> TrainConfig:
    """The training run of the variant of that name."""
    return TrainConfig(
        rule=rule,
        rule_options=rule_options,
        optimizer=optimizer,
        data="cifar10",
        data_root=settings.data_root,
        limit_images=IMAGES,
        width=width,
        patches=patches,
        lr=LR,
        epochs=EPOCHS,
        seed=seed,
        threads=settings.threads_per_job(),
        out=settings.out / "runs" / f"{file_name(name)}-w{width:g}-s{seed}",
        resume=True,
        probe_every=0,
    )


def measure(run: Run, settings: Settings) -> dict[str, Any]:
    """Alignment and a linear probe on held-out training images."""
    images = run.images("train")
    unseen = torch.as_tensor(shuffled(len(images))[IMAGES:])  # what --limit-images left out
    return _measured(run, images.subset(unseen[:HELD_OUT]), images.subset(unseen[HELD_OUT:]))


def measure_final(run: Run, settings: Settings) -> dict[str, Any]:
    """The same on test images."""
    images = run.images("train")
    unseen = torch.as_tensor(shuffled(len(images))[IMAGES:])
    return _measured(run, run.images("test"), images.subset(unseen))


def _measured(run: Run, held_out: Images, others: Images) -> dict[str, Any]:
    """Alignment with bp-clapp++, B^L fitted on the others; probe with one set of patches for all, fitted on 10,000."""
    learner, _ = run.trained_learner()
    learner.eval()
    pairs = evaluate.view_batches(run, held_out, BATCHES, 128, seed=run.config.seed + 2)
    fit = evaluate.view_batches(run, others, FIT_BATCHES, 128, seed=run.config.seed + 3)
    rows = alignment.measure(learner.encoder, learner, pairs, "bp-clapp++", fit=fit)
    labelled = others.subset(torch.arange(LABELS))
    parts = [
        features(learner.encoder, part, patches=PATCHES, normalise=run.normalise()) for part in (labelled, held_out)
    ]
    result = fast_probe(parts[0], labelled.labels, parts[1], held_out.labels, layers=("all",), knn=False)
    cosines = [r for r in rows if (r.quantity, r.parameter) == ("cosine", "weights")]
    return {
        "cosines": [round(r.mean, 5) for r in cosines],
        "nulls": [round(r.null, 5) for r in cosines],
        "reference": rows[0].reference,
        "accuracy": round(result.rows[0].accuracy, 2),
        "protocol": result.protocol,
        "parameters": sum(p.numel() for p in learner.projections.parameters()),
        "notes": held_out.facts,
    }
