"""The locality certificate: what one real update of a rule reads, whether that is local, and what it costs.

>>> import localssl
>>> localssl.certificate.certify("clapp++").verdict
'local'
"""

from __future__ import annotations

from localssl.certificate.certificate import Certificate, certify, count
from localssl.certificate.costs import Cost
from localssl.certificate.reading import REASONS, Read

__all__ = ["REASONS", "Certificate", "Cost", "Read", "certify", "count"]
