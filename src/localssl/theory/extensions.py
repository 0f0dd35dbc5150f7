"""Where the theorems hold beyond the paper, and where they do not: proofs in docs/theory.md, each tested here.

All that Theorem 3.1 needs of the map R from layer l to layer L is RᵀRx = x for every activity x of the batch, and that
the references' scalar products are the same in both layers; then K, α and the scores are the same, and Rᵀg^L = g^l.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from localssl.alignment import block_gradients
from localssl.encoders import Encoder
from localssl.references import Last, Own
from localssl.theory import networks
from localssl.theory.cases import Case, deviation, mismatch, normal, samples
from localssl.theory.forms import form
from localssl.theory.gradients import Samples, Setting, gradients
from localssl.theory.lowrank import low_rank
from localssl.theory.statements import Statement, closer, shrinking

BROKEN = 0.01  # a deviation of one per cent is no rounding


class _Layer(nn.Module):
    """Wz + b, plus z if ``residual``, averaged over pairs of units if ``pool``, of length 1 if ``unit``."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        residual: bool = False,
        pool: bool = False,
        unit: bool = False,
        unit_input: bool = False,
    ):
        super().__init__()
        self.weight = nn.Parameter(weight.clone())
        self.bias = bias
        self.residual, self.pool, self.unit, self.unit_input = residual, pool, unit, unit_input

    @override
    def forward(self, z: Tensor) -> Tensor:
        if self.unit_input:
            z = F.normalize(z, dim=1)
        out = F.linear(z, self.weight, self.bias)
        out = out + z if self.residual else out
        out = F.avg_pool1d(out[:, None], 2)[:, 0] if self.pool else out
        return F.normalize(out, dim=1) if self.unit else out


def _orthonormal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return nn.init.orthogonal_(torch.empty(rows, columns, dtype=torch.float64), generator=generator)


def _square(
    case: Case, residual: bool = False, unit: bool = False, unit_input: bool = False
) -> tuple[Encoder, Samples]:
    """``depth`` orthonormal layers of one width with these choices, and samples for it."""
    generator = case.generator()
    weights = [_orthonormal(case.width, case.width, generator) for _ in range(case.depth)]
    layers = [_Layer(w, residual=residual, unit=unit, unit_input=unit_input) for w in weights]
    return Encoder.from_blocks(layers), samples(case, case.width, generator)


def widening(case: Case) -> float:
    """Layers that widen, with orthonormal columns; own reference and direct feedback."""
    generator = case.generator()
    widths = shrinking(case, generator)[::-1]
    encoder = networks.mlp(widths, widths[0] + 3, generator)
    inputs = samples(case, widths[0] + 3, generator)
    return max(mismatch(encoder, inputs, case.setting(reference=r)) for r in (Own(), Last()))


def isometric(case: Case) -> float:
    """R = (1 1) keeps the length of every activity along the first unit, and yet RᵀRx is not x."""
    inputs = Samples(*(torch.tensor([[value, 0.0]], dtype=torch.float64) for value in (0.5, -0.3, 0.7)))
    matrices = [torch.eye(2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64)]
    return mismatch(networks.from_weights(matrices), inputs, case.setting())


def normalised(case: Case) -> float:
    """Activities divided by their length, before the score and before the next layer."""
    encoder, inputs = _square(case, unit=True)
    return max(mismatch(encoder, inputs, case.setting(reference=r)) for r in (Own(), Last()))


def goodness(case: Case) -> float:
    """Forward-Forward proper (B = I, c = z) on unit activities: |ẑ|² is 1 whatever W is, so nothing is left to learn.

    Returns the largest gradient, which rounding alone keeps from 0.
    """
    encoder, inputs = _square(case, unit=True)
    itself = Samples(inputs.pos, inputs.neg, inputs.pos, inputs.neg)
    local, end_to_end = gradients(encoder, itself, case.setting(projections="identity"))
    return max(float(g.norm()) for g in (*local, *end_to_end))


def normalised_goodness(case: Case) -> float:
    """Forward-Forward's order: the score sees z, the next layer z / |z|."""
    encoder, inputs = _square(case, unit_input=True)
    return mismatch(encoder, inputs, case.setting())


def residual(case: Case) -> float:
    """z + Wz with W + I orthonormal."""
    encoder, inputs = _square(case, residual=True)
    for block in encoder.blocks:
        assert isinstance(block, _Layer)
        block.weight.data -= torch.eye(case.width, dtype=torch.float64)  # so that I + W is orthonormal
    return mismatch(encoder, inputs, case.setting())


def residual_orthonormal(case: Case) -> float:
    """z + Wz with W orthonormal."""
    encoder, inputs = _square(case, residual=True)
    return mismatch(encoder, inputs, case.setting())


def _biased(case: Case) -> tuple[Encoder, Samples]:
    generator = case.generator()
    width = case.width
    layers = [_Layer(_orthonormal(width, width, generator), normal((width,), generator)) for _ in range(case.depth)]
    return Encoder.from_blocks(layers), samples(case, width, generator)


def biased(case: Case) -> float:
    """Wz + b, own reference."""
    encoder, inputs = _biased(case)
    return mismatch(encoder, inputs, case.setting())


