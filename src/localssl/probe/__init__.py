"""The probe: how good are a frozen encoder's features? Linear and kNN accuracy of every layer alone and of all.

Two protocols. ``fast_probe``: features computed once, regularised logistic regression. ``paper_probe``: the paper's,
features recomputed on augmented images in every epoch. Every result says by which protocol it was obtained.
"""

from localssl.probe.activity import features
from localssl.probe.fast import fast_probe
from localssl.probe.paper import paper_probe
from localssl.probe.result import ProbeResult, Row

__all__ = ["ProbeResult", "Row", "fast_probe", "features", "paper_probe"]
