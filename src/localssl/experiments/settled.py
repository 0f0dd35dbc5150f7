"""What limits a rule, against how long B̂ was fitted: does the split between objective and lag settle?

In Figure 3B's networks. B̂ is trained on the rule's own loss at the frozen weights with new crops of all training images
in every pass, so that it cannot learn them by heart; the loss on test crops says how far it has come.
"""

from __future__ import annotations

import copy
from typing import Any

from localssl import evaluate
from localssl.alignment import Pair, decompose, fit_projections, mean_losses
from localssl.experiments import fig3b
from localssl.experiments.cells import Part, Settings, run_cells

LINES, PASSES = ("local-SSL", "local-SSL DFB"), (2, 8, 32)
BATCH = 256  # of the fits; the rule's own training has fig3b's


def run(settings: Settings) -> None:
    """Whether "what limits a rule" settles: Figure 3B's networks, B fitted for 2 to 32 passes (not timed)."""
    seeds = range(settings.seeds or 1)
    parts = [Part(f"{line.lower().replace(' ', '-')}-s{seed}", cell, (line, seed)) for seed in seeds for line in LINES]
    records = run_cells(parts, settings)
    rows = [[*r["config"], *row] for r in records for row in r["rows"]]
    header = ["line", "seed", "passes", "block", "part", "mean", "low", "high", "own_loss"]
    comment = (
        f"{records[0]['data']}; parts of 1 - cosine after {fig3b.EPOCHS[-1]} epochs of fig3b, gates of the present B; "
        f"B^ after so many passes over new crops of all training images (Adam 1e-3 falling to 0, batches of {BATCH}); "
        f"own_loss: of that B^ on {fig3b.TEST_BATCHES} test batches (passes 0: the present B); 95 % t interval over "
        f"these batches"
    )
    evaluate.to_csv(settings.out / "settled.csv", header, rows, comment)
    print(f"written: {settings.out / 'settled.csv'}")


def cell(settings: Settings, line: str, seed: int) -> dict[str, Any]:
    """Train, then fit from the same start for every number of passes."""
    images, test, name = fig3b.data(settings)
    *_, (_, learner) = fig3b.epochs(images, line, seed)
    print("trained", flush=True)
    held_out, fit = fig3b.pairs(test, fig3b.TEST_BATCHES, seed), fig3b.pairs(images, fig3b.FIT_BATCHES, seed + 1)

    def crops(epoch: int) -> list[Pair]:
        return fig3b.pairs(images, len(images) // BATCH, 1_000 * (seed + 1) + epoch, BATCH)

    rows: list[list[object]] = []
    for passes in (0, *PASSES):
        settled = copy.deepcopy(learner, {id(learner.encoder): learner.encoder})
        fit_projections(settled, crops, passes)
        losses = mean_losses(settled, held_out)
        for r in decompose(learner, fit, held_out, settled=settled):
            numbers = [round(v, 5) for v in (r.mean, r.low, r.high, losses[r.block - 1])]
            rows.append([passes, r.block, r.part, *numbers])
        print(f"{passes} passes: own losses {' '.join(f'{loss:.4f}' for loss in losses)}", flush=True)
    return {"data": name, "rows": rows}
