"""Evaluation of a run: probe and alignment, always beside the untrained encoder of the same seed, as rows of text."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from localssl import alignment, own
from localssl.data.sources import Images
from localssl.data.views import PATCHES, Normalise
from localssl.encoders import Encoder
from localssl.errors import RunError, UsageError, unknown
from localssl.probe import ProbeResult, budgets, fast_probe, features, paper_probe
from localssl.probe.activity import few, settle
from localssl.probe.fast import of_both
from localssl.runs.run import Run, get_rule
from localssl.system import devices
from localssl.system.files import write_text
from localssl.system.slow import Slow

PAPER_EPOCHS = 300


@dataclass(frozen=True)
class ProbeOptions:
    """How a run is probed.

    Args:
        protocol: "fast" or "paper".
        labels: budgets of labels per class, of "1", "10", "all" (fast protocol).
        draws: draws of the labels for the small budgets.
        epochs: of the paper's protocol.
        limit: probe on this many training images; None: all.
        device: "cpu", "cuda", "mps" or "auto".
        skip_bad: leave out images that cannot be decoded, also where training did not.
    """

    protocol: str = "fast"
    labels: tuple[str, ...] = ("all",)
    draws: int = 5
    epochs: int = PAPER_EPOCHS
    limit: int | None = None
    device: str = "cpu"
    skip_bad: bool = False


def probe_run(
    run: Run,
    options: ProbeOptions,
    data: str | None = None,
    root: Path | None = None,
    report: Callable[[str], None] | None = None,
) -> dict[str, ProbeResult]:
    """Probe the trained and the untrained encoder of a run: {"untrained": …, rule: …}.

    Args:
        run: the run.
        options: how.
        data: another data set than the one trained on.
        root: where the data lie; None: where training found them.
        report: receives the lines that are said where it takes long; None: they are printed.

    Raises:
        UsageError: no run, images without labels, a device that is not there.
        RunError: the device's memory is full.
    """
    device = devices.choose(options.device)
    encoders: dict[str, Encoder] = {"untrained": run.learner().encoder, run.config.rule: run.encoder()}
    train = run.images("train", root, data, options.limit, options.skip_bad)
    test = run.images("test", root, data, skip_bad=options.skip_bad)
    results: dict[str, ProbeResult] = {}
    for name, encoder in encoders.items():
        try:
            found = probe_encoder(run, encoder, train, test, options, name, report)
        except (MemoryError, RuntimeError) as error:
            if not devices.out_of_memory(error):
                raise
            advice = "use a smaller --limit-images" + ("" if device.type == "cpu" else " or --device cpu")
            raise RunError(f"out of memory on {device.type}; {advice}") from error
        tested = f"{found.protocol} Accuracy: on {len(test):,} test images."
        results[name] = replace(found, protocol=with_facts(tested, train, test))
    return results


def with_facts(protocol: str, *images: Images) -> str:
    """A protocol, and before it what the images were: "CIFAR-10 (JPEG)", a part of them, a held-out test part."""
    facts = list(dict.fromkeys(fact for part in images for fact in part.facts))
    return f"{'; '.join(facts)}. {protocol}" if facts else protocol


def probe_encoder(
    run: Run,
    encoder: Encoder,
    train: Images,
    test: Images,
    options: ProbeOptions,
    name: str = "encoder",
    report: Callable[[str], None] | None = None,
) -> ProbeResult:
    """Probe one encoder, called ``name`` while it takes long, with the run's patches and normalisation."""
    c = run.config
    device = devices.choose(options.device)
    patches, normalise = c.patches, run.normalise()  # the run's patches, whatever the rule makes of them
    _settle(encoder, train, normalise, device)
    if options.protocol == "paper":
        return paper_probe(
            encoder,
            train,
            test,
            patches=patches,
            normalise=normalise,
            augmentation=c.augmentation,
            epochs=options.epochs,
            weight_decay=c.weight_decay,
            device=device,
            seed=c.seed,
            report=Slow(f"{name}: epoch {{done}} of {{total}}", report),
        )
    labels = budgets.check_labels(train.labels, test.labels, train.classes, train.name)
    for budget in options.labels:
        if budget != "all":  # here, not after the minutes that the features may take
            budgets.draw(labels, int(budget), options.draws, c.seed)
    parts = [
        features(
            encoder,
            images,
            patches=patches,
            normalise=normalise,
            device=device,
            report=Slow(f"{name}: features of {{done}} of {{total}} {images.split} images", report),
        )
        for images in (train, test)
    ]
    return fast_probe(
        parts[0],
        train.labels,
        parts[1],
        test.labels,
        labels=options.labels,
        draws=options.draws,
        seed=c.seed,
        report=Slow(f"{name}: {{done}} of {{total}} accuracies", report, even=False),
    )


