"""The optimum of Definition 3.4, solved: the B whose local error is the nearest to the backpropagated one.

With the gates γ of a score rule held fixed its error is linear in B: dL/dz_j = Σ_k B_k q_kj for the references k, with
q_j = Σ over the samples i that use j of (∂L/∂s_i) c_i (for the hinge ∂L/∂s_i = −γ⁺_i/2n for positives, γ⁻_i/2n for
negatives). Minimising Σ_j |Σ_k B_k q_kj − t_j|² over a data set is least squares, B = (Σ t qᵀ)(Σ q qᵀ)⁺, with t the
backpropagated error dL/dz, summed over each patch that the readout averages.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from localssl import losses, readout
from localssl.alignment.signals import Signals, shared
from localssl.errors import UsageError
from localssl.learner import Learner
from localssl.projections import Dense
from localssl.references import take
from localssl.rules.base import Batch, Projections, ScoreRule

Matrices = list[dict[str, Tensor]]  # per layer, by the reference's key: B (d_z, d_c)


def presynaptic(rule: ScoreRule, batch: Batch, layer: int, projections: Projections) -> dict[str, Tensor]:
    """The q of every reference, (2n, d_c): dL^l/dz^l = Σ_k q_k B_kᵀ with the gates of ``projections``.

    Raises:
        UsageError: the rule draws its negatives at random and none were given.
    """
    if batch.negatives is None and rule.negatives == "random":
        raise UsageError("the optimum needs negatives that stay the same; give them with the batch")
    negatives, n = rule.draw(batch), batch.n
    result: dict[str, Tensor] = {}
    with torch.no_grad():
        plain = Batch([z.detach() for z in batch.z], negatives, batch.labels)
        for key in rule.references:
            c = take(rule.references[key], plain.z, layer)
            scores = rule.scores(plain, layer, key, projections[key][layer])
            with torch.enable_grad():
                s_pos, s_neg = (s.detach().requires_grad_() for s in scores)
                loss = losses.contrast(s_pos, s_neg, rule.f, rule.loss_type, rule.margin)
            by_pos, by_neg = torch.autograd.grad(loss, (s_pos, s_neg))
            of_positive = by_pos[:, None] * c
            of_positive.index_add_(0, negatives, by_neg[:, None] * c)
            result[key] = torch.cat((of_positive[n:], of_positive[:n]))  # sample j is the positive of its other view
    return result


def matrices(learner: Learner) -> Matrices:
    """The learner's present B by layer and key.

    Raises:
        UsageError: a projection that is not ``projections.Dense``.
    """
    if not all(isinstance(module, Dense) for modules in learner.parts.values() for module in modules):
        raise UsageError(f"the optimum is defined for dense projections; {learner.rule.name!r} has others")
    return [
        {key: modules[layer].get_parameter("weight").detach() for key, modules in learner.parts.items()}
        for layer in range(len(learner.output_shapes))
    ]


def check_form(signals: Signals, learner: Learner) -> None:
    """Refuse a rule whose own error is not the linear one that the optimum supposes (it overrides its losses, say).

    Raises:
        UsageError: dL/dz differs.
    """
    rule, b = score_rule(learner), matrices(learner)
    batch = signals.batch(learner)
    q = [presynaptic(rule, batch, layer, learner.parts) for layer in range(len(b))]
    own = signals.errors(rule.losses(batch, learner.parts).sum())
    for mine, theirs in zip(linear_errors(signals, learner, q, b), own, strict=True):
        difference, size = (mine.float() - theirs.float()).norm(), theirs.float().norm()
        if not difference <= max(1e-4, 100 * torch.finfo(theirs.dtype).eps) * size:
            raise UsageError(f"the error of {rule.name!r} is not z's part of its scores with these B: no optimum of it")


def linear_errors(signals: Signals, learner: Learner, q: Sequence[dict[str, Tensor]], b: Matrices) -> list[Tensor]:
    """dL/dz of every block, (2n, ...): Σ_k q_k B_kᵀ spread over the patches of the readout."""
    read = signals.batch(learner).z
    pulled = [
        torch.stack([q[layer][key].to(z.dtype) @ b[layer][key].to(z.dtype).T for key in q[layer]]).sum(0)
        for layer, z in enumerate(read)
    ]
    return [
        torch.autograd.grad(r, z, error, retain_graph=True)[0] if r is not z else error
        for r, z, error in zip(read, signals.z, pulled, strict=True)
    ]


def targets(signals: Signals, learner: Learner, against: Learner) -> list[Tensor]:
    """The backpropagated error dL/dz of every block, summed over the patches of the learner's readout, (2n, d_z)."""
    _, full = signals.chain(signals.last_errors(against))
    found: list[Tensor] = []
    for error, shape, patch in zip(full, learner.output_shapes, learner.patches, strict=True):
        read = readout.readout(error, patch)
        found.append(read * (math.prod(shape) / read.shape[1]))  # the readout averages; a sum is wanted
    return found


