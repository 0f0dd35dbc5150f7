"""Alignment: how close a rule's update is to backpropagation's, at the same weights, views and negatives.

``measure`` gives cosines and their companions for any rules that share an encoder; ``decompose`` says what limits a
rule; ``optimal_feedback`` is the optimum of Definition 3.4.
"""

from __future__ import annotations

from localssl.alignment.decomposition import DECOMPOSITION, decompose
from localssl.alignment.fitting import fit_projections, mean_losses
from localssl.alignment.measurement import measure
from localssl.alignment.optimum import optimal_feedback
from localssl.alignment.quantities import OVER_BATCHES, QUANTITIES, LayerAlignment, compare
from localssl.alignment.references import REFERENCES, refusal
from localssl.alignment.signals import Pair, Signals, block_gradients, shared_negatives

__all__ = [
    "DECOMPOSITION",
    "OVER_BATCHES",
    "QUANTITIES",
    "REFERENCES",
    "LayerAlignment",
    "Pair",
    "Signals",
    "block_gradients",
    "compare",
    "decompose",
    "fit_projections",
    "mean_losses",
    "measure",
    "optimal_feedback",
    "refusal",
    "shared_negatives",
]
