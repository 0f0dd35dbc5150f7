"""The theory of the paper (sections 3.1 to 3.3), as exact computations: optimal projections, gradients, theorems."""

from __future__ import annotations

from localssl.theory.forms import Form
from localssl.theory.projection import Optimum, optimal_projection, solve

__all__ = ["Form", "Optimum", "optimal_projection", "solve"]
