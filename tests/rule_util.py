"""Manifests of small networks, and the interpreter that reads them."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

from torch import nn

from localssl import encoders, rules
from localssl.data.specs import Augmentation
from localssl.encoders import Encoder
from localssl.grids import Grid
from localssl.learner import Learner
from localssl.rulefile import manifest
from localssl.runs.config import RunConfig

ROOT = Path(__file__).resolve().parents[1]
INTERPRETER = ROOT / "examples" / "rule_interpreter.py"
READS = runpy.run_path(str(INTERPRETER))
SHAPE = (1, 8, 8)


def made(rule: str, encoder: Encoder | None = None, options: dict[str, Any] | None = None, **changes: Any) -> Any:
    """The manifest of a rule on a convolution with a pool, one without, a linear layer; and the learner."""
    chosen = rules.get(rule, **(options or {}))
    side = chosen.inputs().shape(SHAPE)[1] // 2
    layers = [nn.Conv2d(1, 9, 3, padding=1), nn.Conv2d(9, 11, 3, padding=1)]
    weighted = [*layers, nn.Sequential(nn.Flatten(), nn.Linear(11 * side**2, 8))]
    wanted = encoders.Options(**chosen.encoder_options)
    encoder = encoder or wanted.stack(weighted, (True, False, False), {"name": "small"})
    images = (1, *[changes.pop("side", SHAPE[1])] * 2)
    config = config_of(rule, images, **{"rule_options": options or {}, "patches": (2, 2, None), **changes})
    learner = Learner(encoder, chosen, config.input_shape, config.patches, config.engine)
    return json.loads(json.dumps(manifest(config, learner))), learner


def config_of(rule: str, images: tuple[int, int, int], **changes: Any) -> RunConfig:
    """A run's configuration, its patches among the changes."""
    given = {"rule_options": {}, "optimizer": "adam", "engine": "auto", "lr": 0.01, "weight_decay": 0.1}
    given |= {"schedule": "cosine", "precision": "32-true", **changes}
    return RunConfig(
        rule=rule,
        data="digits",
        image_size=images[1],
        channels=images[0],
        mean=(0.0,),
        std=(1.0,),
        augmentation=Augmentation(),
        limit_images=None,
        skip_bad=False,
        encoder={},
        epochs=1,
        batch_size=16,
        seed=0,
        probe_every=0,
        **given,
    )


def in_bits(rule: str, bits: int, encoder: Encoder | None = None, **changes: Any) -> Any:
    """The same of a run of ``bits``: convolutions with a maximum and a mean of their windows, a linear layer."""
    blocks = [
        nn.Sequential(Grid(bits), nn.Conv2d(1, 9, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), Grid(bits)),
        nn.Sequential(nn.Conv2d(9, 11, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), Grid(bits)),
        nn.Sequential(nn.Flatten(), nn.Linear(44, 8), nn.ReLU(), Grid(bits)),
    ]
    integers = {"engine": "integer", "precision": "64-true", "weight_decay": 0.0, "schedule": "constant"}
    given = {"lr": 2.0**-6, "optimizer": "shift-sgd", "patches": (2, 1, None), "bits": bits, **integers, **changes}
    return made(rule, encoder or Encoder(blocks), **given)


def worst(rule: dict[str, Any], arithmetic: str = "float64") -> float:
    """The interpreter's largest relative deviation from the golden vectors."""
    (vectors,) = (v for v in rule["vectors"] if v["arithmetic"] == arithmetic)
    return max(READS["deviation"](*pair) for pair in READS["steps"](rule, vectors))
