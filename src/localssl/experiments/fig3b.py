"""Figure 3B: local rules and the optimum of Definition 3.4 in a ReLU MLP trained on crops of MNIST."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from localssl import encoders, evaluate, rules
from localssl.alignment import Pair, decompose, measure
from localssl.data.sources import Images, open_images
from localssl.errors import UsageError
from localssl.experiments.cells import Part, Settings, run_cells
from localssl.learner import Learner
from localssl.report import layers_figure
from localssl.stats import t_interval

CROP, WIDTHS, BATCH, LR = 14, (512,) * 6, 32, 5e-5  # paper Appendix B
EPOCHS = (0, 1, 2, 5, 10, 20)  # the alignment is measured after these
SEEDS, TEST_BATCHES, FIT_BATCHES, FIT_EPOCHS = 3, 100, 1600, 8
LINES: dict[str, tuple[str, bool]] = {  # label: rule, whether the feedback stays as it was drawn
    "local-SSL": ("clapp++", False),
    "local-SSL DFB": ("clapp++dfb", False),
    "DFB, fixed random B": ("clapp++dfb", True),
    "optimum, encoder trained by it": ("optimum", False),
}
SOLVED = "optimum, solved at DFB's encoder and gates"


def run(settings: Settings) -> None:
    """Figure 3B: a 6-layer ReLU MLP on MNIST crops, local rules and the optimum (hours on one core)."""
    seeds = range(settings.seeds or SEEDS)
    parts = [Part(f"{_file(line)}-s{seed}", train, (line, seed)) for seed in seeds for line in LINES]
    records = run_cells(parts, settings)
    rows: list[list[object]] = []
    named = {line: [r for r in records if r["config"][0] == line] for line in LINES}
    for epoch in map(str, EPOCHS):
        for line, mine in named.items():
            nulls = [r["nulls"][epoch] for r in mine if "nulls" in r]  # the first cells were written without
            rows += _rows(epoch, line, [r["cosines"][epoch] for r in mine], nulls)
    solved = [r["limits"] for r in records if r["config"][0] == "local-SSL DFB"]
    rows += _rows(
        str(EPOCHS[-1]), SOLVED, [[1 - mean for _, part, mean, *_ in parts if part == "form"] for parts in solved], []
    )
    header = ["epoch", "line", "layer", "mean", "low", "high", "seeds", "null"]
    over = f"mean and 95 % t interval over {len(seeds)} seeds" if len(seeds) > 1 else "one seed, no interval"
    caption = (
        f"{records[0]['data']}, crops of {CROP} × {CROP}, 6 ReLU layers of {WIDTHS[0]} units, softplus type 2, "
        f"Adam {LR:g}, batch {BATCH}, {EPOCHS[-1]} epochs; each rule against backpropagation of its own "
        f"last-layer loss, at its own weights; mean over {TEST_BATCHES} test batches, then {over}"
    )
    evaluate.to_csv(settings.out / "fig3b.csv", header, rows, caption)
    last = [[f"after {EPOCHS[-1]} epochs", *row[1:]] for row in rows if row[0] == str(EPOCHS[-1])]
    path = layers_figure.draw(last, caption, settings.out / "fig3b.png")
    limits = [[r["config"][0], r["config"][1], *row] for r in records for row in r.get("limits", [])]
    evaluate.to_csv(
        settings.out / "limits.csv",
        ["line", "seed", "block", "part", "mean", "low", "high", "batches"],
        limits,
        f"parts of 1 − cosine after {EPOCHS[-1]} epochs, gates of the present B; fitted on {FIT_BATCHES} batches "
        f"of training images, mean and 95 % t interval over {TEST_BATCHES} test batches",
    )
    print(f"written: {path}, {settings.out / 'fig3b.csv'}, {settings.out / 'limits.csv'}")


def _file(line: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in line.lower()).replace("--", "-")


def _rows(epoch: str, line: str, cosines: list[list[float]], nulls: list[list[float]]) -> list[list[object]]:
    """One row a layer from one list of cosines a seed, and one of nulls where they were measured."""
    found: list[list[object]] = []
    for layer, values in enumerate(zip(*cosines, strict=True), start=1):
        interval = ["" if v != v else round(v, 5) for v in t_interval(values)]
        null = round(sum(seed[layer - 1] for seed in nulls) / len(nulls), 5) if nulls else ""
        found.append([epoch, line, layer, *interval, len(values), null])
    return found


def data(settings: Settings) -> tuple[Images, Images, str]:
    """Training and test images, and their name: MNIST, or where it is not there the embedded digits."""
    try:
        images = open_images("mnist", root=settings.data_root, image_size=28)
        return images, open_images("mnist", "test", root=settings.data_root, image_size=28), "MNIST"
    except UsageError as error:
        print(f"{error}; using the embedded digits instead")
        images, test = (open_images("digits", split, image_size=28) for split in ("train", "test"))
        return images, test, "digits (enlarged to 28 × 28)"


def epochs(images: Images, line: str, seed: int) -> Iterator[tuple[int, Learner]]:
    """A line's training: the learner after 0, 1, … epochs, always the same object."""
    rule, fixed = LINES[line]
    torch.manual_seed(seed)
    encoder = encoders.mlp(CROP * CROP, WIDTHS)
    learner = Learner(encoder, rules.get(rule, f="softplus", margin=0.0), (CROP * CROP,))
    if fixed:  # of the feedback; the last layer's B is its own, as in the other lines
        for module in learner.parts["feedback"][:-1]:
            module.requires_grad_(False)
    optimiser = torch.optim.Adam([p for p in learner.parameters() if p.requires_grad], lr=LR, fused=True)
    yield 0, learner
    for epoch in range(EPOCHS[-1]):
        generator = torch.Generator().manual_seed(1_000_003 * seed + epoch)
        for index in torch.randperm(len(images), generator=generator).split(BATCH):
            if len(index) == BATCH:
                learner.accumulate_grads(*views(images.batch(index), generator))
                optimiser.step()
                optimiser.zero_grad()
        yield epoch + 1, learner


