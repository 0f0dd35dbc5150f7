"""The theory: optimal projections against other solvers, statements on random cases, and that a wrong sign is found."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import sys
import types
from collections.abc import Iterator
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

import localssl
from localssl.alignment import compare
from localssl.cli import main
from localssl.errors import UsageError
from localssl.references import Last, Own
from localssl.theory import Form, networks, optimal_projection, solve
from localssl.theory.cases import Case
from localssl.theory.checks import KINDS, cases_of, verify
from localssl.theory.gradients import Samples, Setting, gradients
from localssl.theory.lowrank import low_rank
from localssl.theory.statements import PAPER, Statement

EXACT = [s for kind in ("paper", "extension") for s in KINDS[kind]]
FAILING = list(KINDS["counterexample"])


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def primal(b: torch.Tensor, batch: tuple[torch.Tensor, ...], f: str, loss_type: int, lam: float) -> torch.Tensor:
    """The loss as the paper writes it."""
    z_pos, z_neg, c = batch
    s_pos, s_neg = (z_pos * (c @ b.T)).sum(1), (z_neg * (c @ b.T)).sum(1)

    def value(x: torch.Tensor) -> torch.Tensor:
        return {"softplus": torch.log1p(torch.exp(-x)), "linear": -x, "hinge": (1 - x).clamp(min=0)}[f]

    terms = value(s_pos - s_neg) if loss_type == 1 else value(s_pos) + value(-s_neg)
    return terms.sum() + lam * (b**2).sum()


@pytest.mark.parametrize("loss_type", [1, 2])
@pytest.mark.parametrize("lam", [0.01, 1.0])
def test_optimal_projection_meets_lbfgs_on_the_primal(loss_type: int, lam: float) -> None:
    batch = (normal(8, 6), normal(8, 6, seed=1), normal(8, 5, seed=2))
    exact = optimal_projection(*batch, loss_type=loss_type, weight_decay=lam)
    assert exact.shape == (6, 5)
    assert exact.dtype == torch.float64

    def value(flat: np.ndarray) -> tuple[float, np.ndarray]:
        b = torch.tensor(flat).view(6, 5).requires_grad_()
        loss = primal(b, batch, "softplus", loss_type, lam)
        return loss.item(), torch.autograd.grad(loss, b)[0].flatten().numpy()

    found = optimize.minimize(value, np.zeros(30), jac=True, method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-10})
    mine = float(primal(exact, batch, "softplus", loss_type, lam))
    assert mine == pytest.approx(found.fun, rel=1e-9)
    assert mine <= found.fun + 1e-12
    assert torch.allclose(exact, torch.tensor(found.x).view(6, 5), atol=1e-4)


def test_hinge_meets_a_quadratic_program() -> None:
    """The dual of the hinge is a bounded least-squares problem, which SciPy solves by another method."""
    batch, lam = (normal(12, 5), normal(12, 5, seed=1), normal(12, 4, seed=2)), 0.05
    x, y = torch.cat((batch[0], -batch[1])), torch.cat((batch[2], batch[2]))
    outer = torch.einsum("ki,kj->kij", x, y).flatten(1).numpy() / np.sqrt(2 * lam)
    # minimise |Σ β_k o_k|² / 2 - Σ β_k: least squares with a row that carries the linear term in the limit
    q = outer @ outer.T
    found = optimize.minimize(
        lambda b: (b @ q @ b / 2 - b.sum(), q @ b - 1),
        np.full(24, 0.5),
        jac=True,
        bounds=[(0, 1)] * 24,
        method="L-BFGS-B",
        options={"ftol": 1e-16, "gtol": 1e-11, "maxiter": 20000, "maxfun": 50000},
    )
    best = solve(*batch, f="hinge", weight_decay=lam)
    assert best.loss == pytest.approx(-found.fun, rel=1e-7)
    assert best.loss == pytest.approx(float(primal(best.matrix(), batch, "hinge", 2, lam)), rel=1e-10)
    assert best.residual < 1e-11


@pytest.mark.parametrize("f", ["softplus", "hinge", "linear"])
@pytest.mark.parametrize("loss_type", [1, 2])
def test_a_singular_kernel_still_gives_the_minimum(f: str, loss_type: int) -> None:
    z_pos, z_neg, c = normal(20, 2), normal(20, 2, seed=1), normal(20, 1, seed=2)
    z_pos[10:], z_neg[10:], c[10:] = z_pos[:10].clone(), z_neg[:10].clone(), c[:10].clone()
    best = solve(z_pos, z_neg, c, f, loss_type, 0.1)
    b = best.matrix()
    lowest = float(primal(b, (z_pos, z_neg, c), f, loss_type, 0.1))
    assert best.residual < 1e-11
    assert best.loss == pytest.approx(lowest, rel=1e-10, abs=1e-10)
    for seed in range(50):
        step = 1e-3 * normal(2, 1, seed=seed)
        assert float(primal(b + step, (z_pos, z_neg, c), f, loss_type, 0.1)) > lowest


def reference(batch: list[torch.Tensor], lam: float) -> torch.Tensor:
    """B* for softplus by Newton's method on all numbers of B, with 60 digits."""
    x, y = torch.cat((batch[0], -batch[1])), torch.cat((batch[2], batch[2]))
    outer = mpmath.matrix(
        [[mpmath.mpf(a) * b for a in r for b in q] for r, q in zip(x.tolist(), y.tolist(), strict=True)]
    )
    m, unknowns = outer.rows, outer.cols
    b = mpmath.zeros(unknowns, 1)

    def loss(b: Any) -> Any:
        u = outer * b
        return sum(mpmath.log1p(mpmath.exp(-u[k])) for k in range(m)) + lam * sum(v * v for v in b)

    for _ in range(500):
        weights = [1 / (1 + mpmath.exp(v)) for v in outer * b]
        slope = 2 * lam * b - outer.T * mpmath.matrix(weights)
        bent = outer.T * mpmath.diag([w * (1 - w) for w in weights]) * outer + 2 * lam * mpmath.eye(unknowns)
        step = mpmath.lu_solve(bent, -slope)
        if mpmath.norm(step) <= mpmath.mpf(10) ** -25 * mpmath.norm(b):
            break
        length, before = mpmath.mpf(1), loss(b)
        while loss(b + length * step) > before:
            length /= 2
        b += length * step
    else:
        raise AssertionError("the reference did not converge")
    return torch.tensor([float(v) for v in b], dtype=torch.float64).view(x.shape[1], y.shape[1])


