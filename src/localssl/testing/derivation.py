"""Checks of an update against other ways to it: numerical differentiation, the engine without autograd."""

from __future__ import annotations

from localssl.testing.bench import Bench, Skip, require, update
from localssl.testing.comparing import TO_ROUNDING
from localssl.testing.descent import DESCENDED


def differentiation(bench: Bench) -> None:
    """The update equals numerical differentiation of what its credit descends, all that is stopped held at its value.

    Central differences in two directions per block and projection, in float64. Held are: what ``detach`` or ``.data``
    returned, what was computed under ``torch.no_grad``, and numbers read by ``item`` or ``float`` (see ``frozen.py``).
    What is descended, by credit: see ``descent.py``.
    """
    DESCENDED[bench.rule.credit](bench)


def engines(bench: Bench) -> None:
    """The engine without autograd gives autograd's update, in both of its modes, wherever it takes the rule."""
    if (learner := bench.learner()).engine == "autograd":
        raise Skip(learner.engine_note or "")
    feed, want = bench.feed(), update(bench.learner(engine="autograd"), bench.feed())
    for engine in ("hebbian", "hebbian-lean"):
        found = update(bench.learner(engine=engine), feed)
        for name, gradient in want.grads.items():
            other = found.grads[name]
            require((other is None) == (gradient is None), f"engine {engine}: an update of {name}, or none, alone")
            if other is not None and gradient is not None:
                off = float((other - gradient).norm() / (gradient.norm() + 1e-12))
                require(off < TO_ROUNDING, f"engine {engine}: the update of {name} is off by {off:.1g}")
