"""Representations side by side: activities as named arrays, CKA and RSA, participation ratio, the spatial shape of B.

>>> import localssl
>>> import numpy as np
>>> x = np.random.default_rng(0).standard_normal((40, 5))
>>> localssl.represent.similarity(x, 3 * x[:, ::-1]).p  # as alike as can be: 1 in 201
0.004975124378109453
"""

from __future__ import annotations

from localssl.represent.activities import Activities, activities, load, to_rsatoolbox
from localssl.represent.measures import MEASURES, cka, dissimilarities, participation_ratio, rsa
from localssl.represent.similarity import Similarity, dimension, layers, similarity
from localssl.represent.spatial import Distance, Shape, shapes, spatial

__all__ = [
    "MEASURES",
    "Activities",
    "Distance",
    "Shape",
    "Similarity",
    "activities",
    "cka",
    "dimension",
    "dissimilarities",
    "layers",
    "load",
    "participation_ratio",
    "rsa",
    "shapes",
    "similarity",
    "spatial",
    "to_rsatoolbox",
]
