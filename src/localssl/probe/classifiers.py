"""Classifiers on fixed features: L2-regularised logistic regression and nearest neighbours. Test labels never enter."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

STRENGTHS = (10.0, 1.0, 0.1, 0.01, 1e-3, 1e-4)  # tried from strong to weak, each from the last one's solution
FIXED_STRENGTH = 0.01  # where no label can be held out; with so few, accuracy hardly depends on it
TOLERANCE = 1e-7  # nats: the fit ends when a step lowers the loss by less
PATH_TOLERANCE = 1e-5  # the same while a strength is being chosen
NEIGHBOURS = 20
TEMPERATURE = 0.07


Split: TypeAlias = int | tuple[Tensor, Tensor] | None


class Linear(NamedTuple):
    """Weights (..., d, K) and biases (..., 1, K); leading dimensions are independent problems."""

    weight: Tensor
    bias: Tensor

    def logits(self, x: Tensor) -> Tensor:
        """Scores (..., n, K) of features (..., n, d)."""
        return x @ self.weight + self.bias


def gram(x: Tensor) -> Tensor:
    """Second moments (..., d, d) of features (..., n, d)."""
    return x.mT @ x / x.shape[-2]


def _preconditioner(second_moments: Tensor, n_classes: int, strength: float) -> Tensor:
    """Lower Cholesky factor of about the Hessian at zero weights; more damping where float32 cannot factor it."""
    damping = strength
    while True:
        hessian = second_moments / n_classes
        hessian.diagonal(dim1=-2, dim2=-1).add_(damping)
        factor, info = torch.linalg.cholesky_ex(hessian)
        if not info.any():
            return factor
        if not hessian.isfinite().all():
            raise ValueError("logistic regression needs finite features")
        damping *= 10


@torch.no_grad()
def fit_logistic(
    x: Tensor,
    y: Tensor,
    n_classes: int,
    strength: float,
    *,
    second_moments: Tensor | None = None,
    start: Linear | None = None,
    tolerance: float = TOLERANCE,
) -> Linear:
    """Multinomial logistic regression: minimise mean cross-entropy + strength / 2 * ||W||^2, bias unregularised.

    L-BFGS with a strong Wolfe line search from zero (or ``start``), in coordinates in which the Hessian is about the
    identity: some 20 evaluations instead of hundreds, and the same minimiser.

    Args:
        x: features (..., n, d); leading dimensions are independent problems, fitted together.
        y: labels 0..K-1, (..., n).
        n_classes: K.
        strength: of the L2 penalty.
        second_moments: ``gram`` of about the same features, only to speed up; None: computed here.
        start: weights to start from.
        tolerance: in nats; the fit ends when a step lowers the loss (summed over the problems) by less.
    """
    n, d = x.shape[-2:]
    batch = x.shape[:-2]
    factor = _preconditioner(gram(x) if second_moments is None else second_moments, n_classes, strength)
    bias_scale = n_classes**0.5
    targets = F.one_hot(y, n_classes).to(x.dtype)
    v = x.new_zeros(*batch, d, n_classes) if start is None else factor.mT @ start.weight
    b = x.new_zeros(*batch, 1, n_classes) if start is None else start.bias / bias_scale
    optimiser = torch.optim.LBFGS(
        [v, b],
        max_iter=1000,
        history_size=10,
        tolerance_grad=0.0,
        tolerance_change=tolerance,
        line_search_fn="strong_wolfe",
    )

    def solution() -> Linear:
        return Linear(torch.linalg.solve_triangular(factor.mT, v, upper=True), b * bias_scale)

    @torch.no_grad()
    def loss_and_gradient() -> Tensor:
        model = solution()
        log_p = model.logits(x).log_softmax(-1)
        loss = -(log_p * targets).sum() / n + strength / 2 * model.weight.square().sum()
        residual = (log_p.exp_() - targets) / n
        slope = (residual.mT @ x).mT + strength * model.weight
        v.grad = torch.linalg.solve_triangular(factor, slope, upper=False).contiguous()
        b.grad = residual.sum(-2, keepdim=True) * bias_scale
        return loss

    optimiser.step(loss_and_gradient)  # pyright: ignore[reportArgumentType]
    return solution()


def choose_strength(
    x: Tensor, y: Tensor, x_held: Tensor, y_held: Tensor, n_classes: int, second_moments: Tensor
) -> tuple[float, Linear]:
    """The strength with the best held-out accuracy (ties: lower cross-entropy), and its weights, to start from.

    Leading dimensions are the folds of a cross-validation: one strength for all, by the accuracy over all held-out
    rows. The path ends early once that accuracy has fallen by more than a standard error.

    Args:
        x, y: features (..., n, d) and labels (..., n) to fit.
        x_held, y_held: the held-out part, (..., m, d) and (..., m).
        n_classes: K.
        second_moments: see ``fit_logistic``.
    """
    best_score, best_strength, best_model = (-1.0, 0.0), STRENGTHS[0], None
    model: Linear | None = None
    for strength in STRENGTHS:
        model = fit_logistic(
            x, y, n_classes, strength, second_moments=second_moments, start=model, tolerance=PATH_TOLERANCE
        )
        logits = model.logits(x_held)
        accuracy = float((logits.argmax(-1) == y_held).float().mean())
        loss = float(F.cross_entropy(logits.flatten(0, -2), y_held.flatten()))
        if best_model is None or (accuracy, -loss) > best_score:
            best_score, best_strength, best_model = (accuracy, -loss), strength, model
        elif accuracy < best_score[0] - (best_score[0] * (1 - best_score[0]) / y_held.numel()) ** 0.5:
            break
    assert best_model is not None
    return best_strength, best_model


def fit_chosen(
    x: Tensor, y: Tensor, n_classes: int, split: Split, second_moments: Tensor | None = None
) -> tuple[Linear, float]:
    """Choose the strength within these rows, then fit them all: the classifier and the strength.

    Args:
        x, y: features (n, d) and labels 0..K-1 (n,).
        n_classes: K.
        split: an int: rows from there on are held out; two index tensors (folds, rows): what each fold fits and what
            it holds out; None: nothing can be held out, the strength is ``FIXED_STRENGTH``.
        second_moments: ``gram(x)`` if it is known already.
    """
    basis = None
    if x.shape[0] < x.shape[1]:
        # the solution lies in the span of the rows, and rotating there leaves the penalty as it is: far fewer unknowns
        basis = torch.linalg.qr(x.mT).Q
        x, second_moments = x @ basis, None
    if second_moments is None:
        second_moments = gram(x)
    if split is None:
        strength, start = FIXED_STRENGTH, None
    elif isinstance(split, int):
        strength, start = choose_strength(x[:split], y[:split], x[split:], y[split:], n_classes, second_moments)
    else:
        fit, held = split
        strength, folds = choose_strength(x[fit], y[fit], x[held], y[held], n_classes, second_moments)
        start = Linear(folds.weight.mean(0), folds.bias.mean(0))
    model = fit_logistic(x, y, n_classes, strength, second_moments=second_moments, start=start)
    return (model if basis is None else Linear(basis @ model.weight, model.bias)), strength


@torch.no_grad()
def nearest_neighbours(
    x: Tensor, y: Tensor, x_test: Tensor, n_classes: int, *, k: int = NEIGHBOURS, chunk: int = 512
) -> Tensor:
    """Labels (m,): the ``k`` most similar rows vote, weighted by exp(cosine / 0.07); a tie goes to the lowest label.

    Rows as similar as the k-th all vote, and what differs by rounding is a tie: the order of the rows does not matter.

    Args:
        x, y: features (n, d) and labels 0..K-1 (n,) of the voters; ``k`` is clipped to n.
        x_test: features (m, d).
        n_classes: K.
        k: number of neighbours.
        chunk: rows of ``x_test`` at a time.
    """
    k = min(k, len(x))
    targets = F.one_hot(y, n_classes).to(x.dtype)
    voters = F.normalize(x, dim=1)
    votes: list[Tensor] = []
    for rows in x_test.split(chunk):
        cosine = F.normalize(rows, dim=1) @ voters.mT
        least = cosine.topk(k, dim=1).values[:, -1:] - 1e-6  # a margin for rounding
        votes.append(cosine.sub(1).div_(TEMPERATURE).exp_().masked_fill_(cosine < least, 0) @ targets)
    total = torch.cat(votes)
    return (total >= total.amax(1, keepdim=True) * (1 - 1e-5)).int().argmax(1)
