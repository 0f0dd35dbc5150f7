"""Table 1 of the paper: each row's rule has the gradient of the common formula with that row's f, type, B and c.

The formula is written here anew; its references are constants. Forward-Forward and SCFF compare z with itself and let
the gradient through both, which is twice the formula's. What the rule declares, from which the tables of docs/rules.md
are made, stands beside the formula whose gradient it has.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import localssl
from localssl.inputs import Inputs, PatchGrid
from localssl.inputs.pairs import Pairs
from localssl.inputs.positives import Hybrids
from localssl.report import docs_tables
from localssl.rules import Batch, Rule
from localssl.rules.base import Form
from localssl.rules.phyll import Direction

from .util import assert_close_report, numpy

F1 = Callable[[Tensor], Tensor]
M, D = 6, 5


def type1(z_pos: Tensor, z_neg: Tensor, c: Tensor, b: Tensor, f: F1) -> Tensor:
    """Mean over samples of f((z_pos - z_neg).B c)."""
    return torch.stack([f((p - n) @ (b @ c_i)) for p, n, c_i in zip(z_pos, z_neg, c, strict=True)]).mean()


def type2(
    z_pos: Tensor, z_neg: Tensor, c_pos: Tensor, c_neg: Tensor, b: Tensor, f: F1, f_neg: F1 | None = None
) -> Tensor:
    """Mean over samples of f(z_pos.B c_pos) + f(-z_neg.B c_neg); ``f_neg``: that of the negatives, if another."""
    pos = torch.stack([f(z @ (b @ c)) for z, c in zip(z_pos, c_pos, strict=True)])
    neg = torch.stack([(f_neg or f)(-z @ (b @ c)) for z, c in zip(z_neg, c_neg, strict=True)])
    return (pos + neg).mean()


def leaf(*shape: int, seed: int = 0) -> Tensor:
    z = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.relu(z + 0.3).requires_grad_()


def slope(loss: Tensor, z: Tensor) -> Tensor:
    return torch.autograd.grad(loss, z, retain_graph=True)[0]


def equal(found: Tensor, expected: Tensor, what: str) -> None:
    assert found.any(), "nothing to compare"
    assert_close_report(numpy(found), numpy(expected), 1e-12, what)


def declares(rule: Rule, form: Form, samples: type[Inputs], norm: str | None) -> None:
    """The rule's columns of Table 1, and what makes its positives and negatives.

    ``norm``: of every block's input, as declared; whether there is one is seen in the network that train builds, too.
    """
    assert docs_tables._form(rule) == form  # pyright: ignore[reportPrivateUsage]
    assert type(rule.inputs()) is samples
    assert rule.encoder_options.get("norm") == norm
    block = localssl.encoders.mlp(D, (D, D), **rule.encoder_options).double().blocks[1]
    z = leaf(M, D) + 0.1
    assert torch.allclose(block(3 * z), block(z)) == (norm is not None)


def test_the_table_is_the_papers() -> None:
    """Its rows, columns and answers; how ours differ in f and B is tested below, each beside what it declares."""
    head, _, *lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in docs_tables.table1().splitlines()]
    assert head == ["learning rule", "c_neg", "c_pos", "B", "normalisation", "decreasing function f(x)", "loss type"]
    assert [[line[0].partition(",")[0], *line[1:3], line[4].partition(":")[0], line[6]] for line in lines] == [
        ["Forward-Forward", "z_neg", "z_pos", "yes", "2"],
        ["PhyLL", "ξ", "ξ", "yes", "1"],
        ["SCFF", "z_neg", "z_pos", "yes", "2"],
        ["CLAPP", "z′", "z′", "no", "2"],
    ]
    for line in lines:
        form = docs_tables._form(localssl.rules.get(line[0].split("`")[1]))  # pyright: ignore[reportPrivateUsage]
        assert (line[3], line[5]) == (form.projection, form.f)
    assert [line[4] for line in lines[:3]] == [
        "yes: every block's input (length)",
        "yes: z of length one, in the loss",
        "yes: every block's input (standardise)",
    ]


def trained(rule: Rule) -> list[str]:
    """The parts of the rule that learn, by key."""
    return [
        key for key, parts in rule.build([D]).items() if any(p.requires_grad for m in parts for p in m.parameters())
    ]


def test_forward_forward() -> None:
    """f(x) = softplus(theta D - x) for positives, softplus(-theta D - x) for negatives; B = I, c = z.

    The rule's mean is over positives and negatives together, half of the formula's; its gradient runs through both z.
    """
    z, rule = leaf(2 * M, D), localssl.rules.get("ff", threshold=0.4)
    form = Form("softplus(θD − x), −θD for negatives", 2, "itself, with gradient", "I", ("z_pos", "z_neg"))
    declares(rule, form, Hybrids, "length")
    assert not trained(rule)
    found = slope(rule.layer_loss(Batch([z], maps=[z]), 0, {}), z)
    c, eye = z.detach(), torch.eye(D, dtype=torch.float64)

    def f(x: Tensor) -> Tensor:
        return F.softplus(0.4 * D - x)

    def f_neg(x: Tensor) -> Tensor:
        return F.softplus(-0.4 * D - x)

    equal(found, 2 * 0.5 * slope(type2(z[:M], z[M:], c[:M], c[M:], eye, f, f_neg), z), "ff")
    # Table 1's own f, -x: where every sample is far on the wrong side of its threshold, both slopes are 1
    far = (100 * torch.ones(2 * M, D, dtype=torch.float64)).requires_grad_()
    pos, neg = far[:M] * 1e-3, far[M:]
    found = slope(rule.layer_loss(Batch([far], maps=[torch.cat((pos, neg))]), 0, {}), far)[M:]
    linear = slope(type2(pos, neg, pos.detach(), neg.detach(), eye, lambda x: -x), far)[M:]
    equal(found, linear, "ff, saturated")


def test_phyll() -> None:
    """f(x) = softplus(-theta x), type 1, B = I, c = xi, z divided by its length."""
    z, rule = leaf(2 * M, D), localssl.rules.get("phyll", theta=3.0)
    form = Form("softplus(−θx)", 1, "ξ, fixed and random", "I", ("ξ", "ξ"), "z of length one")
    declares(rule, form, Hybrids, None)
    assert not trained(rule)
    direction = Direction(D).double()
    found = slope(rule.layer_loss(Batch([z], maps=[z]), 0, {"direction": [direction]}), z)
    unit, xi = z / z.norm(dim=1, keepdim=True), direction.weight / direction.weight.norm()  # drawn in float32
    expected = type1(
        unit[:M], unit[M:], xi.expand(M, D), torch.eye(D, dtype=torch.float64), lambda x: F.softplus(-3.0 * x)
    )
    equal(found, slope(expected, z), "phyll")


def test_scff() -> None:
    """f(x) = -log sigmoid(x - theta1), for negatives with -theta2 in its place; B = I / channels, c = z; positions."""
    a = torch.randn(2 * M, D, 2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    rule = localssl.rules.get("scff", theta1=0.3, theta2=0.8, penalty=0.0)
    form = Form("softplus(θ1 − x), −θ2 for negatives", 2, "itself, with gradient", "I / width", ("z_pos", "z_neg"))
    declares(rule, form, Pairs, "standardise")
    assert not trained(rule)
    found = slope(rule.layer_loss(Batch([a, a], maps=[a, a]), 1, {}), a)
    z = torch.relu(a).movedim(1, -1)
    pos, neg = z[:M].reshape(-1, D), z[M:].reshape(-1, D)

    def f(x: Tensor) -> Tensor:
        return -torch.log(torch.sigmoid(x - 0.3))

    def f_neg(x: Tensor) -> Tensor:
        return -torch.log(torch.sigmoid(x + 0.8))

    b = torch.eye(D, dtype=torch.float64) / D
    equal(found, 2 * slope(type2(pos, neg, pos.detach(), neg.detach(), b, f, f_neg), a), "scff")


def hinge(x: Tensor) -> Tensor:
    return torch.clamp(1 - x, min=0)


def test_clapp() -> None:
    """f(x) = max(0, 1 - x), type 2, B = W_pred, c = z' of the other view; gradients of z and of W."""
    z, rule = leaf(2 * M, D), localssl.rules.get("clapp")
    declares(rule, Form("hinge", 2, "lateral: own layer", "trained", ("z′", "z′")), Inputs, None)
    assert trained(rule) == ["lateral"]
    (w,) = rule.build([D])["lateral"]
    w.double()
    assert isinstance(w.weight, nn.Parameter)
    negatives = torch.randperm(2 * M, generator=torch.Generator().manual_seed(2))
    loss = rule.losses(Batch([z], negatives, maps=[z]), {"lateral": [w]})[0]
    found = torch.autograd.grad(loss, (z, w.weight))
    z_pos = torch.cat((z[M:], z[:M]))
    expected = type2(z_pos, z_pos[negatives], z.detach(), z.detach(), w.weight, hinge)
    for one, other, what in zip(found, torch.autograd.grad(expected, (z, w.weight)), ("z", "W"), strict=True):
        equal(one, other, f"clapp {what}")


