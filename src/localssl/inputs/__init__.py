"""Inputs: what enters the encoder for two views of a batch of images. Most rules see just the two views.

A component is a frozen dataclass; a rule names one in ``Rule.inputs``. Whatever is random comes from torch's global
generator.
"""

from __future__ import annotations

from localssl.inputs.base import Inputs
from localssl.inputs.grid import PatchGrid
from localssl.inputs.pairs import NoisyCopies, Pairs, Single
from localssl.inputs.positives import Hybrids, LabelInImage, PositivesAndNegatives

__all__ = ["Hybrids", "Inputs", "LabelInImage", "NoisyCopies", "Pairs", "PatchGrid", "PositivesAndNegatives", "Single"]
