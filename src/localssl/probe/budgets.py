"""Which labels a probe may use: checks, the draws of a label budget, and what is held out within it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from localssl.errors import UsageError, unknown

BUDGETS = ("1", "10", "all")  # labels per class
HELD_OUT = 0.2
FOLDS = 5


@dataclass(frozen=True)
class Labels:
    """Checked labels, renumbered 0..K-1: ``train`` (n,) and ``test`` (m,); ``names`` of the K classes."""

    train: Tensor
    test: Tensor
    names: tuple[str, ...]


def check_labels(train: Tensor | None, test: Tensor | None, classes: Sequence[str] = (), data: str = "") -> Labels:
    """Refuse labels that a classifier cannot be trained or judged on.

    Args:
        train, test: integer labels (n,) and (m,).
        classes: the name of each label, for error messages.
        data: name of the data set, for error messages.

    Raises:
        UsageError: no labels, images without one among them, a single class, or a test class without training images.
    """
    for part, y in (("training", train), ("test", test)):
        what = f"the {part} part" + (f" of {data}" if data else "")
        if y is None:
            raise UsageError(f"{what} has no labels; the linear probe needs them")
        if y.dim() != 1 or y.is_floating_point() or y.is_complex():
            raise UsageError(f"labels must be whole numbers of shape (N,), {what} has {y.dtype} {tuple(y.shape)}")
        if len(y) == 0:
            raise UsageError(f"{what} has no images; the linear probe needs some")
        if int(y.min()) < 0:
            raise UsageError(f"{what} has {int((y < 0).sum())} images without a label (negative); leave them out")
    assert train is not None
    assert test is not None

    def name(label: Tensor) -> str:
        return str(classes[int(label)]) if int(label) < len(classes) else str(int(label))

    present = torch.unique(train)
    if len(present) < 2:
        raise UsageError(f"all training images are of class {name(present[0])}; the linear probe needs two classes")
    foreign = test[~torch.isin(test, present)]
    if len(foreign):
        raise UsageError(
            f"the test part has images of class {name(foreign[0])}, the training part none; use more training images"
        )
    names = tuple(name(label) for label in present)
    return Labels(torch.searchsorted(present, train), torch.searchsorted(present, test), names)


def check_budgets(budgets: Sequence[str]) -> None:
    """Refuse label budgets other than ``BUDGETS``.

    Raises:
        UsageError: an unknown one, or none at all.
    """
    if not budgets:
        raise UsageError(f"no label budget given; choose from {', '.join(BUDGETS)}")
    for budget in budgets:
        if budget not in BUDGETS:
            raise unknown("label budget", budget, BUDGETS)


def draw(labels: Labels, per_class: int, draws: int, seed: int) -> list[Tensor]:
    """Row numbers of ``draws`` random choices of ``per_class`` training images of every class, each (K, per_class).

    They depend on labels and seed alone, so every encoder gets the same; with the same seed a smaller budget's images
    are among a larger one's.

    Raises:
        UsageError: a class has fewer images.
    """
    y = labels.train.cpu()
    rows = [(y == c).nonzero()[:, 0] for c in range(len(labels.names))]
    for name, members in zip(labels.names, rows, strict=True):
        if len(members) < per_class:
            raise UsageError(
                f"class {name} has {len(members)} training images, fewer than {per_class} labels per class; "
                "use more images or a smaller budget"
            )
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.stack([members[torch.randperm(len(members), generator=generator)[:per_class]] for members in rows])
        for _ in range(draws)
    ]


def folds(n_classes: int, per_class: int) -> tuple[Tensor, Tensor] | None:
    """Stratified folds of a flattened draw: rows that each fits and holds out, (F, rows); None for one label."""
    n_folds = min(FOLDS, per_class)
    if n_folds < 2:
        return None
    position = torch.arange(n_classes * per_class)
    fold = position % per_class * n_folds // per_class
    held = torch.stack([position[fold == f] for f in range(n_folds)])
    return torch.stack([position[fold != f] for f in range(n_folds)]), held


def hold_out(labels: Labels, seed: int) -> tuple[Tensor, int]:
    """A random order of the training rows that ends with a stratified fifth, and where that fifth begins."""
    y = labels.train.cpu()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    held = torch.zeros(len(y), dtype=torch.bool)
    for c in range(len(labels.names)):
        members = (y[order] == c).nonzero()[:, 0]
        held[members[: round(HELD_OUT * len(members))]] = True
    return torch.cat((order[~held], order[held])), int((~held).sum())
