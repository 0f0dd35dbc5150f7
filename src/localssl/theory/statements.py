"""The paper's theorems, each as a deviation that must vanish on any random case."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from localssl.encoders import Encoder
from localssl.references import Last, Own
from localssl.theory import networks
from localssl.theory.cases import Case, deviation, larger, mismatch, normal, samples
from localssl.theory.forms import form
from localssl.theory.gradients import Samples, gradients
from localssl.theory.projection import optimal_projection, solve

EXACT = 1e-10
HINGE = 1e-8  # the hinge's scores lie on the kink, and its slopes come from an inverse of K


@dataclass(frozen=True)
class Statement:
    """Something that holds on every case, or, with ``at_least``, fails on the cases of a counterexample.

    Args:
        name: as in the paper, or "Extension: …", "Counterexample: …".
        text: what is claimed, one line.
        deviation: how far a case is from it.
        tolerance: largest deviation allowed for f softplus and linear; for the hinge it is ``HINGE`` where larger.
        forms: the f it is about.
        types: the loss types it is about.
        at_least: the smallest deviation that makes a counterexample; the largest found must reach it.
        cost: one case where others have this many, because it takes as long.
    """

    name: str
    text: str
    deviation: Callable[[Case], float]
    tolerance: float = EXACT
    forms: tuple[str, ...] = ("softplus", "linear", "hinge")
    types: tuple[int, ...] = (1, 2)
    at_least: float | None = None
    cost: int = 1

    def allowed(self, case: Case) -> float:
        """The largest deviation allowed on this case."""
        return max(self.tolerance, HINGE) if case.f == "hinge" else self.tolerance


def optimum(case: Case) -> float:
    """B* is where the loss has its minimum: no step away from it lowers the loss, and (smooth f) its slope is 0."""
    generator = case.generator()
    d_c = case.width + 2
    z_pos, z_neg = (normal((case.n, case.width), generator) for _ in range(2))
    c, c_neg = (normal((case.n, d_c), generator) for _ in range(2))
    other = c_neg if case.loss_type == 2 else None
    best = optimal_projection(z_pos, z_neg, c, case.f, case.loss_type, case.weight_decay, other)
    chosen = form(case.f)

    def loss(b: Tensor) -> Tensor:  # as the paper writes it, by another route than the dual's
        s_pos = torch.einsum("ni,ij,nj->n", z_pos, b, c)
        s_neg = torch.einsum("ni,ij,nj->n", z_neg, b, c if other is None else other)
        terms = chosen.value(s_pos - s_neg) if case.loss_type == 1 else chosen.value(s_pos) + chosen.value(-s_neg)
        return terms.sum() + case.weight_decay * b.square().sum()

    lowest = loss(best)
    size = best.norm().clamp(min=1e-3)
    worst = 0.0
    for scale in (1e-1, 1e-3, 1e-5):
        step = normal((case.width, d_c), generator)
        for sign in (1, -1):
            gain = lowest - loss(best + sign * scale * size * step / step.norm())
            worst = larger(worst, float(gain / (lowest.abs() + case.weight_decay * size**2)))
    found = solve(z_pos, z_neg, c, case.f, case.loss_type, case.weight_decay, other)
    worst = larger(worst, abs(found.loss / float(lowest) - 1))
    if case.f == "hinge":  # no loss is below the dual's Σβ - ¼λ βᵀKβ, and the minimum meets it
        beta = 2 * case.weight_decay * found.alpha
        dual = float(beta.sum() - case.weight_decay * best.square().sum())
        return larger(worst, abs(dual / float(lowest) - 1))
    moved = best.clone().requires_grad_()
    slope = torch.autograd.grad(loss(moved), moved)[0]
    return larger(worst, float(slope.norm() / (2 * case.weight_decay * size)))


def gradient(case: Case) -> float:
    """The gradients are those of the loss as it is written: at B* held constant (smooth f), and at B = I."""
    generator = case.generator()
    encoder = networks.mlp([case.width + 1, case.width], case.width + 3, generator, "default", relu=True)
    inputs = samples(case, case.width + 3, generator, _own_negative_reference(case))
    chosen = form(case.f)
    weights = [next(block.parameters()) for block in encoder.blocks]
    given = (inputs.pos, inputs.neg, inputs.c, *([] if inputs.c_neg is None else [inputs.c_neg]))
    first = [torch.relu(x @ weights[0].T) for x in given]
    cut = [torch.relu(h.detach() @ weights[1].T) for h in first]
    whole = [torch.relu(h @ weights[1].T) for h in first]
    worst = 0.0
    for projections in ("identity",) if case.f == "hinge" else ("identity", "optimal"):

        def loss(z: list[Tensor], optimal: bool = projections == "optimal") -> Tensor:
            z_pos, z_neg, c, *rest = z
            b = torch.eye(c.shape[1], dtype=torch.float64)
            if optimal:
                b = optimal_projection(z_pos, z_neg, c, case.f, case.loss_type, case.weight_decay, *rest)
            s_pos = torch.einsum("ni,ij,nj->n", z_pos, b, c.detach())
            s_neg = torch.einsum("ni,ij,nj->n", z_neg, b, (rest[0] if rest else c).detach())
            if case.loss_type == 1:
                return chosen.value(s_pos - s_neg).sum()
            return (chosen.value(s_pos) + chosen.value(-s_neg)).sum()

        found = gradients(encoder, inputs, case.setting(projections=projections))
        local = torch.autograd.grad(loss(first) + loss(cut), weights, retain_graph=True)
        end_to_end = torch.autograd.grad(loss(whole), weights, retain_graph=True)
        for mine, theirs in zip(found, (local, end_to_end), strict=True):
            worst = larger(worst, deviation(mine, [g.flatten() for g in theirs]))
    return worst


def _own_negative_reference(case: Case) -> bool:
    """In half of the cases of type 2 the negatives have references of their own."""
    return case.loss_type == 2 and case.seed % 2 == 0


def theorem_31(case: Case) -> float:
    """Orthonormal layers, own reference, optimal B."""
    generator = case.generator()
    encoder = networks.mlp([case.width] * case.depth, case.width + 3, generator)
    own = _own_negative_reference(case)
    return mismatch(encoder, samples(case, case.width + 3, generator, own), case.setting())


def theorem_31_identity(case: Case) -> float:
    """Orthonormal layers, own reference, B = I."""
    generator = case.generator()
    encoder = networks.mlp([case.width] * case.depth, case.width + 3, generator)
    own = _own_negative_reference(case)
    inputs = samples(case, case.width + 3, generator, own)
    return mismatch(encoder, inputs, case.setting(projections="identity"))


def theorem_31_proof(case: Case) -> float:
    """The equality between the layers' optimal B, and that of their norms."""
    generator = case.generator()
    encoder = networks.mlp([case.width] * case.depth, case.width + 3, generator)
    inputs = samples(case, case.width + 3, generator)
    z_pos, z_neg, c = encoder(inputs.pos), encoder(inputs.neg), encoder(inputs.c)
    optima = [
        optimal_projection(*layer, case.f, case.loss_type, case.weight_decay)
        for layer in zip(z_pos, z_neg, c, strict=True)
    ]
    above = torch.eye(case.width, dtype=torch.float64)
    expected: list[Tensor] = []
    for block in reversed(list(encoder.blocks)):  # above = W^L … W^(l+1)
        expected.insert(0, above.T @ optima[-1] @ above)
        above = above @ next(block.parameters()).detach()
    norms = [b.norm().reshape(1) for b in optima]
    return larger(deviation(optima, expected), deviation(norms, [norms[-1]] * len(norms)))


