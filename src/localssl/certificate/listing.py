"""Certificates as they are listed: for the terminal, for CSV and for the documentation."""

from __future__ import annotations

from collections.abc import Iterable

from localssl import markdown, rules
from localssl.certificate.certificate import Certificate, certify

SHORT = ["rule", "verdict", "why", "ΔW reads", "ΔB reads", "layers", "operations", "bytes"]
LONG = ["rule", "layer", "parameter", "of", "what", "source", "distance", "reason", "evidence", "operations", "bytes"]
CAPTION = (
    "From the trace of one update. layers: to the farthest thing read. operations (multiply-accumulates) and bytes: of "
    "the matrix products and convolutions that the update rests on, one sample, the forward pass left out."
)


def short(certificate: Certificate) -> list[str]:
    """One row under ``SHORT``."""
    c = certificate
    seen = [f"{reason} ({_places(c, reason)})" for reason in c.reasons]
    seen += [f"no update of block {layer} to trace" for layer in c.untraced]
    entering = ["labels (in the image)"] if c.labels_enter else []
    return [
        c.rule,
        c.verdict,
        "; ".join(seen),
        ", ".join([*c.names("ΔW"), *entering]),
        ", ".join(c.names("ΔB")),
        str(c.distance),
        f"{c.cost.operations:,.0f}",
        f"{c.cost.bytes:,.0f}",
    ]


def long(certificate: Certificate) -> list[list[object]]:
    """Rows under ``LONG``: a row for everything that a parameter's update read, and one a layer with its costs."""
    c = certificate
    reads: list[list[object]] = [
        [c.rule, r.layer, r.target, r.of, r.what, r.source, r.distance, r.reason, r.evidence, "", ""] for r in c.reads
    ]
    costs: list[list[object]] = [
        [c.rule, layer, "", "", "cost", "", "", "", "", round(cost.operations), round(cost.bytes)]
        for layer, cost in enumerate(c.layer_costs, start=1)
    ]
    total: list[object] = [c.rule, "all", "", "", "cost", "", "", "", "", round(c.cost.operations), round(c.cost.bytes)]
    silent: list[list[object]] = [[c.rule, "", name, "", "no update", "", "", "", "", "", ""] for name in c.silent]
    return [*reads, *costs, total, *silent]


def built_in() -> list[str]:
    """Names of the built-in rules, sorted."""
    found = sorted(rules.names())
    return [name for name in found if type(rules.get(name)).__module__.startswith("localssl.rules.")]


def table(names: Iterable[str] | None = None) -> str:
    """The short rows of rules as a table in Markdown; of all built-in ones by default."""
    return as_table(certify(name) for name in (built_in() if names is None else names))


def as_table(certificates: Iterable[Certificate]) -> str:
    """The short rows of certificates as a table in Markdown."""
    rows = (short(certificate) for certificate in certificates)
    return markdown.table(SHORT, [[f"`{name}`", *others] for name, *others in rows])


def _places(certificate: Certificate, reason: str) -> str:
    """Whose update has read it: "ΔW", "ΔB" or both."""
    return ", ".join(dict.fromkeys(r.of for r in certificate.because(reason)))