def optimal_feedback(
    learner: Learner,
    data: Iterable[Sequence[Tensor | None]],
    against: Learner | None = None,
    gates: Matrices | None = None,
) -> Matrices:
    """B_o of Definition 3.4 for every layer but the last, at the encoder's present weights.

    Args:
        learner: of a score rule; its references decide the form. Unchanged.
        data: batches as in ``measure``, gone through once; sums of d_c × d_c and d_z × d_c numbers are kept per layer.
        against: whose last-layer loss is backpropagated; None: the learner's own.
        gates: the B that decide the gates; None: the learner's present ones. With the result put in again the gates
            follow it (nothing says that this comes to rest).

    Returns:
        Per layer and key B (d_z, d_c), float64; the last layer keeps the learner's own, whose error is exact.

    Raises:
        UsageError: no score rule, an end-to-end rule, one whose error is not Σ_k q_k B_kᵀ, no batch, or errors that are
            not finite.
    """
    rule = score_rule(learner)
    decide = as_projections(learner, gates) if gates is not None else learner.parts
    layers = len(learner.output_shapes) - 1
    square: list[Tensor] = []  # Σ q qᵀ and Σ t qᵀ per layer
    mixed: list[Tensor] = []
    for item in data:
        signals = Signals(learner.encoder, shared([learner], item))
        batch = signals.batch(learner)
        if not square:
            check_form(signals, learner)
        wanted = targets(signals, learner, against or learner)[:layers]
        q = [torch.cat(list(presynaptic(rule, batch, i, decide).values()), 1).double() for i in range(layers)]
        if not square:
            square = [torch.zeros(p.shape[1], p.shape[1]).to(p) for p in q]
            mixed = [torch.zeros(t.shape[1], p.shape[1]).to(p) for t, p in zip(wanted, q, strict=True)]
        for i, p in enumerate(q):
            square[i] += p.T @ p
            mixed[i] += wanted[i].double().T @ p
    if layers and not square:
        raise UsageError("the optimum needs at least one batch")
    if not all(bool(a.isfinite().all()) for a in (*square, *mixed)):
        raise UsageError("errors that are not finite: look at the views, or at the encoder's weights")
    *below, last = matrices(learner)
    result: Matrices = []
    for present, a, m in zip(below, square, mixed, strict=True):
        whole = m @ torch.linalg.pinv(a, hermitian=True, rtol=1e-10)
        result.append(dict(zip(present, whole.split([b.shape[1] for b in present.values()], 1), strict=True)))
    result.append({key: b.double() for key, b in last.items()})
    return result


def as_projections(learner: Learner, b: Matrices) -> dict[str, list[torch.nn.Module]]:
    """Matrices in the place of the learner's projections."""

    def module(weight: Tensor) -> torch.nn.Module:
        made = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        dtype = next(learner.parameters()).dtype
        made.weight = torch.nn.Parameter(weight.to(dtype), requires_grad=False)
        return made

    return {key: [module(layer[key]) for layer in b] for key in b[0]}


def score_rule(learner: Learner) -> ScoreRule:
    """The learner's rule, if Definition 3.4 speaks of it."""
    rule = learner.rule
    if not isinstance(rule, ScoreRule) or not rule.per_layer:
        raise UsageError(f"the optimum is defined for local score rules such as clapp++dfb, not for {rule.name!r}")
    return rule