def biased_feedback(case: Case) -> float:
    """Wz + b, direct feedback: the biases cancel in z_pos - z_neg."""
    encoder, inputs = _biased(case)
    return mismatch(encoder, inputs, case.setting(reference=Last()))


def _pooled(case: Case) -> tuple[Encoder, Samples]:
    generator = case.generator()
    sizes = [case.width * 2 ** (case.depth - layer) for layer in range(case.depth)]
    layers = [_Layer(_orthonormal(size, size, generator), pool=True) for size in sizes]
    return Encoder.from_blocks(layers), samples(case, sizes[0], generator)


def _small(case: Case) -> Case:
    """Few layers and units, one sample: pooling doubles the width with every layer below."""
    return Case(min(case.depth, 4), min(case.width, 6), 1, case.weight_decay, case.f, case.loss_type, case.seed)


def pooled(case: Case) -> float:
    """Averages over pairs of units in every layer."""
    encoder, inputs = _pooled(_small(case))
    return mismatch(encoder, inputs, case.setting())


def pooled_feedback(case: Case) -> float:
    """Theorem 3.3's inequality with them: (W^L…W^(l+1)) has equal singular values s <= 1."""
    encoder, inputs = _pooled(_small(case))
    return closer(encoder, inputs, case)


def stretched_feedback(case: Case) -> float:
    """Theorem 3.3 with one layer that keeps one of two units, doubled: direct feedback overshoots where c is large."""
    dz, c = torch.tensor([[0.1, 1.0]], dtype=torch.float64), torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    matrices = [torch.eye(2, dtype=torch.float64), torch.tensor([[2.0, 0.0]], dtype=torch.float64)]
    return closer(networks.from_weights(matrices), Samples(torch.zeros_like(dz), dz, c), case)


def batched_feedback(case: Case) -> float:
    """Theorem 3.3 with two samples that overturn it: c and Δz = z_neg - z_pos of layer 1, layer 2 keeps two units.

    Found by search; random batches hardly ever do.
    """
    dz = torch.tensor([[-1, -1, 1], [-1, -3, -1]], dtype=torch.float64)
    c = torch.tensor([[1, 0, 1], [2, 0, 0]], dtype=torch.float64)
    eye = torch.eye(3, dtype=torch.float64)
    return closer(networks.from_weights([eye, eye[:2]]), Samples(torch.zeros_like(dz), dz, c), case)


def _phyll(case: Case, tied: bool) -> float:
    """Cosines with one fixed vector ξ^l a layer, B = I; ``tied``: ξ^l = (W^L … W^(l+1))ᵀ ξ^L."""
    encoder, inputs = _square(case, unit=True)
    generator = torch.Generator().manual_seed(case.seed + 1)
    fixed = F.normalize(normal((case.depth, case.width), generator), dim=1)
    if tied:
        for layer in range(case.depth - 1, 0, -1):
            weight = next(encoder.blocks[layer].parameters())
            fixed[layer - 1] = weight.detach().T @ fixed[layer]
    return deviation(*_with_fixed(encoder, inputs, case, fixed))


