"""localssl: deep networks trained by local self-supervised rules, and how close they come to backpropagation."""

from localssl import alignment, encoders, rules
from localssl.checkpoint import load
from localssl.learner import Learner

__version__ = "0.1.0"
__all__ = ["Learner", "__version__", "alignment", "encoders", "load", "rules"]