@dataclass(frozen=True)
class AlignOptions:
    """How the alignment of a run is measured.

    Args:
        batches: batches of test images; the intervals are over them.
        batch_size: images in each; None: as in training, or a tenth of the test images (20 at least) where not even
            two would fit.
        reference: "own", "bp-clapp++" or "bp-infonce", see ``alignment.measure``.
        fit_batches: batches of training images on which a reference's B^L or head is fitted.
        skip_bad: leave out images that cannot be decoded, also where training did not.
    """

    batches: int = 10
    batch_size: int | None = None
    reference: str = "own"
    fit_batches: int = 32
    skip_bad: bool = False


@dataclass(frozen=True)
class AlignResult:
    """Alignment of a run at its last checkpoint."""

    rule: str
    reference: str
    step: int
    protocol: str
    rows: list[alignment.LayerAlignment]


def align_run(
    run: Run, options: AlignOptions = AlignOptions(), data: str | None = None, root: Path | None = None
) -> AlignResult:
    """Alignment of a run's rule at its last checkpoint, on batches of test images.

    Raises:
        UsageError: no checkpoint, fewer test images than one batch, an unknown reference, or "own" where the rule's
            updates descend no loss.
    """
    learner, step = run.trained_learner()
    learner.eval()
    n = options.batch_size or run.config.batch_size
    if options.batches < 1 or n < 2 or options.fit_batches < 1:
        raise UsageError(
            f"align needs --batches >= 1, --batch-size >= 2 and --fit-batches >= 1, "
            f"got {options.batches}, {n} and {options.fit_batches}"
        )
    if options.reference not in alignment.REFERENCES:
        raise unknown("reference", options.reference, alignment.REFERENCES)
    images = run.images("test", root, data, skip_bad=options.skip_bad)
    smaller = options.batch_size is None and options.batches > 1 and 20 <= len(images) < 2 * n
    size = len(images) // 10 if smaller else n
    pairs = view_batches(run, images, options.batches, size, seed=run.config.seed + 2)
    fit = None
    if options.reference not in ("own", run.config.rule):
        fit = view_batches(
            run,
            run.images("train", root, data, skip_bad=options.skip_bad),
            options.fit_batches,
            n,
            seed=run.config.seed + 3,
        )
    rows = alignment.measure(learner.encoder, learner, pairs, options.reference, fit=fit)
    jackknifed = ", ".join(alignment.OVER_BATCHES)
    count = f"{len(pairs)} batches" if len(pairs) > 1 else "1 batch (so no interval, no null: lower --batch-size)"
    fewer = f" (not {options.batches}: there are no more test images)" if 1 < len(pairs) < options.batches else ""
    trained = f" (not {run.config.batch_size} as in training: two would not fit)" if smaller else ""
    protocol = (
        f"weight gradients on {count}{fewer} of {size}{trained} test images of {images.name}, {_views_of(run)} each; "
        f"same weights, views and negatives; mean and 95 % interval over batches (t; of {jackknifed} "
        f"jackknife, which may leave -1 to 1); null: the rule's gradient of one batch against the reference's of "
        f"another"
    )
    return AlignResult(own.short_name(run.config.rule), rows[0].reference, step, with_facts(protocol, images), rows)


def _views_of(run: Run) -> str:
    made_by = run.config.views
    if made_by is None:
        return "two augmented views"
    return "two patches" if made_by == PATCHES else f"two views by {own.short_name(made_by)}"


def first_reference(run: Run) -> str:
    """What ``AlignOptions.reference`` to begin with: "own", where the run's rule has a loss to be held against."""
    held = alignment.refusal(get_rule(run.config.rule, run.config.rule_options)) is None
    return alignment.REFERENCES[0 if held else 1]


def view_batches(run: Run, images: Images, batches: int, n: int, seed: int) -> list[alignment.Pair]:
    """Up to ``batches`` batches of ``n`` images, each as two views as in training; the same for the same seed.

    Raises:
        UsageError: fewer images than one batch.
    """
    if len(images) < n:
        split = images.split
        raise UsageError(
            f"{images.name} has {len(images)} {split} images, fewer than a batch of {n}; lower --batch-size"
        )
    views = run.views()
    torch.manual_seed(seed)
    order = torch.randperm(len(images)).split(n)
    indices = [index for index in order if len(index) == n][:batches]
    labels = images.labels
    return [
        alignment.Pair(*views(images.batch(index)), labels=None if labels is None else labels[index])
        for index in indices
    ]


