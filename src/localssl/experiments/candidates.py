"""Eight candidates for a local rule nearer to backpropagation than ``clapp++both``, and how they are screened.

Importing this module registers them, which is why the command imports it only when it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from localssl import evaluate, losses, rules
from localssl.experiments import prediction, screening
from localssl.experiments.cells import Cell, Settings, run_cells
from localssl.experiments.screening import BATCHES, EPOCHS, IMAGES, LR, PATCHES, file_name
from localssl.projections import Dense
from localssl.references import Last, Own, Reference, take
from localssl.report import scatter_figure
from localssl.rules.base import Batch, Projections, ScoreRule
from localssl.runs.config import TrainConfig
from localssl.stats import t_interval


@dataclass(frozen=True)
class Next:
    """The readout of the layer above (of the last layer: its own)."""

    def source(self, layer: int, n_layers: int) -> int:
        """The layer that c comes from."""
        return min(layer + 1, n_layers - 1)


class Faster(Dense):
    """A dense B = k W whose W has the optimiser's rate, so that B moves k times as fast under Adam."""

    def __init__(self, d_z: int, d_c: int, k: float) -> None:
        super().__init__(d_z, d_c)
        self.k = k
        with torch.no_grad():
            self.weight /= k

    @override
    def forward(self, input: Tensor) -> Tensor:
        return self.k * super().forward(input)


@dataclass(frozen=True, kw_only=True)
class FastB(ScoreRule):
    """``clapp++both``, B learning four times as fast as W."""

    name: ClassVar[str] = "both, B 4 times as fast"
    references: ClassVar[dict[str, Reference]] = {"lateral": Own(), "feedback": Last()}

    @override
    def build(self, dims: Sequence[int]) -> dict[str, list[nn.Module]]:
        return {
            "lateral": [Faster(d, d, 4) for d in dims],
            "feedback": [Faster(d, dims[-1], 4) for d in dims],
        }


@dataclass(frozen=True, kw_only=True)
class Three(ScoreRule):
    """Own, next and last layer, each with its own B."""

    name: ClassVar[str] = "own, next and last"
    references: ClassVar[dict[str, Reference]] = {"lateral": Own(), "above": Next(), "feedback": Last()}


@dataclass(frozen=True, kw_only=True)
class NextLast(ScoreRule):
    """Next and last layer, each with its own B."""

    name: ClassVar[str] = "next and last"
    references: ClassVar[dict[str, Reference]] = {"above": Next(), "feedback": Last()}


@dataclass(frozen=True, kw_only=True)
class LastModulator(ScoreRule):
    """``clapp++both`` whose W listens to the last layer's modulator: dL/dz has γ^L, as backpropagation's error has.

    W^l descends mean(−γ⁺ᴸ z_pos·Bc + γ⁻ᴸ z_neg·Bc), B^l the hinge with its own γ^l; γ^L is one number a sample, sent
    to all layers, from the loss named by ``source``.
    """

    name: ClassVar[str] = "both, last layer's modulator"
    references: ClassVar[dict[str, Reference]] = {"lateral": Own(), "feedback": Last()}

    @override
    def losses(self, batch: Batch, projections: Projections) -> Tensor:
        last = len(batch.z) - 1
        gates: dict[str, tuple[Tensor, Tensor]] = {}
        for key in self.references:
            s_pos, s_neg = self.scores(batch, last, key, projections[key][last])
            gates[key] = (s_pos < self.margin).to(s_pos.dtype), (s_neg > -self.margin).to(s_pos.dtype)
        negatives = self.draw(batch)
        per_layer: list[Tensor] = []
        for layer in range(last + 1):
            terms: list[Tensor] = []
            for key in self.references:
                g = projections[key][layer](take(self.references[key], batch.z, layer))
                z_pos = batch.positives(layer)
                fixed, still = z_pos.detach(), g.detach()
                s_pos, s_neg = losses.score(fixed, g), losses.score(fixed[negatives], g)
                terms.append(losses.contrast(s_pos, s_neg, self.f, self.loss_type, self.margin))
                pos, neg = gates[key]
                w_pos, w_neg = losses.score(z_pos, still), losses.score(z_pos[negatives], still)
                weights = (neg * w_neg - pos * w_pos).mean()
                terms.append(weights - weights.detach())  # its value is no loss; its gradient is W's
            per_layer.append(torch.stack(terms).sum())
        return torch.stack(per_layer)


@dataclass(frozen=True, kw_only=True)
class LastModulatorDfb(LastModulator):
    """The same with direct feedback alone."""

    name: ClassVar[str] = "dfb, last layer's modulator"
    references: ClassVar[dict[str, Reference]] = {"feedback": Last()}