def corollary_32(case: Case) -> float:
    """Orthonormal layers, direct feedback, optimal B."""
    generator = case.generator()
    encoder = networks.mlp([case.width] * case.depth, case.width + 3, generator)
    inputs = samples(case, case.width + 3, generator)
    return mismatch(encoder, inputs, case.setting(reference=Last()))


def shrinking(case: Case, generator: torch.Generator) -> list[int]:
    """Widths that fall from layer to layer by one to five units, down to ``case.width``."""
    steps = torch.randint(1, 6, (case.depth - 1,), generator=generator).tolist()
    return [case.width + sum(steps[layer:]) for layer in range(case.depth)]


def theorem_33(case: Case) -> float:
    """Shrinking layers with orthonormal rows, one sample."""
    generator = case.generator()
    widths = shrinking(case, generator)
    encoder = networks.mlp(widths, widths[0] + 3, generator)
    return closer(encoder, samples(_one(case), widths[0] + 3, generator), case)


def closer(encoder: Encoder, inputs: Samples, case: Case) -> float:
    """Direct feedback's squared error over the layerwise one, minus 1: negative where feedback is nearer.

    The largest over the layers but the last, where both are the same. Infinite where the two are the same everywhere,
    for then there is nothing to compare.
    """
    own, end_to_end = gradients(encoder, inputs, case.setting(reference=Own()))
    feedback, _ = gradients(encoder, inputs, case.setting(reference=Last()))
    worst = -math.inf
    for a, b, reference in zip(own[:-1], feedback[:-1], end_to_end[:-1], strict=True):
        far, near = float((a - reference).square().sum()), float((b - reference).square().sum())
        ratio = near / far - 1
        worst = math.inf if math.isnan(ratio) else max(worst, ratio)
    same = all(torch.equal(a, b) for a, b in zip(own[:-1], feedback[:-1], strict=True))
    return math.inf if same else worst


