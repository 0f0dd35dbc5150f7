"""A learning rule as data: ``rule.json``, for those who build it in hardware.

``recorder`` watches a real update and ``lowering`` writes it down in few operations (``ops``); ``program`` keeps what
the update needs, in stages; ``reading`` says what is read when; ``twin`` makes a network small enough for golden
vectors, which ``vectors`` takes; ``document`` puts the file together. Of a run in integers ``rounding`` watches what is
rounded, ``whole`` turns the program into one of whole numbers (``writing``, ``lengths``), ``descent`` adds how weights
are written.
"""

from __future__ import annotations

from localssl.rulefile.document import FORMAT, VERSION, WRITING, manifest, write
from localssl.rulefile.ops import OPS

__all__ = ["FORMAT", "OPS", "VERSION", "WRITING", "manifest", "write"]
