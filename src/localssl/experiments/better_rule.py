"""The search for a local rule nearer to backpropagation than ``clapp++both``."""

from __future__ import annotations

from localssl.experiments.cells import Settings


def screen(settings: Settings) -> None:
    """Eight candidates for a better local rule, screened by alignment and accuracy on CIFAR-10 (an hour on a core)."""
    from localssl.experiments import candidates  # here: it registers its rules, which are no one else's business

    candidates.screen(settings)


def final(settings: Settings) -> None:
    """The best of better-rule and clapp++both at width 0.25, five paired seeds (core-hours)."""
    from localssl.experiments import candidates

    candidates.final(settings)
