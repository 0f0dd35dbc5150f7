"""Slow references of every built-in rule, in NumPy float64, by another route than the library's.

Written from the equations with loops over samples, units and positions; they use no automatic differentiation and
nothing of the rules. Every module here that has a ``REFERENCES`` table (rule name to function) is found by itself.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from localssl.errors import unknown
from localssl.oracle.layers import Array, Block, ConvBlock, LinearBlock
from localssl.oracle.result import Patches, Reference, Result, Task

__all__ = ["ConvBlock", "LinearBlock", "Result", "names", "reference"]


def _collect() -> dict[str, Reference]:
    table: dict[str, Reference] = {}
    for module in pkgutil.iter_modules(__path__):
        table.update(getattr(importlib.import_module(f"{__name__}.{module.name}"), "REFERENCES", {}))
    return table


def _options(function: Reference) -> list[str]:
    bound = {"task", *getattr(function, "keywords", {})}  # what a partial has already chosen is no option
    return [name for name in inspect.signature(function).parameters if name not in bound]


_REFERENCES = _collect()


def names() -> tuple[str, ...]:
    """Rules that have a reference here."""
    return tuple(sorted(_REFERENCES))


def reference(
    rule_name: str,
    blocks: Sequence[Block],
    projections: Mapping[str, Sequence[Array]],
    view_a: ArrayLike,
    view_b: ArrayLike,
    negatives: ArrayLike | None = None,
    patches: Patches = None,
    *,
    references: Mapping[str, Sequence[Array]] | None = None,
    labels: ArrayLike | None = None,
    samples: ArrayLike | None = None,
    norm: str | None = None,
    **options: Any,
) -> Result:
    """Losses and gradients of one batch under a rule.

    Args:
        rule_name: as in ``localssl.rules``.
        blocks: ``ConvBlock`` or ``LinearBlock``, first to last.
        projections: by key, one matrix per loss, (d_z, d_c); "head" is (d_out, d_z).
        view_a, view_b: (n, C, H, W), or (n, d) for linear blocks.
        negatives: (2n,) indices into the stacked positives; None takes the next sample, (i + 1) mod 2n.
        patches: patch size on the block outputs, one for all or one per block; None averages over all positions.
        references: the ``references`` of an earlier result, to hold c fixed while weights move.
        labels: (n,), for supervised rules.
        samples: what enters the first block, where that is not the two views, stacked (see ``localssl.inputs``).
        norm: what every block's input goes through first, "length" or "standardise" (for Stochastic FF "batch", too).
        options: the rule's own, as in ``localssl.rules.get``.

    Raises:
        UsageError: no reference of that name, or an option it does not have.
        ValueError: patches that do not divide a map, an unknown f or loss type.
    """
    if rule_name not in _REFERENCES:
        raise unknown("oracle", rule_name, _REFERENCES)
    known = _options(_REFERENCES[rule_name])
    for option in options:
        if option not in known:
            raise unknown(f"option of the oracle of {rule_name!r}", option, known)
    stacked = np.concatenate([np.asarray(view_a, dtype=np.float64), np.asarray(view_b, dtype=np.float64)])
    count = len(stacked)
    entered = stacked if samples is None else np.asarray(samples, dtype=np.float64)
    given = None if labels is None else np.asarray(labels, dtype=np.int64)
    draws = [(i + 1) % count for i in range(count)] if negatives is None else negatives
    sizes = [patches] * len(blocks) if patches is None or isinstance(patches, int) else list(patches)
    task = Task(list(blocks), projections, entered, np.asarray(draws, dtype=np.int64), sizes, references, given, norm)
    return _REFERENCES[rule_name](task, **options)
