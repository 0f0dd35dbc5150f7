"""A network that a study's own loop has trained, left as a run's folder: probe, align, report and export open it.

What ``train`` would write at its end, but metrics.csv, cost.json and flags.yaml: the study's losses are in its cells,
and no flags train such a network. ``train`` refuses to go on from the folder.
"""

from __future__ import annotations

from typing import Any

import torch

from localssl.data.readers import data_folder
from localssl.data.sources import Images
from localssl.data.specs import Augmentation
from localssl.errors import in_shell
from localssl.experiments.cells import Settings
from localssl.learner import Learner
from localssl.runs import checkpoint
from localssl.runs.config import RunConfig
from localssl.runs.manifest import write_manifest
from localssl.system.files import make_folder, write_text


def configuration(learner: Learner, **given: Any) -> RunConfig:
    """The configuration that builds a learner of this encoder and rule anew.

    Args:
        learner: of an encoder that has a name.
        given: values of ``RunConfig``; needed are rule_options, data, image_size, channels, epochs, batch_size, lr and
            seed. Pixels stay as they are, in 0…1, and images as they are shown, unless something else is given.
    """
    encoder = learner.encoder.config
    assert encoder is not None
    defaults: dict[str, Any] = {
        "mean": (0.0,),
        "std": (1.0,),
        "augmentation": Augmentation(kind="crops"),
        "limit_images": None,
        "skip_bad": False,
        "patches": None,
        "weight_decay": 0.0,
        "optimizer": "adam",
        "schedule": "constant",
        "precision": "32-true",
        "probe_every": 0,
    }
    return RunConfig(**{**defaults, "rule": learner.rule.name, "encoder": encoder, "engine": learner.engine, **given})


def leave(
    settings: Settings, name: str, study: str, learner: Learner, images: Images, seed: int, **given: Any
) -> RunConfig:
    """Write ``runs/NAME`` below the study's folder, config.yaml last: where it lies, the run is whole.

    Args:
        settings: of the study.
        name: of the run's folder.
        study: what ``localssl reproduce`` calls it.
        learner: as its training has left it.
        images: those trained on.
        seed: of the run: the study's command with ``--seeds`` of one more repeats it.
        given: see ``configuration``.
    """
    trained_by = f"localssl reproduce {study}" + (" --scale paper" if settings.scale == "paper" else "")
    found = {"data": images.name, "image_size": images.shape[-1], "channels": images.shape[0], "seed": seed, **given}
    config = configuration(learner, trained_by=trained_by, **found)
    folder, root = settings.out / "runs" / name, settings.data_root
    make_folder(folder)
    state = {
        "step": config.epochs * -(-len(images) // config.batch_size),
        "seconds": 0.0,
        "config": config.to_yaml(),
        "learner": learner.state_dict(),
        "optimizer": {},
        "rng": checkpoint.rng_state(),
        "sum": torch.zeros(1),
        "count": 0,
    }
    checkpoint.save(folder, state)
    checkpoint.save_encoder(folder, learner.encoder, config)
    where = "" if root is None else f" --data-root {in_shell([str(root)])}"
    write_manifest(folder, config, images, data_folder(root), f"{trained_by} --seeds {seed + 1}{where}")
    write_text(folder / "config.yaml", config.to_yaml())
    return config
