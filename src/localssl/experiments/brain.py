"""Does the layer-by-layer similarity between a local rule and its end-to-end twin follow gradient alignment?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from localssl import alignment, evaluate, represent
from localssl.experiments.cells import Cell, Part, Settings, run_cells
from localssl.report import brain_figure
from localssl.runs import checkpoint
from localssl.runs.config import TrainConfig
from localssl.runs.run import Run, open_run
from localssl.stats import cluster_rank_correlation, t_interval

RULES = ("clapp", "clapp++", "clapp++dfb", "clapp++both")
TWIN = "bp-clapp++"
UNTRAINED = "untrained"
SEEDS, WIDTH, IMAGES, EPOCHS, LR = 3, 0.125, 20_000, 5, 1e-3
SHOWN, BATCHES, FIT_BATCHES = 1000, 10, 100  # test images whose activities are compared; batches of alignment, fitting
MEASURES = ("cka", "rsa")
HEADER = ["rule", "seed", "block", "measure", "similarity", "low", "high", "null", "p", "between_twins"]
HEADER += ["untrained", "cosine", "cosine_null", "dimension", "twin_dimension"]


def run(settings: Settings) -> None:
    """Similarity of layers with those of the end-to-end twin against gradient alignment, CIFAR-10 (core-hours)."""
    study(settings, "cifar10", IMAGES, EPOCHS, SHOWN)


def study(settings: Settings, data: str, images: int, epochs: int, shown: int, width: float = WIDTH) -> None:
    """The study on any data set: ``similarity.csv``, ``answer.csv``, ``spatial.csv`` and a figure."""
    seeds = range(settings.seeds or SEEDS)
    cells: list[Cell | Part] = []
    for seed in seeds:
        for rule in (TWIN, *RULES, UNTRAINED):
            config = TrainConfig(
                rule=TWIN if rule == UNTRAINED else rule,
                data=data,
                data_root=settings.data_root,
                limit_images=images,
                width=width,
                lr=LR,
                epochs=0 if rule == UNTRAINED else epochs,
                seed=seed,
                threads=settings.threads_per_job(),
                out=settings.out / "runs" / _name(rule, seed),
                resume=True,
                probe_every=0,
            )
            cells.append(Cell(_name(rule, seed), config, _aligned if rule in RULES else _nothing))
    records = run_cells(cells, settings)
    notes = next(r["notes"] for r in records if "notes" in r)
    aligned = {r["cell"]: r for r in records}
    pairs = [(rule, seed, measure) for seed in seeds for rule in (*RULES, UNTRAINED) for measure in MEASURES]
    parts = [Part(f"like-{m}-{_name(rule, seed)}", _alike, (rule, seed, seed, m, shown)) for rule, seed, m in pairs]
    others = [(seed, (seed + 1) % len(seeds), m) for seed in seeds for m in MEASURES if len(seeds) > 1]
    parts += [Part(f"like-{m}-{_name(TWIN, s)}-s{t}", _alike, (TWIN, s, t, m, shown)) for s, t, m in others]
    alike = {r["cell"]: r for r in run_cells(parts, settings)}
    rows: list[list[object]] = []
    for rule, seed, measure in pairs:
        if rule == UNTRAINED:
            continue
        mine, floor = alike[f"like-{measure}-{_name(rule, seed)}"], alike[f"like-{measure}-{_name(UNTRAINED, seed)}"]
        other = alike.get(f"like-{measure}-{_name(TWIN, seed)}-s{(seed + 1) % len(seeds)}")
        there = aligned[_name(rule, seed)]
        for i, found in enumerate(mine["blocks"]):
            between = "" if other is None else other["blocks"][i][0]
            extra = [between, floor["blocks"][i][0], there["cosines"][i], there["nulls"][i]]
            rows.append([rule, seed, i + 1, measure, *found, *extra, mine["dimensions"][i], mine["others"][i]])
    answer = _answer(rows)
    text = f"{notes}; width {width:g}, {images:,} images, {epochs} epochs, Adam {LR:g}"
    compared = (
        f"{text}; similarity of a rule's blocks with those of {TWIN} from the same weights, {shown:,} test images "
        f"(means over positions); jackknife over images, permutation null; between_twins: {TWIN} of this seed and the "
        f"next; untrained: the twin and its own start; cosine: of weight gradients with {TWIN} (B^L fitted) at the end"
    )
    evaluate.to_csv(settings.out / "similarity.csv", HEADER, rows, compared)
    asked = (
        "Spearman of similarity and cosine over rules, blocks and seeds; 95 % bootstrap over runs; depth removed: less "
        "the mean of the block; each block: over rules and seeds"
    )
    header = ["measure", "over", "correlation", "low", "high", "points"]
    evaluate.to_csv(settings.out / "answer.csv", header, answer, f"{text}; {asked}")
    _spatial(settings, seeds, text)
    _figure(rows, settings.out / "brain.png", text)
    for row in answer[: 2 * len(MEASURES)]:
        print(f"{row[0]}, {row[1]}: Spearman {row[2]} [{row[3]}, {row[4]}] over {row[5]} points")
    print(f"written: {settings.out / 'similarity.csv'}, answer.csv, spatial.csv, brain.png")


def _name(rule: str, seed: int) -> str:
    return f"{rule}-s{seed}"


def _nothing(run: Run, settings: Settings) -> dict[str, Any]:
    """Of the twin and of untrained encoders nothing is measured alone."""
    return {}


def _aligned(run: Run, settings: Settings) -> dict[str, Any]:
    """Cosine of every block's weight gradients with backpropagation's, at the end of training, on test images."""
    learner, _ = run.trained_learner()
    learner.eval()
    n, seed = run.config.batch_size, run.config.seed
    images = run.images("test")
    pairs = evaluate.view_batches(run, images, BATCHES, n, seed + 2)
    fit = evaluate.view_batches(run, run.images("train"), FIT_BATCHES, n, seed + 3)
    found = alignment.measure(learner.encoder, learner, pairs, TWIN, fit=fit)
    cosines = [r for r in found if (r.quantity, r.parameter) == ("cosine", "weights")]
    return {
        "cosines": [round(r.mean, 5) for r in cosines],
        "nulls": [round(r.null, 5) for r in cosines],
        "notes": "; ".join(images.facts) or images.name,
    }


def _alike(settings: Settings, rule: str, seed: int, of: int, measure: str, shown: int) -> dict[str, Any]:
    """Block by block: similarity of a run with the twin of seed ``of``, and how many dimensions both fill."""
    one, other = (_activities(settings, *run, shown) for run in ((rule, seed), (TWIN, of)))
    found = [represent.similarity(one[b], other[b], measure) for b in one]
    return {
        "blocks": [[round(v, 5) for v in (s.value, s.low, s.high, s.null, s.p)] for s in found],
        "dimensions": [round(represent.participation_ratio(x), 3) for x in one.values()],
        "others": [round(represent.participation_ratio(x), 3) for x in other.values()],
    }


def _activities(settings: Settings, rule: str, seed: int, shown: int) -> represent.Activities:
    """Of the first test images, kept as .npz for whoever wants to compare them with something else."""
    file = settings.out / "activities" / f"{_name(rule, seed)}.npz"
    if not file.is_file():
        run = open_run(settings.out / "runs" / _name(rule, seed))
        images = run.images("test", limit=shown)
        file.parent.mkdir(parents=True, exist_ok=True)
        described: dict[str, Any] = {} if images.labels is None else {"label": images.labels}
        x = images.batch(torch.arange(len(images)))
        represent.activities(checkpoint.load(run.path), x, **described).save(file)
    return represent.load(file)


def _answer(rows: Sequence[Sequence[object]]) -> list[list[object]]:
    """Correlation of similarity and alignment for every measure: over all, without depth, and block by block."""
    found: list[list[object]] = []
    for measure in MEASURES:
        mine = [dict(zip(HEADER, row, strict=True)) for row in rows if row[3] == measure]
        blocks = sorted({int(str(r["block"])) for r in mine})
        if len(blocks) > 1:
            mine = [r for r in mine if r["block"] != blocks[-1]]  # the last block's gradient is its own on both sides
        for over, chosen in (("all", mine), ("depth removed", _less_depth(mine))):
            found.append([measure, over, *_correlation(chosen), len(chosen)])
        for block in blocks[: max(1, len(blocks) - 1)]:
            chosen = [r for r in mine if r["block"] == block]
            found.append([measure, f"block {block}", *_correlation(chosen), len(chosen)])
    return sorted(found, key=lambda row: str(row[1]).startswith("block"))


def _correlation(rows: Sequence[Mapping[str, Any]]) -> list[object]:
    x, y = ([float(r[key]) for r in rows] for key in ("cosine", "similarity"))
    value = cluster_rank_correlation(x, y, [(r["rule"], r["seed"]) for r in rows])
    return ["" if v != v else round(v, 4) for v in value]


def _less_depth(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    changed: list[dict[str, Any]] = []
    for r in rows:
        alike = [q for q in rows if q["block"] == r["block"]]
        less = {key: float(r[key]) - float(np.mean([q[key] for q in alike])) for key in ("cosine", "similarity")}
        changed.append({**r, **less})
    return changed


def _spatial(settings: Settings, seeds: Sequence[int], text: str) -> None:
    """Strength of learnt B against distance on the map, over seeds, for every rule, projection and block with a map."""
    values: dict[tuple[str, str, int, float], list[float]] = {}
    for rule in RULES[1:]:  # clapp's B knows no places
        for seed in seeds:
            learner, _ = open_run(settings.out / "runs" / _name(rule, seed)).trained_learner()
            for shape in represent.shapes(learner):
                for d in shape.rows:
                    values.setdefault((rule, shape.key, shape.block, d.distance), []).append(d.strength)
    rows = [[*place, *(round(v, 4) for v in t_interval(found)), len(found)] for place, found in values.items()]
    header = ["rule", "projection", "block", "distance", "strength", "low", "high", "seeds"]
    comment = (
        f"{text}; mean |B| between two patches over the mean of all pairs, by the distance of their centres in patches "
        f"of the finer map; 95 % t interval over seeds"
    )
    evaluate.to_csv(settings.out / "spatial.csv", header, rows, comment)


def _figure(rows: Sequence[Sequence[object]], path: Path, text: str) -> None:
    points = [
        brain_figure.Point(str(r[3]), str(r[0]), int(str(r[2])), float(str(r[11])), float(str(r[4]))) for r in rows
    ]
    brain_figure.draw(points, path, text)
