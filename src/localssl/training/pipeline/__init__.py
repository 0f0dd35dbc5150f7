"""Layer-parallel training: blocks learn at the same time in several processes, each on what the one below has finished.

``split`` says who trains which blocks, ``place`` where a process stands, ``stage`` runs and trains some of them;
``link`` carries activity and contexts between stages, ``exchange`` weights and optimiser states; ``assembly`` puts a
stage together, ``processes`` starts them, ``worker`` is the life of all but the first and ``first`` that of the first,
which feeds them. There may be several replicas of all stages, each with a part of every batch.

Staleness D: a block runs a batch before it has learnt from the D batches before it. The update of batch t is made from
the activity of batch t, the last layer's activity of batch t, and the weights of the projections at step t; the block's
activity came from weights that lack the last D updates. It is the same in every block, so that a run does not depend on
the number of processes. With D = 0 it is that of one process, bit for bit where both compute with as many threads.
"""

from __future__ import annotations

from localssl.training.pipeline.assembly import Setup
from localssl.training.pipeline.first import First, begun
from localssl.training.pipeline.place import ALONE, Place, place
from localssl.training.pipeline.split import divide, words
from localssl.training.pipeline.worker import work

__all__ = ["ALONE", "First", "Place", "Setup", "begun", "divide", "place", "words", "work"]
