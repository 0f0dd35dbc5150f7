"""Tables of the documentation that are made from the code: python -m localssl.report.docs_tables docs [TABLE …]."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from localssl import markdown, rules, testing
from localssl.certificate import listing
from localssl.inputs import Inputs
from localssl.report import (
    benchmark_tables,
    cheap_tables,
    memory_tables,
    profile_tables,
    scaling,
    step_tables,
    study_tables,
    what_it_takes,
)
from localssl.rulefile import ops
from localssl.rules import Rule, ScoreRule
from localssl.rules.base import Form
from localssl.system.files import write_text

STUDIES = {  # whose files do not name their rules; each where it has been run
    "ff-mnist": ("ff-supervised",),
    "scff-mnist": ("scff",),
    "scff-cifar10": ("scff",),
    "lpl-cifar10": ("lpl",),
    "stochastic-ff-cifar10": ("stochastic-ff",),
    "pc-mnist": ("bp", "pc", "ipc"),
}
HEADER = ("rule", "credit", "reference", "B", "f, type", "inputs", "labels", "negatives", "encoder", "what it does",
          "code", "measured here")  # fmt: skip
TABLE1 = {"Forward-Forward": "ff", "PhyLL": "phyll", "SCFF": "scff", "CLAPP": "clapp"}  # the paper's rows: the rule
HEADER1 = ("learning rule", "c_neg", "c_pos", "B", "normalisation", "decreasing function f(x)", "loss type")


def rules_table() -> str:
    """Every built-in rule by what it declares (Table 1 of the paper, with credit and inputs), its file and results."""
    found = [rules.get(name) for name in sorted(rules.names())]
    found_in = _results()
    built_in = [rule for rule in found if type(rule).__module__.startswith("localssl.rules.")]
    return markdown.table(HEADER, [_row(rule, found_in) for rule in built_in])


def table1() -> str:
    """The paper's Table 1, its rows and columns, from what the rules declare."""
    return markdown.table(HEADER1, [_row1(name, rules.get(rule)) for name, rule in TABLE1.items()])


TABLES: Mapping[str, tuple[str, Callable[[], str]]] = {  # by name: the file, and what makes the table
    "table1": ("rules.md", table1),
    "rules": ("rules.md", rules_table),
    "checks": ("your-own-rule.md", testing.table),
    "step": ("engine.md", step_tables.step),
    "step-trained": ("engine.md", step_tables.trained),
    "step-goals": ("engine.md", step_tables.goals),
    "parts": ("engine.md", profile_tables.parts),
    "products": ("engine.md", profile_tables.products),
    "weights": ("engine.md", profile_tables.weights),
    "engines": ("engine.md", profile_tables.engines),
    "published": ("engine.md", step_tables.published),
    "allocator": ("engine.md", step_tables.allocator),
    "gpu": ("engine.md", profile_tables.gpu),
    "memory": ("engine.md", benchmark_tables.memory),
    "memory-goals": ("engine.md", memory_tables.memory_goals),
    "crossovers": ("engine.md", memory_tables.crossovers),
    "temporal": ("engine.md", memory_tables.temporal),
    "cheap-b": ("engine.md", cheap_tables.cheap_b),
    "cheap-b-final": ("engine.md", cheap_tables.cheap_b_final),
    "factored-moment": ("engine.md", cheap_tables.factored_moment),
    "staleness": ("engine.md", study_tables.staleness),
    "pipeline": ("engine.md", benchmark_tables.pipeline),
    "parallel": ("many-machines.md", benchmark_tables.parallel),
    "scaling": ("many-machines.md", scaling.table),
    "large-data": ("many-machines.md", benchmark_tables.large_data),
    "growth": ("engine.md", benchmark_tables.growth),
    "throughput": ("engine.md", profile_tables.throughput),
    "inactive": ("engine.md", benchmark_tables.inactive),
    "compiled": ("engine.md", benchmark_tables.compiled),
    "pc-states": ("alignment.md", benchmark_tables.pc_states),
    "takes-assumptions": ("what-it-would-take.md", what_it_takes.assumptions_table),
    "takes-step": ("what-it-would-take.md", what_it_takes.step_table),
    "takes-hours": ("what-it-would-take.md", what_it_takes.hours_table),
    "takes-parts": ("what-it-would-take.md", what_it_takes.parts_table),
    "takes-link": ("what-it-would-take.md", what_it_takes.link_table),
    "takes-measured": ("what-it-would-take.md", what_it_takes.measured_table),
    "compare": ("compare.md", study_tables.compare),
    "brain": ("neuroscience.md", study_tables.brain),
    "brain-answer": ("neuroscience.md", study_tables.brain_answer),
    "resnet18": ("networks.md", study_tables.resnet18),
    "bits": ("hardware.md", study_tables.bits),
    "flaws": ("hardware.md", study_tables.flaws),
    "operations": ("hardware.md", ops.table),
    "certificates": ("certificate.md", listing.table),  # half a minute
}