@pytest.mark.parametrize("n", [2, 8])
@pytest.mark.parametrize("scale", [1.0, 1e2, 1e4, 1e6])
@pytest.mark.parametrize("lam", [1e-2, 1e-8])
@pytest.mark.parametrize("twice", [False, True])
def test_singular_kernels_of_any_size_meet_a_reference_of_many_digits(
    n: int, scale: float, lam: float, twice: bool
) -> None:
    """2 × 2 numbers in B, 4 or 16 scores, every sample twice or not; K / λ up to 1e33."""
    batch = [scale * normal(n, 2, seed=seed) for seed in range(3)]
    if twice:
        batch = [torch.cat((part[: n // 2], part[: n // 2])) for part in batch]
    with mpmath.workdps(60):
        expected = reference(batch, lam)
    best = solve(batch[0], batch[1], batch[2], weight_decay=lam)
    assert float((best.matrix() - expected).norm() / expected.norm()) < 1e-10
    assert torch.allclose(best.predict(batch[2]), batch[2] @ expected.T, rtol=1e-8, atol=0)


def test_samples_twice_in_a_wide_layer_are_samples_once_of_half_the_decay() -> None:
    batch = [1e5 * normal(6, 30, seed=seed) for seed in range(3)]
    double = [torch.cat((part, part)) for part in batch]
    twice = optimal_projection(double[0], double[1], double[2], weight_decay=0.02)
    once = optimal_projection(batch[0], batch[1], batch[2], weight_decay=0.01)
    assert torch.allclose(twice, once, rtol=1e-9, atol=0)


def test_the_hinge_refuses_what_float64_cannot_hold() -> None:
    """Scores that cannot all be met, and K / λ beyond 1e10 or so: u = Kα is a difference of numbers that large."""
    z_pos, z_neg, c = (normal(8, 2, seed=seed) for seed in range(3))
    assert solve(z_pos, z_neg, c, f="hinge", weight_decay=1e-6).residual < 1e-8
    with pytest.raises(UsageError, match="scale them down or raise weight_decay"):
        solve(1e4 * z_pos, 1e4 * z_neg, c, f="hinge", weight_decay=1e-6)


@pytest.mark.parametrize("f", ["softplus", "hinge", "linear"])
@pytest.mark.parametrize("loss_type", [1, 2])
def test_images_that_are_all_the_same_have_no_gradient(f: str, loss_type: int) -> None:
    """B* is 0 then; made of rounding errors it would have passed on a cosine of 1 in the last layer."""
    one = normal(1, 30).expand(32, 30)
    encoder = networks.mlp([16, 8, 4], 30, torch.Generator().manual_seed(1))
    local, end_to_end = gradients(encoder, Samples.from_views(one, one), Setting(f, loss_type))
    assert [compare(a, b) for a, b in zip(local, end_to_end, strict=True)] == [None] * 3


@pytest.mark.parametrize("f", ["softplus", "hinge", "linear"])
def test_the_implicit_form_predicts_what_the_matrix_does(f: str) -> None:
    best = solve(normal(9, 40), normal(9, 40, seed=1), normal(9, 30, seed=2), f)
    c = normal(4, 30, seed=3)
    assert torch.allclose(best.predict(c), c @ best.matrix().T, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e3])
@pytest.mark.parametrize("lam", [1e-6, 1e-2, 1e3])
def test_newton_converges_at_every_scale(scale: float, lam: float) -> None:
    best = solve(
        scale * normal(30, 16), scale * normal(30, 16, seed=1), scale * normal(30, 16, seed=2), weight_decay=lam
    )
    assert best.residual <= 1e-12


@pytest.mark.parametrize("f", ["softplus", "hinge"])
@pytest.mark.parametrize(("d", "lam"), [(1, 1e-2), (1, 1e-4), (3, 1e-2), (3, 1e-4), (3, 1e-6)])
def test_more_samples_than_numbers_in_b(f: str, d: int, lam: float) -> None:
    """K has rank d² or less: the minimum over B itself, a few numbers, says what is right."""
    batch = (normal(32, d), normal(32, d, seed=1), normal(32, d, seed=2))
    best = solve(*batch, f=f, weight_decay=lam)
    b = best.matrix()
    lowest = float(primal(b, batch, f, 2, lam))
    assert best.loss == pytest.approx(lowest, rel=1e-6)
    for seed in range(40):
        for size in (1e-1, 1e-3):
            assert (
                float(primal(b + size * b.norm() * normal(d, d, seed=seed), batch, f, 2, lam)) > lowest - 1e-9 * lowest
            )


def test_the_closed_form_is_for_the_builtin_linear_f_alone() -> None:
    steeper = Form("linear", lambda u: -2 * u, lambda u: torch.full_like(u, -2.0), torch.zeros_like)
    best = solve(normal(6, 4), normal(6, 4, seed=1), normal(6, 3, seed=2), steeper, weight_decay=0.5)
    assert torch.allclose(best.alpha, torch.full_like(best.alpha, 2.0))


def test_a_form_of_ones_own() -> None:
    squared = Form(
        "squared hinge",
        lambda u: (1 - u).clamp(min=0) ** 2,
        lambda u: -2 * (1 - u).clamp(min=0),
        lambda u: 2.0 * (u < 1),
    )
    best = solve(normal(6, 4), normal(6, 4, seed=1), normal(6, 3, seed=2), squared)
    assert best.residual < 1e-12


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"weight_decay": 0.0}, "not unique"),
        ({"weight_decay": -1.0}, "must be positive"),
        ({"weight_decay": float("nan")}, "must be positive"),
        ({"f": "sofplus"}, "softplus"),
        ({"f": torch.tanh}, r"theory\.Form.*convex"),
        ({"loss_type": 3}, "must be 1 or 2"),
        ({"z_neg": normal(4, 3)}, "z_pos and z_neg"),
        ({"c": normal(4, 3)}, r"n = 5"),
        ({"c_neg": normal(5, 2)}, "shape of c"),
        ({"c_neg": normal(5, 3), "loss_type": 1}, "no meaning for type 1"),
        ({"z_pos": torch.full((5, 3), float("inf"))}, "z_pos holds NaN"),
    ],
)
def test_bad_input_is_refused(change: dict[str, object], says: str) -> None:
    good = {"z_pos": normal(5, 3), "z_neg": normal(5, 3, seed=1), "c": normal(5, 3, seed=2)}
    with pytest.raises(UsageError, match=says):
        optimal_projection(**{**good, **change})  # pyright: ignore[reportArgumentType]