def theorem_33_proof(case: Case) -> float:
    """Appendix A.2, term by term: V∅D₃V_lᵀ is all that direct feedback is off by; the layerwise gradient adds B₂, B₄.

    With R^l = W^L … W^(l+1) = U [I 0] Vᵀ and V = [V_l V∅]: the blocks of VᵀB*V and of VᵀD*U are the solver's, and
    B₄ and D₃ also have their closed forms -V∅ᵀΔz cᵀV∅/2λ and -V∅ᵀΔz cᵀV_l/2λ.
    """
    generator = case.generator()
    widths = shrinking(case, generator)
    encoder = networks.mlp(widths, widths[0] + 3, generator)
    inputs = samples(_one(case), widths[0] + 3, generator)
    own, end_to_end = gradients(encoder, inputs, case.setting(reference=Own()))
    feedback, _ = gradients(encoder, inputs, case.setting(reference=Last()))
    with torch.no_grad():
        z_pos, z_neg, c = ([x, *encoder(x)] for x in (inputs.pos, inputs.neg, inputs.c))
    matrices = [next(block.parameters()).detach() for block in encoder.blocks]
    lam, worst = case.weight_decay, 0.0
    for layer in range(1, case.depth):  # block `layer`, counted from 1; the last one has no difference
        above = torch.linalg.multi_dot([*reversed(matrices[layer:]), torch.eye(widths[layer - 1], dtype=torch.float64)])
        u, _, vt = torch.linalg.svd(above)  # all singular values are 1
        n_last = widths[-1]
        v_l, v_0 = vt[:n_last].T, vt[n_last:].T
        dz, before = (z_neg[layer] - z_pos[layer])[0], (z_neg[layer - 1] - z_pos[layer - 1])[0]
        ref = c[layer][0]
        b = solve(z_pos[layer], z_neg[layer], c[layer], case.f, case.loss_type, lam).matrix()
        d = solve(z_pos[layer], z_neg[layer], c[-1], case.f, case.loss_type, lam).matrix()
        b_2, b_4 = v_l.T @ b @ v_0, v_0.T @ b @ v_0
        d_3 = v_0.T @ d @ u
        closed_4 = -torch.outer(v_0.T @ dz, v_0.T @ ref) / (2 * lam)
        closed_3 = -torch.outer(v_0.T @ dz, v_l.T @ ref) / (2 * lam)
        off_feedback = torch.outer(v_0 @ d_3 @ v_l.T @ ref, before)
        extra = torch.outer(v_l @ b_2 @ v_0.T @ ref + v_0 @ b_4 @ v_0.T @ ref, before)
        found = [feedback[layer - 1] - end_to_end[layer - 1], own[layer - 1] - end_to_end[layer - 1], b_4, d_3]
        expected = [off_feedback.flatten(), (off_feedback + extra).flatten(), closed_4, closed_3]
        scale = own[layer - 1].norm()  # differences of gradients: relative to the gradient
        for x, y in zip(found[:2], expected[:2], strict=True):
            worst = larger(worst, float((x - y).norm() / scale))
        # The proof's two inequalities: V_lB₂ is orthogonal to the rest, and V∅B₄ adds to V∅D₃ instead of cancelling it.
        across = torch.outer(v_l @ b_2 @ v_0.T @ ref, before).flatten()
        along = torch.outer(v_0 @ b_4 @ v_0.T @ ref, before).flatten()
        rest = off_feedback.flatten()
        worst = larger(worst, float((across @ (along + rest)).abs() / scale.square()))
        worst = larger(worst, float((-(along @ rest)).clamp(min=0) / scale.square()))
        worst = larger(worst, deviation(found[2:], expected[2:]))
    return worst


def _one(case: Case) -> Case:
    return Case(case.depth, case.width, 1, case.weight_decay, case.f, case.loss_type, case.seed)


PAPER = (
    Statement("Equation 1", "the dual's B* is the minimum of the loss over B", optimum),
    Statement(
        "Equation 2",
        "the gradients used below are those of the loss, by automatic differentiation",
        gradient,
    ),
    Statement("Theorem 3.1", "orthonormal linear network, B optimal: layerwise = end-to-end gradients", theorem_31),
    Statement("Theorem 3.1, B = I", "the same with B = I", theorem_31_identity),
    Statement("Theorem 3.1, proof", "B*^l = (W^L…W^(l+1))ᵀ B*^L (W^L…W^(l+1)), of equal norm", theorem_31_proof),
    Statement("Corollary 3.2", "direct feedback, orthonormal: layerwise = end-to-end gradients", corollary_32),
    Statement(
        "Theorem 3.3",
        "shrinking, linear f, n = 1: direct feedback is nearer to end-to-end",
        theorem_33,
        forms=("linear",),
    ),
    Statement(
        "Theorem 3.3, proof",
        "the differences are made of V∅D₃V_lᵀ, V_lB₂V∅ᵀ and V∅B₄V∅ᵀ alone",
        theorem_33_proof,
        forms=("linear",),
    ),
)
