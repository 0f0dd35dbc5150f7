"""The peers' own linear probes: dropout, Adam, features anew for every batch, test accuracy after the last epoch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HALVED_AT = (0.2, 0.35, 0.5, 0.6, 0.7, 0.8, 0.9)  # of all epochs: SCFF's and SoftHebb's
Features = Callable[[Tensor], Tensor]  # of image numbers (n,): (n, d), or (n, copies, d)


@dataclass(frozen=True)
class OwnProbe:
    """A published probe.

    Args:
        lr: Adam's rate at first.
        epochs, batch: as they say.
        dropout: on the features.
        schedule: "halved" (at ``HALVED_AT``), "cosine" or "constant".
        decoupled: AdamW (PyTorch's decay of 0.01) in place of Adam.
        squared: a class's score is the sum over copies of the squared output, over copies - 1 (Stochastic FF).
    """

    lr: float = 1e-3
    epochs: int = 50
    batch: int = 64
    dropout: float = 0.0
    schedule: str = "halved"
    decoupled: bool = False
    squared: bool = False

    def rate(self, epoch: int) -> float:
        """Learning rate of an epoch, from 0."""
        if self.schedule == "halved":
            return self.lr * 0.5 ** sum(epoch >= int(self.epochs * share) for share in HALVED_AT)
        return self.lr * ((1 + math.cos(math.pi * epoch / self.epochs)) / 2 if self.schedule == "cosine" else 1.0)


def accuracy(
    train: Features, y: Tensor, test: Features, y_test: Tensor, how: OwnProbe, seed: int, every: int | None = None
) -> tuple[float, float]:
    """Test accuracies (%) after the last epoch, and of the best of those that were tested (``every`` so many)."""
    torch.manual_seed(seed)
    width = test(torch.arange(1)).shape[-1]
    classifier = nn.Sequential(nn.Dropout(how.dropout), nn.Linear(width, int(y.max()) + 1))
    kind = torch.optim.AdamW if how.decoupled else torch.optim.Adam
    optimiser = kind(classifier.parameters(), lr=how.lr)
    last = best = 0.0
    for epoch in range(how.epochs):
        optimiser.param_groups[0]["lr"] = how.rate(epoch)
        total = 0.0
        for index in torch.randperm(len(y)).split(how.batch):
            loss = F.cross_entropy(_scores(classifier, train(index), how), y[index])
            optimiser.zero_grad()
            loss.backward()  # pyright: ignore[reportUnknownMemberType]
            optimiser.step()
            total += float(loss.detach()) * len(index)
        if epoch % 10 == 9:
            print(f"probe, epoch {epoch + 1} of {how.epochs}: loss {total / len(y):.4f}", flush=True)
        if epoch + 1 == how.epochs or (every and epoch % every == 0):
            last = _tested(classifier, test, y_test, how)
            best = max(best, last)
    return last, best


def _scores(classifier: nn.Module, x: Tensor, how: OwnProbe) -> Tensor:
    out: Tensor = classifier(x)
    return out.square().sum(1) / (out.shape[1] - 1) if how.squared else out


@torch.no_grad()
def _tested(classifier: nn.Module, test: Features, y: Tensor, how: OwnProbe) -> float:
    classifier.eval()
    right = sum(
        int((_scores(classifier, test(index), how).argmax(1) == y[index]).sum())
        for index in torch.arange(len(y)).split(500)
    )
    classifier.train()
    return round(100 * right / len(y), 2)
