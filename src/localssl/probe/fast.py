"""The fast protocol: features computed once, regularised logistic regression, nearest neighbours."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from localssl.errors import UsageError
from localssl.probe import budgets as bg
from localssl.probe import classifiers as cl
from localssl.probe.activity import diverged
from localssl.probe.result import ProbeResult, Row, percent, row

CHOSEN = " without test labels ("  # in a protocol; what follows says for each budget how the strength is chosen


@torch.no_grad()
def fast_probe(
    train_features: Sequence[Tensor],
    train_labels: Tensor | None,
    test_features: Sequence[Tensor],
    test_labels: Tensor | None,
    *,
    labels: Sequence[str] = ("all",),
    draws: int = 5,
    seed: int = 0,
    layers: Sequence[str] = ("each", "all"),
    knn: bool = True,
    classes: Sequence[str] = (),
    report: Callable[[int, int], None] | None = None,
) -> ProbeResult:
    """Probe of features computed once: L2-regularised logistic regression and, with ``knn``, nearest neighbours.

    Features are standardised with mean and standard deviation of all training images; features that do not vary there
    are left at 0. The strength of the penalty is chosen within the label budget: on a stratified fifth of all labels,
    by 5-fold cross-validation within 10 labels per class; with 1 it is fixed. The classifier is then fitted on the
    whole budget. Test labels serve for the accuracy alone.

    Args:
        train_features, test_features: per block (N, d_l), as from ``localssl.probe.activity.features``.
        train_labels, test_labels: integers (N,).
        labels: label budgets per class, of "1", "10", "all".
        draws: random draws of the labels for "1" and "10"; the same for every encoder.
        seed: of the draws and of what is held out.
        layers: "each" block alone, "all" together, or both.
        knn: whether to add the kNN accuracy (its cost grows with the product of the numbers of images).
        classes: the name of each label, for error messages.
        report: called after every accuracy with the number of those that are done and of all.

    Raises:
        UsageError: labels that are missing or too few, features that are not finite or do not fit together, unknown
            options.
    """
    y = bg.check_labels(train_labels, test_labels, classes)
    bg.check_budgets(labels)
    if draws < 1:
        raise UsageError(f"draws is {draws}; use one or more")
    if not layers or not set(layers) <= {"each", "all"}:
        raise UsageError(f"layers is {tuple(layers)}; choose 'each', 'all' or both")
    _check_features(train_features, test_features, len(y.train), len(y.test))
    n_classes = len(y.names)
    drawn = {b: bg.draw(y, int(b), draws, seed) for b in labels if b != "all"}
    order, n_fit = bg.hold_out(y, seed)
    rank = order.argsort()
    x, x_test = _standardised(train_features, test_features, order)
    device = x.device
    y_train, y_test = y.train[order.to(y.train.device)].to(device), y.test.to(device)

    parts: list[tuple[str, slice]] = []
    end = 0
    for i, f in enumerate(train_features):
        parts.append((str(i + 1), slice(end, end + f.shape[1])))
        end += f.shape[1]
    parts = (parts if "each" in layers else []) + ([("all", slice(0, end))] if "all" in layers else [])

    rows: list[Row] = []

    def add(found: Row) -> None:
        rows.append(found)
        if report is not None:
            report(len(rows), len(labels) * len(parts) * (2 if knn else 1))

    for budget in labels:
        if budget == "all":
            subsets: list[Tensor | slice] = [slice(None)]
            split: cl.Split = n_fit if n_fit < len(x) else None
        else:
            subsets = [rank[d.flatten()].to(device) for d in drawn[budget]]
            split = bg.folds(n_classes, int(budget))
        # the blocks of the large matrix serve the layers, too
        shared = cl.gram(x) if budget == "all" and "all" in layers and len(x) >= x.shape[1] else None
        for name, part in parts:
            accuracies: list[float] = []
            strengths: list[float] = []
            moments = None if shared is None else shared[part, part]
            for subset in subsets:
                model, strength = cl.fit_chosen(x[subset, part], y_train[subset], n_classes, split, moments)
                accuracies.append(percent(model.logits(x_test[:, part]).argmax(1), y_test))
                strengths.append(strength)
            add(row(name, "linear", budget, accuracies, part.stop - part.start, strengths))
        for name, part in parts if knn else []:
            accuracies = [
                percent(cl.nearest_neighbours(x[s, part], y_train[s], x_test[:, part], n_classes), y_test)
                for s in subsets
            ]
            add(row(name, "knn", budget, accuracies, part.stop - part.start))
    return ProbeResult(tuple(rows), _protocol(labels, draws, n_fit < len(x), knn, len(x)))


def of_both(old: str, new: str) -> str | None:
    """The protocol of accuracies by either of two; None where they differ in more than how budgets are treated."""
    (head, _, rest), (new_head, _, new_rest) = old.partition(CHOSEN), new.partition(CHOSEN)
    (texts, _, tail), (new_texts, _, new_tail) = rest.partition(")."), new_rest.partition(").")
    if not new_rest or (head, tail) != (new_head, new_tail):
        return None
    both = {text.partition(" ")[0]: text for text in [*texts.split("; "), *new_texts.split("; ")]}
    return f"{head}{CHOSEN}{'; '.join(both[b] for b in bg.BUDGETS if b in both)}).{tail}"


def _check_features(train: Sequence[Tensor], test: Sequence[Tensor], n: int, m: int) -> None:
    if not train or len(train) != len(test):
        raise UsageError(f"features of {len(train)} blocks to train and {len(test)} to test; give the same encoder's")
    for i, (a, b) in enumerate(zip(train, test, strict=True)):
        if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[1]:
            raise UsageError(
                f"block {i + 1}: training features {tuple(a.shape)} and test features {tuple(b.shape)} do not fit; "
                "both must be (N, d) with the same d"
            )
        if len(a) != n or len(b) != m:
            raise UsageError(f"block {i + 1}: features of {len(a)} + {len(b)} images, labels of {n} + {m}")


def _standardised(train: Sequence[Tensor], test: Sequence[Tensor], order: Tensor) -> tuple[Tensor, Tensor]:
    """All blocks side by side, (N, d) and (M, d), training rows in ``order``; constant features are 0."""
    first = train[0]
    d = sum(f.shape[1] for f in train)
    x, x_test = first.new_empty(len(first), d), first.new_empty(len(test[0]), d)
    order = order.to(first.device)
    start = 0
    for i, (a, b) in enumerate(zip(train, test, strict=True)):
        part = slice(start, start + a.shape[1])
        mean = a.mean(0)
        torch.sub(a, mean, out=x[:, part])
        std = x[:, part].square().mean(0).sqrt()
        if not bool(std.isfinite().all() & b.sum().isfinite()):
            raise diverged(i + 1)
        varies = std > 1e-5 * mean.abs()  # below that it is rounding
        scale = torch.where(varies, 1 / std, 0)
        x[:, part] = x[order, part].mul_(scale)
        torch.sub(b, mean, out=x_test[:, part]).mul_(scale)
        start = part.stop
    return x, x_test


def _protocol(labels: Sequence[str], draws: int, can_hold_out: bool, knn: bool, n: int) -> str:
    fixed = f"fixed at {cl.FIXED_STRENGTH:g}, nothing to hold out"
    mean = f", mean of {draws} stratified draws" if draws > 1 else ", one stratified draw"
    held_out = f"on a stratified {bg.HELD_OUT:.0%} of the training labels, then refitted on all {n:,}"
    chosen = {
        "1": f"1 label per class: {fixed}{mean}",
        "10": f"10 labels per class: by {bg.FOLDS}-fold cross-validation within the drawn labels{mean}",
        "all": f"all labels: {held_out if can_hold_out else fixed}",
    }
    text = (
        "Fast protocol: frozen encoder as given (its last weights, no epoch chosen), patch-averaged features computed "
        "once without augmentation, standardised on the training images. Linear: multinomial logistic regression with "
        f"an L2 penalty, L-BFGS until a step gains less than {cl.TOLERANCE:g} nats, strength chosen by accuracy from "
        f"{', '.join(f'{s:g}' for s in cl.STRENGTHS)}{CHOSEN}{'; '.join(chosen[b] for b in labels)})."
    )
    if knn:
        text += (
            f" kNN: cosine similarity of the same features, {cl.NEIGHBOURS} neighbours (or all labels, if fewer), "
            f"votes weighted by exp(similarity / {cl.TEMPERATURE:g})."
        )
    return text