def _with_fixed(encoder: Encoder, inputs: Samples, case: Case, fixed: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Layerwise and end-to-end gradients for scores z·ξ^l, by automatic differentiation of the loss itself."""
    chosen = form(case.f)

    def loss(z_pos: Tensor, z_neg: Tensor, layer: int) -> Tensor:
        s_pos, s_neg = z_pos @ fixed[layer], z_neg @ fixed[layer]
        if case.loss_type == 1:
            return chosen.value(s_pos - s_neg).sum()
        return (chosen.value(s_pos) + chosen.value(-s_neg)).sum()

    def through(x: Tensor, cut: bool) -> list[Tensor]:
        out: list[Tensor] = []
        for block in encoder.blocks:
            x = block(x.detach() if cut else x)
            out.append(x)
        return out

    pos, neg = through(inputs.pos, True), through(inputs.neg, True)
    local = torch.stack([loss(p, n, layer) for layer, (p, n) in enumerate(zip(pos, neg, strict=True))]).sum()
    last = loss(through(inputs.pos, False)[-1], through(inputs.neg, False)[-1], case.depth - 1)
    return block_gradients(encoder, local), block_gradients(encoder, last)


def phyll(case: Case) -> float:
    """One random vector a layer."""
    return _phyll(case, tied=False)


def phyll_tied(case: Case) -> float:
    """The last layer's vector, carried down."""
    return _phyll(case, tied=True)


def _of_rank(case: Case, rank: int, matching: bool) -> float:
    """Below the last layer the search starts from that one's minimum, carried down, or from anywhere."""
    encoder, inputs = _square(case)
    generator = torch.Generator().manual_seed(case.seed + 1)
    down = torch.eye(case.width, dtype=torch.float64)
    z_pos, z_neg, c = encoder(inputs.pos), encoder(inputs.neg), encoder(inputs.c)
    found: list[Tensor] = []
    carried, moved = down, 0.0
    for layer in range(case.depth - 1, -1, -1):
        f1, f2 = normal((2, 1, rank, case.width), generator)
        if matching and found:  # two searches from starts that correspond may part by rounding alone
            carried = down.T @ found[-1] @ down  # RᵀB^L R
            u, s, vt = torch.linalg.svd(carried)
            f1, f2 = (s[:rank, None] * u.T[:rank])[None], vt[None, :rank]
        triple = (z_pos[layer], z_neg[layer], c[layer])
        b = low_rank(*triple, f1, f2, case.f, case.loss_type, case.weight_decay, tolerance=1e-9).matrices[0]
        if matching and found:
            moved = max(moved, float((b - carried).norm() / carried.norm()))
        found.insert(0, b)
        down = down @ next(encoder.blocks[layer].parameters()).detach()
    deviation = mismatch(encoder, inputs, case.setting(projections=found))
    return max(moved, deviation) if matching else deviation


def restricted(case: Case) -> float:
    """The last layer's minimum, carried down: a minimum again, that the search does not leave, and equal gradients."""
    few = dataclasses.replace(case, depth=min(case.depth, 3), width=min(case.width, 8), n=min(case.n, 6))
    return _of_rank(few, max(1, few.width // 2), matching=True)


def restricted_apart(case: Case) -> float:
    """Unrelated starts: other minima. Rank 1, with units and samples enough that there are several."""
    return _of_rank(dataclasses.replace(case, depth=3, width=8, n=8, weight_decay=0.01), 1, matching=False)


def _convolutions(case: Case, kernel: int) -> float:
    """Linear convolutions with orthonormal weights, stride = kernel, one B for all positions (mean over them)."""
    generator = case.generator()
    depth, channels = min(case.depth, 3), min(case.width, 8)
    side = max(2, kernel**depth)
    blocks: list[nn.Module] = []
    for _ in range(depth):
        conv = nn.Conv2d(channels, channels, kernel, stride=kernel, bias=False, dtype=torch.float64)
        conv.weight.data.copy_(_orthonormal(channels, channels * kernel**2, generator).view_as(conv.weight))
        blocks.append(conv)
    shape = (case.n, channels, side, side)
    inputs = Samples(*(normal(shape, generator) for _ in range(3)))
    return mismatch(Encoder.from_blocks(blocks), inputs, Setting(case.f, case.loss_type, case.weight_decay))


def shared(case: Case) -> float:
    """Kernel 1: the map between layers is the same at every position."""
    return _convolutions(case, 1)


def shared_convolution(case: Case) -> float:
    """Kernel 2: it mixes positions."""
    return _convolutions(case, 2)


HOLDS = (
    Statement("widening layers", "orthonormal columns suffice: Theorem 3.1 and Corollary 3.2", widening),
    Statement("normalised activities", "the theorem holds where the scores see them, too", normalised),
    Statement(
        "normalised goodness",
        "|ẑ|² is constant: Forward-Forward has no gradient left",
        goodness,
        types=(2,),
    ),
    Statement("cosine, tied ξ", "PhyLL's cosine, ξ^l = (W^L…W^(l+1))ᵀξ^L", phyll_tied, forms=("softplus", "linear")),
    Statement("residual", "I + W orthonormal", residual),
    Statement("biases", "direct feedback with type 1", biased_feedback, types=(1,)),
    Statement("biases, linear f", "direct feedback, either type", biased_feedback, forms=("linear",)),
    Statement("average pooling", "Theorem 3.3's inequality", pooled_feedback, forms=("linear",)),
    Statement(
        "restricted rank",
        "minima that correspond under the map",
        restricted,
        forms=("softplus",),
        tolerance=1e-6,
        cost=5,
    ),
    Statement("B shared by positions", "1×1 convolutions, orthonormal", shared, forms=("softplus", "linear")),
)
FAILS = (
    Statement("lengths kept", "RᵀRx ≠ x, one fixed example", isometric, at_least=BROKEN),
    Statement("normalised between layers only", "Forward-Forward's order", normalised_goodness, at_least=BROKEN),
    Statement("cosine, random ξ^l", "PhyLL's own", phyll, at_least=BROKEN),
    Statement("residual, W orthonormal", "I + W is not orthonormal", residual_orthonormal, at_least=BROKEN),
    Statement("biases, own reference", "any f and type", biased, at_least=BROKEN),
    Statement(
        "biases, feedback, type 2", "f not linear", biased_feedback, forms=("softplus",), types=(2,), at_least=BROKEN
    ),
    Statement("average pooling", "Theorem 3.1's equality", pooled, at_least=BROKEN),
    Statement(
        "Theorem 3.3, stretched",
        "a singular value of 2, one fixed example",
        stretched_feedback,
        forms=("linear",),
        at_least=BROKEN,
    ),
    Statement("Theorem 3.3, batch", "n = 2, one fixed example", batched_feedback, forms=("linear",), at_least=BROKEN),
    Statement(
        "restricted rank",
        "minima from unrelated starts",
        restricted_apart,
        forms=("softplus",),
        at_least=BROKEN,
        cost=5,
    ),
    Statement("B shared by positions", "2×2 convolutions, orthonormal", shared_convolution, at_least=BROKEN),
)