def test_clapp_as_first_published() -> None:
    """The same formula twice a k: the patch below under its context, and the context under the patch below it."""
    images, rows, columns = 4, 3, 2
    z = leaf(images * rows * columns, D)
    rule = localssl.rules.get("clapp-illing", coin=False, rows=rows, columns=columns)
    form = Form("hinge", 2, "the patch k + 1 rows above, and below", "trained, one a k and side")
    declares(rule, form, PatchGrid, None)
    assert trained(rule) == ["predict_1", "retrodict_1"]
    made = {key: [m.double() for m in parts] for key, parts in rule.build([D]).items()}
    assert set(made) == {"predict_1", "retrodict_1"}
    negatives = torch.tensor([1, 2, 3, 1])
    found = slope(rule.layer_loss(Batch([z], negatives, maps=[z]), 0, made), z)
    grid = z.view(images, rows, columns, D)
    context, target, wrong = (g.reshape(-1, D) for g in (grid[:, 0], grid[:, 2], grid[negatives][:, 2]))
    w, v = (weight_of(made[key][0]) for key in ("predict_1", "retrodict_1"))
    down = type2(target, wrong, context.detach(), context.detach(), w.T, hinge)
    up = type2(context, context, target.detach(), wrong.detach(), v, hinge)
    equal(found, slope(down + up, z), "clapp-illing")


def weight_of(part: nn.Module) -> Tensor:
    weight = part.get_parameter("weight")
    return weight.detach()
