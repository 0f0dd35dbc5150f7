"""A stage with its link, made alike in every process of a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from localssl import readout
from localssl.engine.three_factor import above
from localssl.rules.base import ScoreRule
from localssl.runs.config import RunConfig
from localssl.training.pipeline.link import Link, Shapes, groups
from localssl.training.pipeline.place import Place
from localssl.training.pipeline.stage import Stage
from localssl.training.prepared import Prepared

# Orders to the stages besides BATCH and END, added up: report; then count the losses anew; with the weights; with the
# optimiser's state.
REPORT, ROW, WEIGHTS, STATES = 2, 4, 8, 16


@dataclass(frozen=True)
class Setup:
    """What every stage has to know when the run begins or goes on; sent as JSON.

    Args:
        config: text of config.yaml.
        device: as --device names it.
        bounds: the first block of every stage, and after the last one the number of all blocks.
        step, last_step: steps done, and of the whole run.
        sums: of the losses of every block since the last row.
        resumed: whether weights and optimiser's state of the stage's blocks follow.
        images: that are trained on; 0: nobody asks which.
    """

    config: str
    device: str
    bounds: Sequence[int]
    step: int
    last_step: int
    sums: Sequence[float]
    resumed: bool
    images: int = 0

    @classmethod
    def of(
        cls,
        config: RunConfig,
        device: str,
        divided: Sequence[range],
        step: int,
        last_step: int,
        sums: Sequence[float],
        resumed: bool,
        images: int = 0,
    ) -> Setup:
        """From a configuration, and the blocks of every stage."""
        bounds = [*(layers.start for layers in divided), divided[-1].stop]
        return cls(config.to_yaml(), device, bounds, step, last_step, sums, resumed, images)

    @property
    def stages(self) -> int:
        """How many there are."""
        return len(self.bounds) - 1

    def layers(self, stage: int) -> range:
        """The blocks of a stage."""
        return range(self.bounds[stage], self.bounds[stage + 1])

    def run_config(self) -> RunConfig:
        """The configuration."""
        return RunConfig.from_yaml(self.config, "the configuration of the run")

    def to_bytes(self) -> bytes:
        """To be sent."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Setup:
        """As it was sent."""
        return cls(**json.loads(data))


def stage(prepared: Prepared, setup: Setup, place: Place) -> Stage:
    """The stage of this process."""
    made = Stage(prepared, setup.layers(place.stage), setup.step, setup.last_step, None, setup.images, place.peers)
    if place.stages > 1:
        made.link = _link(prepared, setup, place, made.gathers_context)
    made.sums += torch.tensor([setup.sums[layer] for layer in made.layers], device=prepared.device)
    return made


def _link(prepared: Prepared, setup: Setup, place: Place, whole: bool) -> Link:
    """``whole``: whether the last layer's readout is that of the whole batch."""
    learner, rule = prepared.learner, prepared.learner.rule
    assert isinstance(rule, ScoreRule)
    samples, compared = place.samples(prepared.config)
    outputs = _outputs(prepared)
    blocks = len(outputs)

    def at(layer: int) -> Shapes | None:
        """What passes between a block and the one before it."""
        if layer in (0, blocks):
            return None
        negatives = (blocks - layer, len(rule.references), compared) if rule.negatives == "random" else ()
        z = outputs[layer - 1]
        return Shapes(negatives, (samples, *z.shape[1:]), z.dtype)

    own = setup.layers(place.stage)
    dim = readout.dim(tuple(outputs[-1].shape[1:]), learner.patches[-1])
    context = Shapes((), (compared if whole else samples, dim), outputs[-1].dtype) if above(rule, blocks) else None
    return Link(
        place,
        groups(prepared.device, place),
        prepared.device,
        at(own.start),
        at(own.stop),
        context,
        prepared.config.staleness,
    )


@torch.no_grad()
def _outputs(prepared: Prepared) -> list[Tensor]:
    """Every block's output for two samples, for its shape and type under the run's precision."""
    learner = prepared.learner
    p = next(learner.encoder.parameters())
    x = torch.zeros(2, *learner.input_shape, dtype=p.dtype, device=p.device)
    learner.eval()  # batch statistics of zeros must not enter running averages
    with prepared.fabric.autocast():
        outputs = learner.encoder(x)
    learner.train()
    return outputs