def to_csv(path: Path, header: list[str], rows: list[list[object]], comment: str) -> None:
    """Write rows as CSV with a first line "# comment" that says how the numbers were made."""
    text = io.StringIO()
    text.write(f"# {comment}\n")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, text.getvalue())


PROBE_HEADER = ["encoder", "layer", "method", "labels", "accuracy", "low", "high", "draws", "features", "strength"]
_WHICH = ("layer", "method", "labels")
ALIGN_HEADER = ["rule", "reference", "block", "quantity", "mean", "low", "high", "batches", "null", "parameter"]


def _settle(encoder: Encoder, images: Images, normalise: Normalise, device: torch.device) -> None:
    """Batch norms that were never trained take the statistics of training images."""
    encoder.to(device)
    normalise.to(device)

    def see(rows: torch.Tensor) -> None:
        x = normalise(images.batch(rows).to(device))
        encoder.emitted(x.to(next(encoder.parameters(), x).dtype))

    settle(encoder, see, few(images))


def probe_rows(results: dict[str, ProbeResult]) -> list[list[object]]:
    """Rows under ``PROBE_HEADER``."""
    return [
        [
            own.short_name(name),
            r.layer,
            r.method,
            r.labels,
            round(r.accuracy, 3),
            *_rounded(r.low, r.high),
            r.draws,
            r.features,
            "" if r.strength is None else r.strength,
        ]
        for name, result in results.items()
        for r in result.rows
    ]


def beside_untrained(rows: Iterable[Mapping[str, object]]) -> tuple[list[str], list[list[object]]]:
    """Header and rows of a table to read: every accuracy beside the untrained encoder's, and by how much it is above.

    Args:
        rows: as the CSV has them, by the names of ``PROBE_HEADER``; values may be texts.
    """
    found = list(rows)
    untrained = {tuple(r[k] for k in _WHICH): r for r in found if r["encoder"] == "untrained"}
    lines: list[list[object]] = []
    for r in found:
        below = untrained.get(tuple(r[k] for k in _WHICH))
        if r["encoder"] == "untrained" or below is None:
            continue
        above = f"{float(str(r['accuracy'])) - float(str(below['accuracy'])):+.2f}".replace("-", "−")
        values = [value for row in (r, below) for value in (row["accuracy"], interval(row["low"], row["high"]))]
        lines.append([*(r[k] for k in _WHICH), *values, above])
    header = [*_WHICH, "accuracy", "95 % interval", "untrained", "95 % interval", "difference"]
    shown = [i for i in range(len(header)) if i not in (4, 6) or any(line[4] or line[6] for line in lines)]
    return [header[i] for i in shown], [[line[i] for i in shown] for line in lines]  # one draw has no interval


def with_earlier(path: Path, rows: list[list[object]], protocol: str) -> tuple[list[list[object]], str]:
    """Rows of a probe and its protocol, with those of other label budgets that an earlier one left in ``path``.

    Kept are those of the same encoder (the run has written none since), the same images and the same protocol.
    """
    if not path.is_file() or path.stat().st_mtime < (path.parent / "encoder.safetensors").stat().st_mtime:
        return rows, protocol
    comment, *lines = path.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
    header, *before = list(csv.reader(lines)) or [[]]
    both = of_both(comment.removeprefix("# "), protocol)
    others = set(budgets.BUDGETS) - {str(row[3]) for row in rows}
    kept: list[list[object]] = [[*row] for row in before if len(row) == len(header) and row[3] in others]
    names = list(dict.fromkeys(new[0] for new in rows))
    if header != PROBE_HEADER or both is None or not kept or not {row[0] for row in kept} <= set(names):
        return rows, protocol
    return sorted([*kept, *rows], key=lambda row: (names.index(row[0]), budgets.BUDGETS.index(str(row[3])))), both


def align_rows(result: AlignResult) -> list[list[object]]:
    """Rows under ``ALIGN_HEADER``."""
    return [
        [
            result.rule,
            result.reference,
            r.block,
            r.quantity,
            *_rounded(r.mean, r.low, r.high, digits=5),
            r.batches,
            *_rounded(r.null, digits=5),
            r.parameter,
        ]
        for r in result.rows
    ]


def _rounded(*values: float | None, digits: int = 3) -> list[object]:
    return ["" if v is None or v != v else round(v, digits) for v in values]


def interval(low: object, high: object) -> str:
    """Both ends of an interval for a table; nothing where there is none."""
    return "" if low == "" else f"{low} to {high}"
