"""How to cite the software and the paper whose rules it implements; CITATION.cff says the same (a test compares)."""

from __future__ import annotations

import localssl

TITLE = "localssl: local self-supervised learning of deep networks, measured against backpropagation"
PAPER = "Can Local Learning Match Self-Supervised Backpropagation?"
PAPER_AUTHORS = ("Wu S. Zihan", "Ariane Delrocq", "Wulfram Gerstner", "Guillaume Bellec")
PAPER_VENUE = "International Conference on Machine Learning (ICML)"
YEAR = 2026


def bibtex() -> str:
    """Both as BibTeX."""
    return f"""@software{{localssl,
  title = {{{TITLE}}},
  author = {{{{The localssl authors}}}},
  version = {{{localssl.__version__}}},
  year = {{{YEAR}}}
}}

@inproceedings{{clapp-plus-plus,
  title = {{{PAPER}}},
  author = {{{" and ".join(PAPER_AUTHORS)}}},
  booktitle = {{{PAPER_VENUE}}},
  year = {{{YEAR}}}
}}"""