def test_an_f_that_is_not_convex_is_refused() -> None:
    with pytest.raises(UsageError, match=r"not convex.*several minima"):
        Form("tanh", lambda u: -u.tanh(), lambda u: u.tanh() ** 2 - 1, lambda u: 2 * u.tanh() * (1 - u.tanh() ** 2))
    with pytest.raises(UsageError, match="not decreasing"):
        Form("square", lambda u: u**2, lambda u: 2 * u, lambda u: torch.full_like(u, 2.0))
    with pytest.raises(UsageError, match=r"its slope at .* is not the derivative"):
        Form("softplus", lambda u: torch.log1p(torch.exp(-u)), lambda u: torch.sigmoid(-u), torch.zeros_like)
    with pytest.raises(UsageError, match="its slope"):
        Form("nan", lambda u: u * torch.nan, torch.zeros_like, torch.zeros_like)


def test_zero_gradients_have_no_cosine() -> None:
    """B = I and a margin met by every score: the hinge's gradients vanish, and so does the number."""
    encoder = networks.from_weights([torch.eye(2), torch.eye(2)])
    samples = Samples(
        torch.tensor([[2.0, 0.0]]).double(), torch.tensor([[-2.0, 0.0]]).double(), torch.tensor([[1.0, 0.0]]).double()
    )
    local, end_to_end = gradients(encoder, samples, Setting("hinge", projections="identity"))
    assert all(float(g.norm()) == 0 for g in (*local, *end_to_end))
    assert [compare(a, b) for a, b in zip(local, end_to_end, strict=True)] == [None, None]