class SharedNear(nn.Module):
    """A convolutional B: every patch predicts itself and its eight neighbours by the same 3 × 3 kernel."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.shape = (channels, side, side)

    @override
    def forward(self, c: Tensor) -> Tensor:
        return self.conv(c.unflatten(1, self.shape)).flatten(1)


SIDES = tuple(m // p for m, p in zip((32, 16, 16, 8, 4, 2), PATCHES, strict=True))


@dataclass(frozen=True, kw_only=True)
class ConvolutionalB(ScoreRule):
    """``clapp++both`` with a convolutional lateral B and a dense feedback B."""

    name: ClassVar[str] = "both, convolutional lateral B"
    references: ClassVar[dict[str, Reference]] = {"lateral": Own(), "feedback": Last()}

    @override
    def build(self, dims: Sequence[int]) -> dict[str, list[nn.Module]]:
        return {
            "lateral": [SharedNear(d // side**2, side) for d, side in zip(dims, SIDES, strict=True)],
            "feedback": [Dense(d, dims[-1]) for d in dims],
        }


CANDIDATES = (FastB, Three, NextLast, LastModulator, LastModulatorDfb, ConvolutionalB)
for candidate in CANDIDATES:
    rules.register(candidate.name, candidate)
TRIED: dict[str, tuple[str, tuple[int, ...]]] = {  # label: rule and patches; eight of them are new
    "clapp++both": ("clapp++both", PATCHES),
    "clapp++dfb": ("clapp++dfb", PATCHES),
    "clapp++": ("clapp++", PATCHES),
    **{candidate.name: (candidate.name, PATCHES) for candidate in CANDIDATES},
    "both, patches half as large": ("clapp++both", (2, 2, 2, 1, 1, 1)),
    "both, patches twice as large": ("clapp++both", (8, 8, 8, 4, 4, 2)),
}
FINALISTS = (  # and the screening's best two, by the sum of ranks in accuracy and in cosine less null
    "clapp++both",
    "own, next and last",
    "both, B 4 times as fast",
)


def screen(settings: Settings) -> None:
    """Train every candidate once at width 0.125; alignment and accuracy on held-out training images."""
    cells = [Cell(file_name(name), _config(settings, name, 0.125, 0), screening.measure) for name in TRIED]
    records = run_cells(cells, settings)
    blocks = range(1, len(records[0]["cosines"]))
    rows: list[list[object]] = []
    for name, r in zip(TRIED, records, strict=True):
        cosines = r["cosines"][:-1]
        mean = round(sum(cosines) / len(cosines), 4)
        rows.append([name, r["accuracy"], mean, *cosines, *r["nulls"][:-1], r["parameters"]])
    columns = [f"{what}_{b}" for what in ("cosine", "null") for b in blocks]
    header = ["rule", "accuracy", "cosine_mean", *columns, "parameters_of_B"]
    comment = (
        f"{'; '.join(records[0]['notes'])}; width 0.125, {IMAGES:,} images, {EPOCHS} epochs, Adam {LR:g}, batch 64, "
        f"seed 0; cosine with bp-clapp++ (B^L fitted on the frozen encoder) over {BATCHES} batches of 128, "
        f"accuracy (%): {records[0]['protocol']}; both on held-out training images, no test image"
    )
    evaluate.to_csv(settings.out / "screen.csv", header, rows, comment)
    measured = [row for row in rows if all(float(str(v)) == float(str(v)) for v in row[2 : 3 + len(blocks)])]
    cosines = {name: [float(str(row[i])) for row in measured] for i, name in enumerate(header) if "cosine" in name}
    names = [str(row[0]) for row in measured]
    prediction.write(
        settings.out / "correlation.csv", cosines, [float(str(row[1])) for row in measured], names, "rules"
    )
    points = [[row[0], 0, EPOCHS, row[1], *row[3 : 3 + len(blocks)], row[2]] for row in measured]
    path = scatter_figure.draw(points, settings.out / "accuracy.png", comment.split("; cosine")[0])
    print(f"written: {settings.out / 'screen.csv'}, {settings.out / 'correlation.csv'}, {path}")


def final(settings: Settings) -> None:
    """The best of the screening and clapp++both at width 0.25, paired seeds; alignment and accuracy on test images."""
    seeds = range(settings.seeds or 5)
    cells = [
        Cell(f"{file_name(name)}-s{seed}", _config(settings, name, 0.25, seed), screening.measure_final)
        for seed in seeds
        for name in FINALISTS
    ]
    records = run_cells(cells, settings)
    by_name = {name: records[i :: len(FINALISTS)] for i, name in enumerate(FINALISTS)}
    rows: list[list[object]] = []
    for name, mine in by_name.items():
        for what in ("accuracy", "cosine"):
            values = [_value(r, what) for r in mine]
            paired = [a - _value(r, what) for a, r in zip(values, by_name[FINALISTS[0]], strict=True)]
            own, difference = t_interval(values), t_interval(paired)
            low, high = difference[1:]
            verdict = "" if name == FINALISTS[0] else "higher" if low > 0 else "lower" if high < 0 else "not resolved"
            rows.append([name, what, *(round(v, 4) for v in (*own, *difference)), verdict, len(values)])
    header = ["rule", "what", "mean", "low", "high", "difference", "difference_low", "difference_high"]
    header += ["against clapp++both", "seeds"]
    comment = (
        f"{'; '.join(records[0]['notes'])}; width 0.25, {IMAGES:,} images, {EPOCHS} epochs, Adam {LR:g}; test images; "
        f"cosine: mean over blocks 1 to 5, with bp-clapp++ (B^L fitted on the frozen encoder); accuracy (%): "
        f"{records[0]['protocol']}; 95 % t intervals over seeds, differences paired"
    )
    evaluate.to_csv(settings.out / "final.csv", header, rows, comment)
    print(f"written: {settings.out / 'final.csv'}")


def _value(record: dict[str, Any], what: str) -> float:
    if what == "accuracy":
        return float(record["accuracy"])
    cosines = record["cosines"][:-1]
    return sum(cosines) / len(cosines)


def _config(settings: Settings, name: str, width: float, seed: int) -> TrainConfig:
    rule, patches = TRIED[name]
    return screening.config(settings, name, width, seed, rule=rule, patches=patches)
