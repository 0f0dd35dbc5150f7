"""Which way changes of B take, from the sizes alone."""

from __future__ import annotations

import itertools
import random

import pytest

from localssl import traffic
from localssl.traffic import Layer, Pace, Sizes

D = 64


def lateral(d: int, layers: int = 1) -> tuple[Layer, ...]:
    return tuple(Layer(d, (layer,), d * d) for layer in range(layers))


def test_numbers_by_hand() -> None:
    sizes = Sizes(lateral(D), samples=10, processes=4)
    assert traffic.numbers(sizes, frozenset()) == 3 * 10 * D
    assert traffic.numbers(sizes, frozenset({0})) == 2 * 3 / 4 * D * D + 2 * 2 * D  # two rows there, two back
    drawn = sizes._replace(drawn=True)
    assert traffic.numbers(drawn, frozenset({0})) == 2 * 3 / 4 * D * D + 2 * 7.5 * D


def test_a_reference_of_all_layers_is_sent_once() -> None:
    layers = tuple(Layer(D, (2,), D * D) for _ in range(3))
    sizes = Sizes(layers, samples=10, processes=2)
    assert traffic.numbers(sizes, frozenset()) == 3 * 10 * D
    assert traffic.numbers(sizes, frozenset({0, 1})) == 10 * D + 2 * (D * D + 4 * D)
    assert traffic.numbers(sizes, frozenset({1, 2})) == 2 * 10 * D + 2 * (D * D + 4 * D)  # layers 0 and 2


@pytest.mark.parametrize("processes", [2, 4, 16])
def test_the_crossover(processes: int) -> None:
    """Of a square B, next negatives: N n images against d and what the border costs, 2 N / (N - 1)."""
    border = D + 2 * processes / (processes - 1)
    seen: set[bool] = set()
    for images in range(1, 2 * D):
        sizes = Sizes(lateral(D), samples=2 * images, processes=processes)
        assert (traffic.choose(sizes) == {0}) == (processes * images > border)
        seen.add(processes * images > border)
    assert seen == {True, False}


def test_nothing_costs_less_than_what_is_chosen() -> None:
    draw = random.Random(0)
    for _ in range(200):
        count = draw.randint(1, 6)
        ds = [draw.choice((4, 16, 64)) for _ in range(count)]
        keys = draw.choice(((True, False), (False, True), (True, True)))
        layers: list[Layer] = []
        for layer, d in enumerate(ds):
            sources = ((layer,) if keys[0] else ()) + ((count - 1,) if keys[1] else ())
            layers.append(Layer(d, sources, sum(d * ds[source] for source in sources)))
        sizes = Sizes(tuple(layers), draw.choice((4, 16, 64, 256)), draw.choice((2, 3, 8)), draw.random() < 0.5)
        subsets = (frozenset(c) for k in range(count + 1) for c in itertools.combinations(range(count), k))
        pace = draw.choice((traffic.BYTES_ALONE, Pace(10, 0), Pace(100, 500)))
        sizes = sizes._replace(pace=pace)
        least = min(traffic.cost(sizes, subset) for subset in subsets)
        assert traffic.cost(sizes, traffic.choose(sizes)) == least


def test_in_a_line() -> None:
    sizes = Sizes((*lateral(4), Layer(1024, (1,), 1024**2)), samples=64, processes=2)
    assert traffic.choose(sizes) == {0}
    assert traffic.described(sizes, frozenset({0}), 4) == (
        "changes of B: rows for block 2 and matrices for block 1, 0.26 MB a step from each process "
        "(all as rows 0.26, as matrices 4.21)"
    )


def test_products_and_messages_by_hand() -> None:
    """Of a lateral B: N − 1 others' rows twice, one message; or four."""
    sizes = Sizes(lateral(D), samples=10, processes=4, pace=Pace(products=100, message=7))
    assert traffic.cost(sizes, frozenset()) == 3 * 10 * D + 2 * 3 * 10 * D * D / 100 + 7
    assert traffic.cost(sizes, frozenset({0})) == traffic.numbers(sizes, frozenset({0})) + 4 * 7
    alone = sizes._replace(pace=traffic.BYTES_ALONE)
    assert [traffic.cost(alone, m) for m in (frozenset[int](), frozenset({0}))] == [
        traffic.numbers(alone, m) for m in (frozenset[int](), frozenset({0}))
    ]


def test_many_processes_are_matrices_before_those_are_fewer_bytes() -> None:
    """The products of all the others' rows take longest, unless threads are many or a GPU does them."""
    few, many = (Sizes(lateral(1024), 32, n, pace=traffic.pace("cpu", 1)) for n in (2, 64))
    assert traffic.choose(few) == frozenset()
    assert traffic.choose(many) == {0}
    assert traffic.choose(many._replace(samples=16, pace=traffic.BYTES_ALONE)) == frozenset()
    assert traffic.pace("cpu", 4).products == 4 * traffic.pace("cpu", 1).products