@pytest.mark.parametrize("statement", EXACT, ids=lambda s: s.name)
def test_statements_hold(statement: Statement) -> None:
    outcome = verify("", statement, 20)
    assert outcome.passed, outcome


@pytest.mark.parametrize("statement", FAILING, ids=lambda s: s.name)
def test_counterexamples_do_break_it(statement: Statement) -> None:
    outcome = verify("", statement, 12)
    assert outcome.passed, outcome


@settings(max_examples=60, deadline=None)
@given(
    statement=st.sampled_from([s for s in EXACT if s.name != "restricted rank"]),
    depth=st.integers(2, 7),
    width=st.integers(2, 32),
    n=st.integers(1, 16),
    lam=st.floats(1e-4, 100),
    choice=st.integers(0, 5),
    seed=st.integers(0, 2**31),
)
def test_statements_hold_for_any_sizes(
    statement: Statement, depth: int, width: int, n: int, lam: float, choice: int, seed: int
) -> None:
    f = statement.forms[choice % len(statement.forms)]
    loss_type = statement.types[choice // 3 % len(statement.types)]
    case = Case(depth, width, min(n, max(1, width**2 // 4)), lam, f, loss_type, seed)
    assert statement.deviation(case) <= statement.allowed(case)


@pytest.mark.parametrize(
    ("rule", "reference", "key"), [("clapp++", Own(), "lateral"), ("clapp++dfb", Last(), "feedback")]
)
@pytest.mark.parametrize("loss_type", [1, 2])
def test_gradients_are_the_learners(rule: str, reference: Own | Last, key: str, loss_type: int) -> None:
    """The learner, given the optimal B, leaves the theory's layerwise gradient in .grad (there a mean, here a sum)."""
    encoder = networks.mlp([7, 6, 5], 9, torch.Generator().manual_seed(0), "default", relu=True)
    view_a, view_b = normal(4, 9), normal(4, 9, seed=1)
    samples = Samples.from_views(view_a, view_b)
    local, _ = gradients(encoder, samples, Setting("softplus", loss_type, 0.1, reference))
    learner = localssl.Learner(encoder, localssl.rules.get(rule, f="softplus", margin=0.0, loss_type=loss_type), (9,))
    with torch.no_grad():
        z = [encoder(x) for x in (samples.pos, samples.neg, samples.c)]
        for layer, projection in enumerate(learner.projections[key]):
            c = z[2][reference.source(layer, 3)]
            projection.weight.copy_(optimal_projection(z[0][layer], z[1][layer], c, "softplus", loss_type, 0.1))
    learner.accumulate_grads(view_a, view_b)
    for block, expected in zip(encoder.blocks, local, strict=True):
        found = next(block.parameters()).grad
        assert found is not None
        assert torch.allclose(8 * found.flatten(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("f", ["softplus", "linear"])
@pytest.mark.parametrize("loss_type", [1, 2])
def test_full_rank_meets_the_exact_minimum(f: str, loss_type: int) -> None:
    batch = (normal(10, 12), normal(10, 12, seed=1), normal(10, 9, seed=2))
    found = low_rank(*batch, normal(3, 12, 12, seed=3), normal(3, 12, 9, seed=4), f, loss_type, 0.1)
    exact = solve(*batch, f, loss_type, 0.1)
    assert found.converged.all()
    assert found.losses == pytest.approx(exact.loss, rel=1e-9)
    assert float((found.matrices - exact.matrix()).norm() / exact.matrix().norm()) < 1e-5


@pytest.mark.parametrize("loss_type", [1, 2])
def test_a_restricted_rank_ends_in_a_minimum_over_its_factors(loss_type: int) -> None:
    """SciPy, searching over the factors themselves from where the search ended, finds nothing lower near by."""
    batch, lam = (normal(10, 6), normal(10, 6, seed=1), normal(10, 5, seed=2)), 0.01
    found = low_rank(*batch, normal(4, 2, 6, seed=3), normal(4, 2, 5, seed=4), "softplus", loss_type, lam)
    assert found.converged.all()
    for b, loss in zip(found.matrices, found.losses.tolist(), strict=True):
        assert torch.linalg.matrix_rank(b) == 2
        assert loss == pytest.approx(float(primal(b, batch, "softplus", loss_type, lam)), rel=1e-9)
        assert loss > solve(*batch, loss_type=loss_type, weight_decay=lam).loss
        u, s, vt = torch.linalg.svd(b)
        start = torch.cat(((u[:, :2] * s[:2].sqrt()).T.flatten(), (s[:2, None].sqrt() * vt[:2]).flatten()))

        def value(flat: np.ndarray) -> tuple[float, np.ndarray]:
            factors = torch.tensor(flat).requires_grad_()
            at = primal(factors[:12].view(2, 6).T @ factors[12:].view(2, 5), batch, "softplus", loss_type, lam)
            return at.item(), torch.autograd.grad(at, factors)[0].numpy()

        assert np.abs(value(start.numpy())[1]).max() < 1e-5
        lower = optimize.minimize(value, start.numpy(), jac=True, method="L-BFGS-B", options={"ftol": 1e-15})
        assert lower.fun == pytest.approx(loss, rel=1e-8)


def test_a_restricted_rank_needs_a_smooth_f_and_starts_that_fit() -> None:
    batch = (normal(5, 3), normal(5, 3, seed=1), normal(5, 4, seed=2))
    with pytest.raises(UsageError, match="hinge"):
        low_rank(*batch, normal(1, 2, 3), normal(1, 2, 4), "hinge")
    with pytest.raises(UsageError, match=r"\(s, r, 3\) and \(s, r, 4\)"):
        low_rank(*batch, normal(1, 2, 4), normal(1, 2, 4))
    assert not low_rank(*batch, normal(1, 2, 3), normal(1, 2, 4), steps=1).converged.any()


# What is broken, in which function of which module, and how.
SIGNS = [
    ("projection", "signed", "torch.cat((z_pos, -z_neg))", "torch.cat((z_pos, z_neg))"),
    ("projection", "signed", "else z_pos - z_neg", "else z_pos + z_neg"),
    ("projection", "Optimum.matrix", "return (", "return -("),
    ("projection", "Optimum.predict", "return (", "return -("),
    ("projection", "solve", "alpha, -2 * weight_decay * alpha", "alpha, 2 * weight_decay * alpha"),
    ("projection", "solve", "ones / (2 *", "ones / (-2 *"),
    ("projection", "solve", "+ weight_decay * alpha @ u)", "- weight_decay * alpha @ u)"),
    ("solvers", "newton", "2 * lam * alpha + form.slope(u)", "2 * lam * alpha - form.slope(u)"),
    ("solvers", "newton_in_scores", "form.slope(u) + decay * t", "form.slope(u) - decay * t"),
    ("solvers", "newton_in_scores", "v @ (t / squares)", "-v @ (t / squares)"),
    ("solvers", "newton_in_scores", "= -torch.linalg.solve_ex", "= torch.linalg.solve_ex"),
    ("solvers", "_step", "return -torch.cholesky_solve(", "return torch.cholesky_solve("),
    ("forms", "_softplus_slope", "-torch.sigmoid(-u)", "torch.sigmoid(-u)"),
    ("forms", "Hinge.slope", "return -", "return "),
    ("forms", "Hinge.value", "F.relu(1 - u)", "F.relu(1 + u)"),
    ("gradients", "_read", "else [samples.c_neg]", "else [-samples.c_neg]"),
    ("gradients", "_linearised", "return (optimum.slopes", "return -(optimum.slopes"),
    ("gradients", "_linearised", "return (form(", "return -(form("),
    ("statements", "theorem_31_proof", "above.T @ optima", "-above.T @ optima"),
    ("statements", "theorem_33_proof", "closed_4 = -", "closed_4 = "),
    ("statements", "theorem_33_proof", "closed_3 = -", "closed_3 = "),
    ("statements", "theorem_33_proof", "(off_feedback + extra)", "(off_feedback - extra)"),
]


def _function(holder: object, name: str) -> types.FunctionType:
    for part in name.split("."):
        holder = inspect.getattr_static(holder, part)
    assert isinstance(holder, types.FunctionType)
    return holder


@pytest.mark.parametrize(("module", "function", "right", "wrong"), SIGNS)
def test_a_wrong_sign_is_found(
    module: str, function: str, right: str, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of the two Newton methods the second mends what the first gets wrong: each is tried alone.
    second = function == "newton_in_scores"
    monkeypatch.setattr("localssl.theory.projection._EXACT", -1.0 if second else float("inf"))
    found = importlib.import_module(f"localssl.theory.{module}")
    source = inspect.getsource(found)
    target = _function(found, function)
    body = inspect.getsource(target)
    assert body.count(right) == 1, f"{right!r} is not (any more) in {function}"
    broken: dict[str, object] = {"__name__": found.__name__, "__file__": found.__file__}
    holder = types.ModuleType(found.__name__)
    holder.__dict__.update(broken)
    before = sys.modules[found.__name__]
    sys.modules[found.__name__] = holder  # dataclasses look themselves up there
    try:
        exec(compile(source.replace(body, body.replace(right, wrong)), str(found.__file__), "exec"), holder.__dict__)
    except UsageError:  # the form itself is refused
        return
    finally:
        sys.modules[found.__name__] = before
    code = target.__code__
    target.__code__ = _function(holder, function).__code__
    try:
        assert any(_broken(statement) for statement in PAPER), "no statement noticed"
    finally:
        target.__code__ = code


def _broken(statement: Statement) -> bool:
    for case in cases_of(statement, 12):
        try:
            if not statement.deviation(dataclasses.replace(case, depth=3)) <= statement.allowed(case):
                return True
        except (UsageError, RuntimeError):
            return True
    return False


def test_a_gradient_that_is_no_number_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def poisoned(*given: object) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        local, end_to_end = gradients(*given)  # pyright: ignore[reportArgumentType]
        return [g * torch.nan for g in local], end_to_end

    monkeypatch.setattr("localssl.theory.cases.gradients", poisoned)
    monkeypatch.setattr("localssl.theory.statements.gradients", poisoned)
    failed = {s.name for s in PAPER if not verify("paper", s, 6).passed}
    assert failed >= {s.name for s in PAPER if "Theorem" in s.name or "Corollary" in s.name} - {"Theorem 3.1, proof"}


def test_the_command_prints_and_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["theory", "--cases", "2"]) == 0
    shown = capsys.readouterr().out
    for words in ("Theorem 3.1", "Corollary 3.2", "Theorem 3.3", "pass", "statements hold"):
        assert words in shown
    assert "FAIL" not in shown


def test_the_command_fails_where_a_statement_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = Statement("wrong", "0 = 1", lambda case: 1.0)
    monkeypatch.setitem(KINDS, "paper", (wrong,))
    assert main(["theory", "--cases", "1"]) == 1
    out, err = capsys.readouterr()
    assert "FAIL" in out
    assert "failed: wrong" in out
    assert "1 of" in err


def test_no_cases_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["theory", "--cases", "0"]) == 2
    assert "use 1 or more" in capsys.readouterr().err


def test_full_and_cases_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["theory", "--cases", "3", "--full"]) == 2
    assert "leave out" in capsys.readouterr().err