def updated(text: str, name: str) -> str:
    """The text of a page with the table of that name made anew between its two marks.

    Raises:
        ValueError: the marks are not there.
    """
    start, end = f"<!-- table {name}: made by docs_tables -->", f"<!-- end of table {name} -->"
    pattern = re.compile(f"{re.escape(start)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"no marks {start} and {end}")
    return pattern.sub(lambda _: f"{start}\n{TABLES[name][1]()}\n{end}", text)


def main(folder: Path, *names: str) -> None:
    """Write the tables of these names, all where there are none, into the pages of a folder."""
    for name in names or TABLES:
        page, _ = TABLES[name]
        path = folder / page
        write_text(path, updated(path.read_text(encoding="utf-8"), name))


def _form(rule: Rule) -> Form:
    """The rule's columns of Table 1."""
    if not isinstance(rule, ScoreRule):
        return rule.form or Form("")
    names = {key: type(reference).__name__.lower() for key, reference in rule.references.items()}
    c = ", ".join({"own": "z′", "last": "z′ of the last layer"}[name] for name in names.values())
    reference = ", ".join(f"{k}: {name} layer" for k, name in names.items())
    return Form(rule.f, rule.loss_type, reference, "trained", (c, c))


def _normalisation(rule: Rule) -> str:
    """Whether and how activities are normalised: on the way into every block, or in the loss."""
    blocks, loss = rule.encoder_options.get("norm"), _form(rule).norm
    ways = [*([f"every block's input ({blocks})"] if blocks else []), *([f"{loss}, in the loss"] if loss else [])]
    return f"yes: {'; '.join(ways)}" if ways else "no"


def _row1(name: str, rule: Rule) -> tuple[str, ...]:
    form = _form(rule)
    c_pos, c_neg = form.c
    words = (form.projection, _normalisation(rule), form.f, str(form.loss_type))
    return (f"{name}, `{rule.name}`", c_neg, c_pos, *words)


def _results() -> dict[str, list[str]]:
    """The folders of docs/results that hold runs of a rule, by rule."""
    found: dict[str, list[str]] = {}
    for study, trained in STUDIES.items():
        for rule in trained if any((study_tables.RESULTS / study).glob("*.csv")) else ():
            found.setdefault(rule, []).append(study)
    for folder in sorted(path for path in study_tables.RESULTS.glob("*") if (path / "cells").is_dir()):
        texts = [path.read_text(encoding="utf-8") for path in (folder / "cells").glob("*.json")]
        named = (re.findall(r'"(?:rule|row)": "([^"]+)"', text) for text in texts if _measured(json.loads(text)))
        for rule in sorted({name for names in named for name in names}):
            found.setdefault(rule, []).append(folder.name)
    return found


def _measured(cell: Mapping[str, Any]) -> bool:
    """Whether a cell is of a rule's own row: of no trial, nor of an untrained encoder, whose cell names a rule, too."""
    config, task = cell.get("config"), (cell.get("task") or [None])[0]
    untrained = isinstance(config, Mapping) and config.get("epochs") == 0
    return not untrained and (not isinstance(task, Mapping) or task.get("trial") is None)


def _row(rule: Rule, found_in: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    form, inputs = _form(rule), rule.inputs()
    file = type(rule).__module__.removeprefix("localssl.rules.") + ".py"
    return (
        f"`{rule.name}`",
        rule.credit,
        form.reference,
        form.projection,
        ", ".join(filter(None, (form.f, form.norm))) + (f"; type {form.loss_type}" if form.loss_type else ""),
        "two views" if type(inputs) is Inputs else (type(inputs).__doc__ or "").splitlines()[0],
        "yes" if rule.uses_labels else "",
        str(getattr(rule, "negatives", "yes")) if rule.uses_negatives else "",
        ", ".join(f"{key}: {value}" for key, value in rule.encoder_options.items()),
        (type(rule).__doc__ or "").splitlines()[0],
        f"[{file}](../src/localssl/rules/{file})",
        ", ".join(f"[{name}](results/{name})" for name in found_in.get(rule.name, ())) or "not yet",
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
