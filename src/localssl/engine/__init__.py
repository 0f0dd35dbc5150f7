"""The three-factor engine: what carries out a score rule's credit assignment without autograd.

``choice`` says where it is used; ``blocks``, ``passes`` and ``weights`` know a block's synapses, ``factors`` the
scores, ``three_factor`` the order in which blocks run and learn. ``events`` is the same update one event at a time.
``integer`` carries it out with numbers of a few bits, whose weights ``synapses`` keeps.
"""

from __future__ import annotations

from localssl.engine.choice import ENGINES, Chosen, autograd_is_faster, choose, refusal
from localssl.engine.integer import KEY, places
from localssl.engine.spread import sizes
from localssl.engine.synapses import PERFECT, Device, Numbers, Writes
from localssl.engine.three_factor import ThreeFactor

__all__ = [
    "ENGINES",
    "KEY",
    "PERFECT",
    "Chosen",
    "Device",
    "Numbers",
    "ThreeFactor",
    "Writes",
    "autograd_is_faster",
    "choose",
    "places",
    "refusal",
    "sizes",
]
