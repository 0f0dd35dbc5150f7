"""Experiments: one file a figure or table; ``localssl reproduce NAME`` runs one."""

from __future__ import annotations

from collections.abc import Callable

from localssl.experiments import (
    better_rule,
    bits,
    brain,
    cheap_b,
    cifar10,
    demo,
    demo_search,
    ff_mnist,
    fig3b,
    fig4c,
    fig_a1,
    lpl_own,
    own_settings,
    pc_mnist,
    resnet18,
    scff_mnist,
    settled,
    staleness,
    table_a4,
    tables,
    theory_decay,
    theory_explorer,
    theory_figures,
)
from localssl.experiments.cells import Settings

__all__ = ["EXPERIMENTS", "KEPT_SCALE", "PAPER_SCALE", "Settings"]

EXPERIMENTS: dict[str, Callable[[Settings], None]] = {
    "demo": demo.run,
    "demo-search": demo_search.run,
    "fig2": theory_figures.fig2,
    "fig3a": theory_figures.fig3a,
    "figA1": fig_a1.run,
    "fig3b": fig3b.run,
    "settled": settled.run,
    "fig4b": theory_figures.fig4b,
    "fig4c": fig4c.fig4c,
    "figA2": fig4c.fig_a2,
    "alignment-accuracy": fig4c.accuracy,
    "better-rule": better_rule.screen,
    "better-rule-final": better_rule.final,
    "bits": bits.run,
    "brain": brain.run,
    "cheap-b": cheap_b.screen,
    "cheap-b-final": cheap_b.final,
    "factored-moment": cheap_b.moment,
    "ff-mnist": ff_mnist.run,
    "theory-decay": theory_decay.run,
    "theory-explorer": theory_explorer.run,
    "scff-mnist": scff_mnist.run,
    "pc-mnist": pc_mnist.run,
    "resnet18": resnet18.run,
    "staleness": staleness.run,
    "tableA4": table_a4.run,
    "table2": tables.table2,
    "tableA3": tables.table_a3,
    "fig5": tables.fig5,
    "cifar10": cifar10.run,
    "cifar10-search": cifar10.search,
    "cifar10-speed": cifar10.speed,
    "lpl-cifar10": lpl_own.cifar10,
    "lpl-stl10": lpl_own.stl10,
    **own_settings.experiments(),
}

PAPER_SCALE = {"fig4c", "figA2", "alignment-accuracy", "table2", "tableA3", "fig5", "lpl-cifar10", "lpl-stl10"}
PAPER_SCALE |= set(own_settings.RECIPES)
KEPT_SCALE = {"table2", "tableA3", "fig5"}  # what can be said of a comparison that was run with other settings
