"""The factors of a score rule's update: modulators, dendritic signal at the readout, change of B (equation 6)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from localssl import losses
from localssl.optimizer import add_grad, leave_factors
from localssl.products import product
from localssl.projections import Dense, Sharded
from localssl.references import take
from localssl.rules.base import Batch, Projections, ScoreRule


def modulators(s_pos: Tensor, s_neg: Tensor, f: str, loss_type: int, margin: float) -> tuple[Tensor, Tensor]:
    """γ⁺ = −dL/ds_pos and γ⁻ = dL/ds_neg of one sample's loss, each (N,) and never negative.

    Hinge: 1[s_pos < m] and 1[s_neg > −m] (type 1: both 1[s_pos − s_neg < m]); softplus: sigmoids in their place;
    linear: 1.
    """
    if loss_type == 1:
        both = modulator(s_pos - s_neg, f, margin)
        return both, both
    return modulator(s_pos, f, margin), modulator(-s_neg, f, margin)


def modulator(x: Tensor, f: str, margin: float) -> Tensor:
    """−f'(x), never negative."""
    if f == "hinge":
        return (x < margin).to(x.dtype)
    return torch.sigmoid(margin - x) if f == "softplus" else torch.ones_like(x)


class Among:
    """The samples of a batch, whose negatives are among them. ``engine.spread`` has batches of several processes."""

    def draw(self, rule: ScoreRule, batch: Batch) -> Tensor:
        """For each of all samples the index of its negative among the positives."""
        return rule.draw(batch)

    def count(self, batch: Batch) -> int:
        """How many samples there are."""
        return 2 * batch.n

    def take(self, negatives: Tensor, z_pos: Tensor) -> Tensor:
        """The negatives of the batch's samples, (2n, d), of the positives (2n, d)."""
        return z_pos[negatives]

    def give(self, negatives: Tensor, rows: Tensor, signal: Tensor) -> None:
        """Add what the samples say to their negatives, (2n, d), to the signals (2n, d) of those."""
        signal.index_add_(0, negatives, rows)

    def own(self, signal: Tensor) -> Tensor:
        """Of the signals (2n, d) those of this process's samples."""
        return signal

    def mean(self, loss: Tensor) -> Tensor:
        """The loss of all samples."""
        return loss


class Change(NamedTuple):
    """A change of B that is still two factors: dL/dg (2n, d_z), or of its columns that are here, and c (2n, d_c).

    ``g`` is what a B that is no matrix learns through, with its graph; None of a matrix, whose change needs no g.
    """

    projection: nn.Module
    g: Tensor | None
    signal: Tensor
    c: Tensor

    def add(self, factored: bool = False) -> None:
        """Add dL/dB to ``.grad``; ``factored``: leave a dense one as the factors that it has."""
        weight = _matrix(self.projection)
        if factored and weight is not None and weight.requires_grad and weight.grad is None:
            leave_factors(weight, self.signal, self.c)
        else:
            change(*self)


def learn(
    rule: ScoreRule,
    batch: Batch,
    layer: int,
    projections: Projections,
    rounded: Callable[[str, Tensor], Tensor] = lambda key, g: g,
    among: Among | None = None,
) -> tuple[Tensor, Tensor, list[Change]]:
    """One layer's losses of all its references.

    Args:
        rule: whose scores they are.
        batch: the readouts; those of ``layer`` and of its references are read.
        layer: which.
        projections: the rule's.
        rounded: what becomes of g = Bc of a reference, (2n, d), before anything uses it.
        among: the samples among which negatives are; None: those of the batch.

    Returns:
        The loss, a scalar; dL/dz of this process's readouts (2n, d), Σ over the samples that use z_j of −γ⁺ Bc (as
        positive) or +γ⁻ Bc (as negative), over the number of samples; the changes of every B, not yet made.
    """
    among = Among() if among is None else among
    z_pos = batch.positives(layer)
    signal = torch.zeros_like(z_pos, dtype=losses.at_least_float32(z_pos[:0]).dtype)
    loss = signal.new_zeros(())
    changes: list[Change] = []
    holder: Sharded | None = None
    columns: Tensor | None = None  # of the signals of a sharded B: those of its rows that are here
    for key, reference in rule.references.items():
        projection = projections[key][layer]
        sharded = projection if type(projection) is Sharded else None
        c = take(reference, batch.z, layer)
        g = rounded(key, predict(projection, c))
        still = losses.at_least_float32(g.detach())
        negatives = among.draw(rule, batch)
        at_pos, at_neg, into = z_pos, among.take(negatives, z_pos), signal
        if sharded is not None:
            holder, columns = sharded, torch.zeros_like(still) if columns is None else columns
            at_pos, at_neg, into = at_pos[:, sharded.rows], at_neg[:, sharded.rows], columns
        scores = losses.score(at_pos, still), losses.score(at_neg, still)
        s_pos, s_neg = scores if sharded is None else sharded.total(*scores)
        loss = loss + losses.contrast(s_pos, s_neg, rule.f, rule.loss_type, rule.margin)
        count, found = among.count(batch), modulators(s_pos, s_neg, rule.f, rule.loss_type, rule.margin)
        pos, neg = ((m / count)[:, None] for m in found)
        into -= pos * still
        among.give(negatives, neg * still, into)
        through = g if _matrix(projection) is None else None
        changes.append(Change(projection, through, (neg * at_neg).sub_(pos * at_pos).to(g.dtype), c))
    soma = among.own(_of_samples(signal))
    if holder is not None and columns is not None:
        soma = soma + holder.processes.deal(_of_samples(columns), holder.d_z)
    return among.mean(loss), soma, changes


def _of_samples(signal: Tensor) -> Tensor:
    """From the order of the positives to that of the samples."""
    n = len(signal) // 2
    return torch.cat((signal[n:], signal[:n]))


def parameters(rule: ScoreRule, projections: Projections, layer: int) -> list[nn.Parameter]:
    """Those of a layer's projections."""
    return [p for key in rule.references for p in projections[key][layer].parameters()]


def predict(projection: nn.Module, c: Tensor) -> Tensor:
    """g = Bc, (2n, d_z), of a sharded B the columns that are here; with a graph as far as B where it is no matrix."""
    weight = _matrix(projection)
    if weight is not None:
        return product(c, weight.detach().to(c.dtype))
    with torch.enable_grad():
        return projection(c)


def change(projection: nn.Module, g: Tensor | None, signal: Tensor, c: Tensor) -> None:
    """Add dL/dB to ``.grad``, from dL/dg = ``signal`` (2n, d_z) and c (2n, d_c): for a dense B Σ_i signal_i c_iᵀ."""
    weight = _matrix(projection)
    if weight is None:
        if g is not None and g.requires_grad:
            g.backward(signal)  # pyright: ignore[reportUnknownMemberType]
    elif weight.requires_grad:
        add_grad(weight, product(signal.T, c.T))


def _matrix(projection: nn.Module) -> Tensor | None:
    """The weights of a dense B, or those of its rows that are here; None where B is of another kind."""
    return projection.weight if type(projection) is Dense or type(projection) is Sharded else None
