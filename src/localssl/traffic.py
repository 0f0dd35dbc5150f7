"""What processes that share a batch send for the changes of B, by formula, and the way that takes less time.

Of N processes each has S samples (two views of n images), readout l is d_l long, and w numbers make up the projections
of a layer. A ring sends, from every process:

- rows: readout l goes to all, (N - 1) S d_l numbers, and with it each makes the whole change of every B of layer l. A
  reference c is such a readout, too: where layers share it, it is sent once.
- matrices: each makes the change from its own samples, and the sum is 2 (N - 1) / N w numbers. It needs the negatives
  that other processes have, and they the signals back: 2 r d_l for each reference, r rows. With "next" negatives r = 2,
  the one after the last image in both views; with random ones (N - 1) / N S on average.

Of rows every process multiplies all N S with B, twice (g and ΔB), of matrices its own S: the others' are counted as the
numbers that could be sent meanwhile (``Pace``). Products with a frozen inner factor are not counted, and those of a
matrix that patches share once.

Numbers, not bytes: those of B and of readouts are of one size, unless the precision is mixed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple


class Pace(NamedTuple):
    """What else takes time, measured in numbers of 4 bytes that could be sent meanwhile.

    Args:
        products: multiply-adds that a process does while a number is sent; inf: they take no time.
        message: numbers that could be sent while a message goes its way, whatever is in it.
    """

    products: float = math.inf
    message: float = 0.0


BYTES_ALONE = Pace()
THREAD = Pace(103, 119_000)  # one thread: what benchmarks/results/parallel.json has as "pace"
GPU = Pace(12_000, 250_000)  # reckoned, not measured: 150e12 multiply-adds, 50e9 bytes a second, 20 microseconds


def pace(device: str, threads: int) -> Pace:
    """Of processes with so many threads, on a kind of device ("cpu", "cuda")."""
    return GPU if device == "cuda" else THREAD._replace(products=threads * THREAD.products)


class Layer(NamedTuple):
    """A layer's sizes.

    Args:
        d: length of its readout.
        sources: the layer, from 0, that each of its references comes from.
        weights: trained numbers of its projections, w.
    """

    d: int
    sources: tuple[int, ...]
    weights: int


class Sizes(NamedTuple):
    """All that counts.

    Args:
        layers: in their order.
        samples: of each process, S.
        processes: N.
        drawn: whether negatives are drawn at random, and so from all processes.
        pace: what else takes time.
    """

    layers: tuple[Layer, ...]
    samples: int
    processes: int
    drawn: bool = False
    pace: Pace = BYTES_ALONE


def gathered(layers: Sequence[Sequence[int]], matrices: frozenset[int]) -> frozenset[int]:
    """The layers whose readouts go to all, where those of ``matrices`` do without.

    Args:
        layers: the sources of every layer.
        matrices: layers whose changes are summed as matrices.
    """
    rows = [layer for layer in range(len(layers)) if layer not in matrices]
    return frozenset(rows).union(*(layers[layer] for layer in rows))


def numbers(sizes: Sizes, matrices: frozenset[int]) -> float:
    """Numbers that a process sends in a step for the losses and changes of B, scalars left aside."""
    layers, others = sizes.layers, sizes.processes - 1
    rows = sum(others * sizes.samples * layers[i].d for i in gathered([layer.sources for layer in layers], matrices))
    away = sizes.samples * others / sizes.processes if sizes.drawn else 2
    sums = (2 * others / sizes.processes * layers[i].weights for i in matrices)
    return rows + sum(sums) + sum(2 * away * layers[i].d * len(layers[i].sources) for i in matrices)


def cost(sizes: Sizes, matrices: frozenset[int]) -> float:
    """``numbers``, and those that could be sent while messages go their way and the others' rows are multiplied.

    A readout is one message. Of matrices the losses' sum is one; of every reference the sum of changes, the negatives
    and their signals are one each.
    """
    layers = sizes.layers
    more = sum(layer.weights for i, layer in enumerate(layers) if i not in matrices)
    products = 2 * (sizes.processes - 1) * sizes.samples * more / sizes.pace.products
    readouts = len(gathered([layer.sources for layer in layers], matrices))
    messages = readouts + sum(1 + 3 * len(layers[i].sources) for i in matrices)
    return numbers(sizes, matrices) + products + messages * sizes.pace.message


@functools.lru_cache
def choose(sizes: Sizes) -> frozenset[int]:
    """The layers whose changes of B are summed as matrices, so that ``cost`` is least; the others' are made of rows.

    Exact where every reference is the own or the last readout; for other references near to it.
    """
    all_layers = frozenset(range(len(sizes.layers)))
    of: Callable[[frozenset[int]], float] = functools.partial(cost, sizes)
    found: list[frozenset[int]] = []
    for start in (frozenset[int](), all_layers):  # layer by layer, from either end
        chosen = start
        while better := [other for layer in all_layers if of(other := chosen ^ {layer}) < of(chosen)]:
            chosen = min(better, key=of)
        found.append(chosen)
    return min(found, key=of)


def described(sizes: Sizes, matrices: frozenset[int], size: int) -> str:
    """A choice in a line for the user; ``size``: bytes of a number."""

    def named(chosen: frozenset[int], what: str) -> list[str]:
        blocks = ", ".join(str(layer + 1) for layer in sorted(chosen))
        which = "all blocks" if len(chosen) == len(sizes.layers) else f"block{'s' * (len(chosen) > 1)} {blocks}"
        return [f"{what} for {which}"] if chosen else []

    rows = frozenset(range(len(sizes.layers))) - matrices
    ways = " and ".join([*named(rows, "rows"), *named(matrices, "matrices")])
    sent = (numbers(sizes, chosen) * size / 1e6 for chosen in (matrices, frozenset[int](), rows | matrices))
    mine, all_rows, all_matrices = (f"{megabytes:,.{0 if megabytes >= 100 else 2}f}" for megabytes in sent)
    return (
        f"changes of B: {ways}, {mine} MB a step from each process (all as rows {all_rows}, as matrices {all_matrices})"
    )