def train(settings: Settings, line: str, seed: int) -> dict[str, Any]:
    """One cell: train by one rule, measure on the way, and with the two local rules decompose at the end."""
    rule, fixed = LINES[line]
    images, test, name = data(settings)
    held_out = pairs(test, TEST_BATCHES, seed)
    found: dict[str, Any] = {"data": name, "cosines": {}, "nulls": {}}
    learner: Learner | None = None
    for epoch, learner in epochs(images, line, seed):
        if epoch in EPOCHS:
            found["cosines"][str(epoch)], found["nulls"][str(epoch)] = _cosines(learner, held_out)
            print(f"epoch {epoch}: {' '.join(f'{c:.3f}' for c in found['cosines'][str(epoch)])}", flush=True)
    assert learner is not None
    if rule != "optimum" and not fixed:
        fit = pairs(images, FIT_BATCHES, seed + 1)
        found["limits"] = [
            [r.block, r.part, *(round(v, 5) for v in (r.mean, r.low, r.high)), r.batches]
            for r in decompose(learner, fit, held_out, epochs=FIT_EPOCHS)
        ]
    return found


def _cosines(learner: Learner, pairs: list[Pair]) -> tuple[list[float], list[float]]:
    """The cosine of every layer, and its null."""
    rows = [r for r in measure(learner.encoder, learner, pairs) if (r.quantity, r.parameter) == ("cosine", "weights")]
    return [round(r.mean, 6) for r in rows], [round(r.null, 6) for r in rows]


def pairs(images: Images, batches: int, seed: int, size: int = BATCH) -> list[Pair]:
    """Two random crops of every image of some batches, drawn from the seed."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(images), generator=generator).split(size)[:batches]
    return [Pair(*views(images.batch(index), generator)) for index in chosen if len(index) == size]


def views(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two random crops of every image, flattened, (n, 196) in 0…1."""
    n, side = len(images), images.shape[-1]
    offset = torch.arange(CROP)

    def crop() -> Tensor:
        rows, columns = torch.randint(side - CROP + 1, (2, n, 1), generator=generator)
        image = torch.arange(n)[:, None, None]
        cut = images[image, 0, (rows + offset)[:, :, None], (columns + offset)[:, None, :]]
        return cut.flatten(1).float() / 255

    return crop(), crop()
